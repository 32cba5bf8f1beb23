"""Settings: the order of sources, the reading of texts, and errors that say what to do."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from tests.support.settings import load, process

from mlops_ext import settings
from mlops_ext.errors import SettingsError
from mlops_ext.memory import MemorySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    grace_s: float = 5.0
    workers: int = 1
    strict: bool = False
    root: Path | None = None
    names: tuple[str, ...] = ()
    mode: Literal["fast", "safe"] = "safe"
    level: Literal[1, 2] = 1

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


ORDER = ("argument", "flag", "environment", "file", "default")


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_of_all_sources_that_have_a_value_the_first_wins(project, first):
    given = {source: place for place, source in enumerate(ORDER[:-1]) if place >= first}
    folder = project(f"[tool.mlops-ext.sample]\nworkers = {10 + given['file']}\n" if given else "")
    environ = {}
    if "environment" in given:
        environ["MLOPS_EXT_SAMPLE_WORKERS"] = str(10 + given["environment"])
    with process(folder, environ):
        resolved = settings.resolve(
            Sample,
            "sample",
            arguments={"workers": 10 + given["argument"]} if "argument" in given else {},
            flags={"workers": str(10 + given["flag"])} if "flag" in given else {},
        )
    assert resolved.value.workers == (10 + first if given else 1)
    assert resolved.sources["workers"] == {
        "environment": "MLOPS_EXT_SAMPLE_WORKERS",
        "file": str(folder / "pyproject.toml"),
    }.get(ORDER[first], ORDER[first])


def test_each_field_has_the_first_of_its_own_sources(project):
    folder = project("[tool.mlops-ext.sample]\ngrace-s = 3\nworkers = 3\nstrict = true\n")
    environ = {f"MLOPS_EXT_SAMPLE_{n}": "4" for n in ("GRACE_S", "WORKERS")}
    with process(folder, {**environ, "MLOPS_EXT_SAMPLE_MODE": "fast"}):
        resolved = settings.resolve(
            Sample,
            "sample",
            arguments={"grace_s": 1.0, "workers": None},
            flags={"grace_s": 2.0, "workers": "2"},
        )
    assert resolved.value == Sample(grace_s=1.0, workers=2, strict=True, mode="fast")
    assert resolved.sources["level"] == "default"


needs_owners = pytest.mark.skipif(
    not hasattr(os, "geteuid"), reason="the system has no owners and modes"
)


@needs_owners
@pytest.mark.parametrize(
    ("file_mode", "folder_mode", "read"),
    [
        (0o644, 0o755, True),
        (0o664, 0o775, True),  # a group is of the user's choice
        (0o666, 0o755, False),
        (0o644, 0o777, False),
        (0o644, 0o1777, False),
    ],
)
def test_a_file_that_everybody_can_write_or_replace_is_not_read(
    project, file_mode, folder_mode, read
):
    folder = project("[tool.mlops-ext.sample]\nworkers = 7\n")
    (folder / "pyproject.toml").chmod(file_mode)
    folder.chmod(folder_mode)
    below = folder / "below"
    below.mkdir()
    loaded = load(Sample, "sample", environ={}, directory=below)
    assert loaded.workers == (7 if read else 1)
    with process(below):
        assert (folder / "pyproject.toml" in settings.untrusted_files()) is not read


@needs_owners
@pytest.mark.parametrize("foreign", ["file", "folder", "link"])
def test_a_file_that_another_user_owns_or_could_replace_is_not_read(
    project, tmp_path_factory, foreign
):
    if os.geteuid() != 0:
        pytest.skip("needs root to make another user's file")
    folder = project("[tool.mlops-ext.sample]\nworkers = 7\n")
    if foreign == "link":
        mine = folder / "pyproject.toml"
        folder = tmp_path_factory.mktemp("linked")
        (folder / "pyproject.toml").symlink_to(mine)
        os.lchown(folder / "pyproject.toml", 65534, 65534)
    else:
        os.chown(folder / "pyproject.toml" if foreign == "file" else folder, 65534, 65534)
    assert load(Sample, "sample", environ={}, directory=folder) == Sample()
    with process(folder):
        assert folder / "pyproject.toml" in settings.untrusted_files()


@needs_owners
def test_a_folder_swapped_between_the_look_and_the_reading_sets_nothing(tmp_path, monkeypatch):
    """As anybody can where a folder further up lets everybody rename what is in it."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder, number in ((mine, 7), (theirs, 666)):
        folder.mkdir()
        (folder / "pyproject.toml").write_text(f"[tool.mlops-ext.sample]\nworkers = {number}\n")
    assert load(Sample, "sample", directory=mine).workers == 7
    real = os.open

    def swap(path, *arguments, **options):
        if path == mine / "pyproject.toml":
            mine.rename(tmp_path / "aside")
            theirs.rename(mine)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", swap)
    assert load(Sample, "sample", directory=mine).workers == 1
    assert (tmp_path / "aside").is_dir(), "the swap took place"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_in_the_place_of_a_file_stops_nothing(tmp_path):
    os.mkfifo(tmp_path / "pyproject.toml")
    assert load(Sample, "sample", environ={}, directory=tmp_path) == Sample()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    key: str = field(default="", repr=False, metadata=settings.NEVER_FROM_FILE)


