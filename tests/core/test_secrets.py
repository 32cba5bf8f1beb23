"""No secret leaves through an error, a log or a repr, whatever is wrong with it."""

import logging
import traceback
from dataclasses import dataclass, field

import pytest
from joblib import Memory
from tests.support.settings import load

import joblib_ext  # noqa: F401
from mlops_ext.errors import MlopsExtError

SECRET = "s3cr3t-8f1e7a"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    key: str | None = field(default=None, repr=False)
    workers: int = 1

    def __post_init__(self):
        if self.workers < 1:
            raise ValueError(f"workers = {self.workers}: expected 1 or more")


def misspelt_in_the_file(folder):
    (folder / "pyproject.toml").write_text(f"[tool.mlops-ext.demo]\nkye = '{SECRET}'\n")
    load(Section, "demo", directory=folder)


def beside_a_bad_value(folder):
    load(Section, "demo", directory=folder, arguments={"key": SECRET, "workers": 0})


def of_a_wrong_type_in_the_file(folder):
    (folder / "pyproject.toml").write_text(f"[tool.mlops-ext.demo]\nkey = ['{SECRET}']\n")
    load(Section, "demo", directory=folder)


def of_a_wrong_type_in_the_file_of_a_cache(folder):
    (folder / "pyproject.toml").write_text(
        f"[tool.mlops-ext.joblib]\nsign_key = {{key = '{SECRET}'}}\n"
    )
    Memory(folder, backend="shared")


def in_the_place_of_a_table(folder):
    (folder / "pyproject.toml").write_text(f"[tool.mlops-ext]\ndemo = '{SECRET}'\n")
    load(Section, "demo", directory=folder)


def in_the_place_of_all_settings(folder):
    (folder / "pyproject.toml").write_text(f"[tool]\nmlops-ext = '{SECRET}'\n")
    load(Section, "demo", directory=folder)


def in_a_file_that_is_no_toml(folder):
    (folder / "pyproject.toml").write_text(f"[tool.mlops-ext.demo]\nkey = {SECRET}\n")
    load(Section, "demo", directory=folder)


def misspelt_option(folder):
    Memory(folder, backend="shared", backend_options={"sing_key": SECRET})


def of_a_wrong_type(folder):
    Memory(folder, backend="shared", backend_options={"sign_key": [SECRET]})


def beside_a_bad_option(folder):
    Memory(folder, backend="shared", backend_options={"sign_key": SECRET, "lease_s": -1})


@pytest.mark.parametrize(
    "path",
    [
        misspelt_in_the_file,
        beside_a_bad_value,
        of_a_wrong_type_in_the_file,
        of_a_wrong_type_in_the_file_of_a_cache,
        in_the_place_of_a_table,
        in_the_place_of_all_settings,
        in_a_file_that_is_no_toml,
        misspelt_option,
        of_a_wrong_type,
        beside_a_bad_option,
    ],
)
def test_an_error_never_shows_a_secret(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MlopsExtError) as caught:
        path(tmp_path)
    error = caught.value
    shown = [str(error), repr(error), str(vars(error)), *traceback.format_exception(error)]
    assert not [text for text in shown if SECRET in text]


def test_a_cache_with_a_key_shows_it_nowhere(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    memory = Memory(tmp_path, backend="shared", backend_options={"sign_key": SECRET}, verbose=10)
    double = memory.cache(lambda x: 2 * x)
    assert [double(1), double(1)] == [2, 2]
    entries = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert entries
    assert not [data for data in entries if SECRET.encode() in data]
    assert SECRET not in caplog.text + repr(memory) + repr(memory.store_backend)
