"""Settings: the order of sources, the reading of texts, and errors that say what to do."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from mlops_ext import settings
from mlops_ext.errors import SettingsError


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    grace_s: float = 5.0
    workers: int = 1
    strict: bool = False
    root: Path | None = None
    names: tuple[str, ...] = ()
    mode: Literal["fast", "safe"] = "safe"
    level: Level = Level.LOW

    def __post_init__(self):
        if self.grace_s < 0:
            raise ValueError(f"grace_s = {self.grace_s}: must not be negative")


@pytest.fixture
def project(tmp_path):
    """A folder with a pyproject.toml that the test writes."""

    def write(text):
        (tmp_path / "pyproject.toml").write_text(text)
        return tmp_path

    return write


def test_sources_win_in_the_documented_order(project):
    folder = project("[tool.mlops-ext.sample]\ngrace-s = 3\nworkers = 3\nstrict = true\n")
    environ = {f"MLOPS_EXT_SAMPLE_{n}": "4" for n in ("GRACE_S", "WORKERS")}
    environ["MLOPS_EXT_SAMPLE_MODE"] = "fast"
    resolved = settings.resolve(
        Sample,
        "sample",
        arguments={"grace_s": 1.0, "workers": None},
        flags={"grace_s": 2.0, "workers": "2"},
        environ=environ,
        directory=folder,
    )
    assert resolved.value == Sample(grace_s=1.0, workers=2, strict=True, mode="fast")
    assert resolved.sources["grace_s"] == "argument"
    assert resolved.sources["workers"] == "flag"
    assert resolved.sources["strict"] == str(folder / "pyproject.toml")
    assert resolved.sources["mode"] == "MLOPS_EXT_SAMPLE_MODE"
    assert resolved.sources["level"] == "default"


def test_texts_are_read_by_the_field_s_type(tmp_path):
    environ = {
        "MLOPS_EXT_SAMPLE_GRACE_S": "2.5",
        "MLOPS_EXT_SAMPLE_STRICT": "Yes",
        "MLOPS_EXT_SAMPLE_ROOT": "/scratch",
        "MLOPS_EXT_SAMPLE_NAMES": "a, b,",
        "MLOPS_EXT_SAMPLE_LEVEL": "high",
        "MLOPS_EXT_SAMPLE_WORKERS": "",
    }
    loaded = settings.load(Sample, "sample", environ=environ, directory=tmp_path)
    assert loaded == Sample(
        grace_s=2.5, strict=True, root=Path("/scratch"), names=("a", "b"), level=Level.HIGH
    )


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("WORKERS", "many", "a whole number"),
        ("GRACE_S", "soon", "a number"),
        ("STRICT", "perhaps", "true or false"),
        ("MODE", "slow", "fast, safe"),
        ("LEVEL", "middle", "low, high"),
        ("GRACE_S", "-1", "must not be negative"),
    ],
)
def test_a_bad_text_is_refused_with_name_value_and_what_is_allowed(tmp_path, name, text, words):
    variable = f"MLOPS_EXT_SAMPLE_{name}"
    with pytest.raises(SettingsError) as caught:
        settings.load(Sample, "sample", environ={variable: text}, directory=tmp_path)
    assert words in str(caught.value)
    assert text in str(caught.value)


def test_a_misspelt_key_suggests_the_nearest(project):
    folder = project("[tool.mlops-ext.sample]\nworker = 2\n")
    with pytest.raises(SettingsError, match=r"tool.mlops-ext.sample.worker.*did you mean workers"):
        settings.load(Sample, "sample", environ={}, directory=folder)


def test_sections_of_others_are_no_unknown_keys(project):
    folder = project("[tool.mlops-ext]\ndisable = ['x']\n[tool.mlops-ext.sample]\nworkers = 2\n")
    core = settings.load(settings.CoreSettings, environ={}, directory=folder)
    assert core.disable == ("x",)


def test_the_file_is_found_from_a_folder_below(project):
    folder = project("[tool.mlops-ext.sample]\nworkers = 7\n")
    below = folder / "a" / "b"
    below.mkdir(parents=True)
    assert settings.load(Sample, "sample", environ={}, directory=below).workers == 7


def test_a_broken_file_that_names_us_is_an_error_and_another_s_is_not(project):
    folder = project("[tool.mlops-ext\n")
    with pytest.raises(SettingsError, match="valid TOML"):
        settings.load(Sample, "sample", environ={}, directory=folder)
    folder = project("[tool.other\n")
    assert settings.load(Sample, "sample", environ={}, directory=folder) == Sample()