def test_a_key_is_refused_in_a_file_and_not_shown(project):
    folder = project("[tool.mlops-ext.sample]\nkey = 'hidden'\n")
    with pytest.raises(SettingsError, match="never taken from a file") as caught:
        load(Signed, "sample", environ={}, directory=folder)
    assert "MLOPS_EXT_SAMPLE_KEY" in str(caught.value)
    assert "hidden" not in str(caught.value)
    project("")
    for source in ({"environ": {"MLOPS_EXT_SAMPLE_KEY": "k"}}, {"arguments": {"key": "k"}}):
        found = load(Signed, "sample", **{"environ": {}, "directory": folder, **source})
        assert found.key == "k"


@pytest.mark.parametrize("text", ["none", "None", ""])
def test_none_and_nothing_stand_for_no_path(project, text):
    folder = project(f"[tool.mlops-ext]\ntemp_dir = '{text}'\n")
    assert load(settings.CoreSettings, environ={}, directory=folder).temp_dir is None
    arguments = {"temp_dir": text}
    assert load(settings.CoreSettings, environ={}, arguments=arguments).temp_dir is None


def test_a_variable_that_no_setting_reads_is_told_with_the_nearest(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MLOPS_EXT_")]:
        monkeypatch.delenv(name)
    load(Sample, "sample")
    for name in ("AUTOPATCHES", "SAMPLE_WORKER", "SAMPLE_MODE", "QQQQ"):
        monkeypatch.setenv(f"MLOPS_EXT_{name}", "1")
    assert settings.unknown_variables() == [
        ("MLOPS_EXT_AUTOPATCHES", "MLOPS_EXT_AUTOPATCH"),
        ("MLOPS_EXT_QQQQ", None),
        ("MLOPS_EXT_SAMPLE_WORKER", "MLOPS_EXT_SAMPLE_WORKERS"),
    ]


def test_texts_are_read_by_the_field_s_type(tmp_path):
    environ = {
        "MLOPS_EXT_SAMPLE_GRACE_S": "2.5",
        "MLOPS_EXT_SAMPLE_STRICT": "Yes",
        "MLOPS_EXT_SAMPLE_ROOT": "/scratch",
        "MLOPS_EXT_SAMPLE_NAMES": "a, b,",
        "MLOPS_EXT_SAMPLE_WORKERS": "",
    }
    loaded = load(Sample, "sample", environ=environ, directory=tmp_path)
    assert loaded == Sample(grace_s=2.5, strict=True, root=Path("/scratch"), names=("a", "b"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("WORKERS", "many", "a whole number"),
        ("GRACE_S", "soon", "a number"),
        ("STRICT", "perhaps", "true or false"),
        ("MODE", "slow", "fast, safe"),
        ("GRACE_S", "-1", "must not be negative"),
    ],
)
def test_a_bad_text_is_refused_with_name_value_and_what_is_allowed(tmp_path, name, text, words):
    variable = f"MLOPS_EXT_SAMPLE_{name}"
    with pytest.raises(SettingsError) as caught:
        load(Sample, "sample", environ={variable: text}, directory=tmp_path)
    assert words in str(caught.value)
    assert text in str(caught.value)


def test_a_misspelt_key_suggests_the_nearest(project):
    folder = project("[tool.mlops-ext.sample]\nworker = 2\n")
    with pytest.raises(SettingsError, match=r"tool.mlops-ext.sample.worker.*did you mean workers"):
        load(Sample, "sample", environ={}, directory=folder)


def test_sections_of_others_are_no_unknown_keys(project):
    folder = project("[tool.mlops-ext]\ndisable = ['x']\n[tool.mlops-ext.sample]\nworkers = 2\n")
    core = load(settings.CoreSettings, environ={}, directory=folder)
    assert core.disable == ("x",)


def test_the_file_is_found_from_a_folder_below(project):
    folder = project("[tool.mlops-ext.sample]\nworkers = 7\n")
    below = folder / "a" / "b"
    below.mkdir(parents=True)
    assert load(Sample, "sample", environ={}, directory=below).workers == 7


def test_a_broken_file_that_names_us_is_an_error_and_another_s_is_not(project):
    folder = project("[tool.mlops-ext\n")
    with pytest.raises(SettingsError, match="valid TOML"):
        load(Sample, "sample", environ={}, directory=folder)
    folder = project("[tool.other\n")
    assert load(Sample, "sample", environ={}, directory=folder) == Sample()


@pytest.mark.parametrize("text", ["tool = 3\n", "[tool]\nother = 1\n", "[project]\n", ""])
def test_a_file_without_a_table_of_ours_sets_nothing(project, text):
    assert load(Sample, "sample", environ={}, directory=project(text)) == Sample()


@pytest.mark.parametrize("text", ["[tool]\nmlops-ext = 3\n", "[tool.mlops-ext]\nsample = 3\n"])
def test_a_table_of_ours_that_is_none_is_refused(project, text):
    with pytest.raises(SettingsError, match=r"tool.mlops-ext\S* cannot be used: expected a table"):
        load(Sample, "sample", environ={}, directory=project(text))


def test_a_file_in_another_encoding_is_an_error_only_where_it_names_us(project):
    folder = project("")
    (folder / "pyproject.toml").write_bytes(b"name = '\xff'\n")
    assert load(Sample, "sample", environ={}, directory=folder) == Sample()
    (folder / "pyproject.toml").write_bytes(b"[tool.mlops-ext]\nname = '\xff'\n")
    with pytest.raises(SettingsError, match=r"pyproject\.toml cannot be used"):
        load(Sample, "sample", environ={}, directory=folder)


def test_a_file_that_cannot_be_read_is_passed_over(project):
    folder = project("[tool.mlops-ext.sample]\nworkers = 7\n")
    for name in ("directory", "loop"):
        (folder / name).mkdir()
    (folder / "directory" / "pyproject.toml").mkdir()
    (folder / "loop" / "pyproject.toml").symlink_to(folder / "loop" / "pyproject.toml")
    for name in ("directory", "loop"):
        assert load(Sample, "sample", environ={}, directory=folder / name).workers == 7


def test_a_broken_file_of_others_does_not_hide_ours_above_it(project):
    folder = project("[tool.mlops-ext.sample]\nworkers = 7\n")
    (folder / "below").mkdir()
    (folder / "below" / "pyproject.toml").write_text("[tool.other\n")
    assert load(Sample, "sample", environ={}, directory=folder / "below").workers == 7


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no current directory")
def test_without_a_current_directory_there_is_no_file(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setenv("MLOPS_EXT_SAMPLE_WORKERS", "3")
    assert settings.load(Sample, "sample").workers == 3


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
        load(Sample, "sample", environ={}, directory=folder)


def test_a_whole_number_written_with_a_point_is_one(project):
    folder = project("[tool.mlops-ext.sample]\nworkers = 2.0\ngrace_s = 3\n")
    loaded = load(Sample, "sample", environ={}, directory=folder)
    assert (loaded.workers, loaded.grace_s) == (2, 3.0)
    assert type(loaded.workers) is int


def test_a_value_that_the_section_refuses_is_told_in_the_section_s_words(project):
    folder = project("[tool.mlops-ext.memory]\ngrowth = 0.5\n")
    with pytest.raises(SettingsError) as caught:
        load(MemorySettings, "memory", environ={}, directory=folder)
    assert str(caught.value) == ("memory cannot be used: memory.growth = 0.5: expected 1 or more")


def test_a_size_that_cannot_be_read_is_told_in_its_own_words(project):
    folder = project("[tool.mlops-ext.memory]\nfirst_limit = '3GB'\n")
    with pytest.raises(SettingsError) as caught:
        load(MemorySettings, "memory", environ={}, directory=folder)
    assert str(caught.value).startswith(
        "tool.mlops-ext.memory.first_limit cannot be used: '3GB' is not a memory size"
    )


def test_a_misspelt_key_of_the_top_level_is_refused_beside_sections_of_others(project):
    folder = project("[tool.mlops-ext]\ntemp_dri = 'x'\n[tool.mlops-ext.sample]\nworkers = 2\n")
    with pytest.raises(SettingsError, match=r"temp_dri is not a setting; did you mean temp_dir\?"):
        load(settings.CoreSettings, environ={}, directory=folder)


def test_a_table_in_the_place_of_a_setting_is_no_section(project):
    folder = project("[tool.mlops-ext.sample]\nworkers = 2\n[tool.mlops-ext.sample.mode]\nx = 1\n")
    with pytest.raises(SettingsError, match="mode"):
        load(Sample, "sample", environ={}, directory=folder)
    folder = project("[tool.mlops-ext.sample.deeper]\nworkers = 2\n")
    with pytest.raises(SettingsError, match=r"sample\.deeper is not a setting"):
        load(Sample, "sample", environ={}, directory=folder)
    folder = project("[tool.mlops-ext.temp_dir]\nworkers = 2\n")
    with pytest.raises(SettingsError, match="temp_dir"):
        load(settings.CoreSettings, environ={}, directory=folder)


def test_a_value_that_counts_as_nothing_is_given_all_the_same(project):
    folder = project("[tool.mlops-ext.sample]\nworkers = 3\nstrict = true\n")
    given = {"workers": 0, "strict": False}
    found = load(Sample, "sample", arguments=given, environ={}, directory=folder)
    assert (found.workers, found.strict) == (0, False)


def test_the_tables_of_the_file_are_named_with_the_file(project):
    with process(project("[tool.other]\n")):
        assert settings.sections() == (None, [])
    folder = project(
        "[tool.mlops-ext]\ntemp-dir = 'x'\n[tool.mlops-ext.one-two]\n[tool.mlops-ext.b]\n"
    )
    (folder / "below").mkdir()
    with process(folder / "below"):
        assert settings.sections() == (folder / "pyproject.toml", ["one_two", "b"])
        assert settings.misspelt_files() == []


def test_a_table_with_an_underscore_is_found_however_far_above(project):
    folder = project("[tool.mlops_ext]\n")
    (folder / "below").mkdir()
    (folder / "below" / "pyproject.toml").write_text("[tool.mlops-ext]\n")
    with process(folder / "below"):
        assert settings.misspelt_files() == [folder / "pyproject.toml"]


def test_a_number_of_another_type_is_told_with_the_setting_the_value_and_what_is_allowed(project):
    folder = project("[tool.mlops-ext.sample]\nworkers = 2.7\n")
    with pytest.raises(SettingsError) as caught:
        load(Sample, "sample", environ={}, directory=folder)
    assert str(caught.value) == (
        "tool.mlops-ext.sample.workers = 2.7 cannot be used: expected a whole number"
    )
    error = caught.value
    assert (error.setting, error.value) == ("tool.mlops-ext.sample.workers", 2.7)
