"""Settings: the order of sources, the reading of texts, and errors that say what to do."""

import enum
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from mlops_ext import settings
from mlops_ext.errors import SettingsError
from mlops_ext.memory import MemorySettings


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


@pytest.mark.parametrize("text", ["tool = 3\n", "[tool]\nother = 1\n", "[project]\n", ""])
def test_a_file_without_a_table_of_ours_sets_nothing(project, text):
    assert settings.load(Sample, "sample", environ={}, directory=project(text)) == Sample()


@pytest.mark.parametrize("text", ["[tool]\nmlops-ext = 3\n", "[tool.mlops-ext]\nsample = 3\n"])
def test_a_table_of_ours_that_is_none_is_refused(project, text):
    with pytest.raises(SettingsError, match=r"tool.mlops-ext\S* cannot be used: expected a table"):
        settings.load(Sample, "sample", environ={}, directory=project(text))


def test_a_file_in_another_encoding_is_an_error_only_where_it_names_us(project):
    folder = project("")
    (folder / "pyproject.toml").write_bytes(b"name = '\xff'\n")
    assert settings.load(Sample, "sample", environ={}, directory=folder) == Sample()
    (folder / "pyproject.toml").write_bytes(b"[tool.mlops-ext]\nname = '\xff'\n")
    with pytest.raises(SettingsError, match=r"pyproject\.toml cannot be used"):
        settings.load(Sample, "sample", environ={}, directory=folder)


def test_a_file_that_cannot_be_read_is_passed_over(project):
    folder = project("[tool.mlops-ext.sample]\nworkers = 7\n")
    for name in ("directory", "loop"):
        (folder / name).mkdir()
    (folder / "directory" / "pyproject.toml").mkdir()
    (folder / "loop" / "pyproject.toml").symlink_to(folder / "loop" / "pyproject.toml")
    for name in ("directory", "loop"):
        assert settings.load(Sample, "sample", environ={}, directory=folder / name).workers == 7


def test_a_broken_file_of_others_does_not_hide_ours_above_it(project):
    folder = project("[tool.mlops-ext.sample]\nworkers = 7\n")
    (folder / "below").mkdir()
    (folder / "below" / "pyproject.toml").write_text("[tool.other\n")
    assert settings.load(Sample, "sample", environ={}, directory=folder / "below").workers == 7


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no current directory")
def test_without_a_current_directory_there_is_no_file(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert settings.load(Sample, "sample", environ={"MLOPS_EXT_SAMPLE_WORKERS": "3"}).workers == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("workers = 2.7", "a whole number"),
        ("workers = inf", "a whole number"),
        ("workers = true", "type int"),
        ("grace_s = true", "type float"),
        ("grace_s = [1]", "type float"),
        ("root = 3", "a path"),
        ("names = 3", "a list"),
        ("names = [[1]]", "type str"),
        ("strict = 2", "true or false"),
    ],
)
def test_a_value_of_another_type_is_refused_and_never_bent(project, line, words):
    folder = project(f"[tool.mlops-ext.sample]\n{line}\n")
    with pytest.raises(SettingsError, match=words):
        settings.load(Sample, "sample", environ={}, directory=folder)


def test_a_whole_number_written_with_a_point_is_one(project):
    folder = project("[tool.mlops-ext.sample]\nworkers = 2.0\ngrace_s = 3\n")
    loaded = settings.load(Sample, "sample", environ={}, directory=folder)
    assert (loaded.workers, loaded.grace_s) == (2, 3.0)
    assert type(loaded.workers) is int


def test_a_value_that_the_section_refuses_is_told_in_the_section_s_words(project):
    folder = project("[tool.mlops-ext.memory]\ngrowth = 0.5\n")
    with pytest.raises(SettingsError) as caught:
        settings.load(MemorySettings, "memory", environ={}, directory=folder)
    assert str(caught.value) == ("memory cannot be used: memory.growth = 0.5: expected more than 1")


def test_a_size_that_cannot_be_read_is_told_in_its_own_words(project):
    folder = project("[tool.mlops-ext.memory]\nfirst_limit = '3GB'\n")
    with pytest.raises(SettingsError) as caught:
        settings.load(MemorySettings, "memory", environ={}, directory=folder)
    assert str(caught.value).startswith(
        "tool.mlops-ext.memory.first_limit cannot be used: '3GB' is not a memory size"
    )


def test_a_misspelt_key_of_the_top_level_is_refused_beside_sections_of_others(project):
    folder = project("[tool.mlops-ext]\ntemp_dri = 'x'\n[tool.mlops-ext.sample]\nworkers = 2\n")
    with pytest.raises(SettingsError, match=r"temp_dri is not a setting; did you mean temp_dir\?"):
        settings.load(settings.CoreSettings, environ={}, directory=folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Either:
    size: int | bool | None = None


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("yes", True), ("none", None), ("None", None)]
)
def test_a_text_is_read_as_the_first_type_that_fits(tmp_path, text, value):
    environ = {"MLOPS_EXT_X_SIZE": text}
    assert settings.load(Either, "x", environ=environ, directory=tmp_path).size is value


def test_a_text_that_fits_no_type_is_refused_in_the_words_of_the_first(tmp_path):
    with pytest.raises(SettingsError, match="a whole number"):
        settings.load(Either, "x", environ={"MLOPS_EXT_X_SIZE": "?"}, directory=tmp_path)


def test_a_value_that_counts_as_nothing_is_given_all_the_same(project):
    folder = project("[tool.mlops-ext.sample]\nworkers = 3\nstrict = true\n")
    given = {"workers": 0, "strict": False}
    found = settings.load(Sample, "sample", arguments=given, environ={}, directory=folder)
    assert (found.workers, found.strict) == (0, False)
