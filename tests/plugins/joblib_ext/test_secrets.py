"""Keys and credentials stay where they were given: no pickle takes them along."""

import os
import pickle
import subprocess
import sys

import joblib
import pytest
from joblib import Memory
from tests.support.joblib_files import stored

import joblib_ext  # noqa: F401  # registers the backend
from mlops_ext.errors import SettingsError

SECRET = "hunter2-of-the-team"
WORKER = """
import pickle, sys, warnings
from pathlib import Path
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    cached = pickle.loads(Path(sys.argv[1]).read_bytes())
    print(cached(-7), cached.check_call_in_cache(-7))
print(*(str(one.message) for one in told))
"""


def make(folder, **options):
    return Memory(folder, backend="shared", verbose=0, backend_options=options)


def run_worker(tmp_path, cached, **environment):
    (tmp_path / "pickle").write_bytes(pickle.dumps(cached))
    done = subprocess.run(
        [sys.executable, "-c", WORKER, tmp_path / "pickle"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split("\n", 1)


def test_no_pickle_holds_a_secret(tmp_path):
    memory = make(tmp_path, sign_key=SECRET, storage_options={"secret_access_key": SECRET + "2"})
    cached = memory.cache(abs)
    reference = cached.call_and_shelve(-1)
    for one in (memory, cached, reference, memory.store_backend):
        assert SECRET.encode() not in pickle.dumps(one)
    memory.cache(lambda x: {"memory": memory})(1)
    for path in stored(tmp_path):
        assert SECRET.encode() not in path.read_bytes()


def test_a_pickle_that_comes_back_finds_the_key_again(tmp_path):
    memory = pickle.loads(pickle.dumps(make(tmp_path, sign_key=SECRET)))
    cached = memory.cache(abs)
    assert cached(-1) == 1
    assert make(tmp_path, sign_key=SECRET).cache(abs).check_call_in_cache(-1)


def test_a_pickle_is_the_same_whatever_was_done_with_it(tmp_path):
    memory = make(tmp_path, sign_key=SECRET)
    before = joblib.hash(memory)
    memory.cache(abs)(-1)
    assert joblib.hash(memory) == before == joblib.hash(make(tmp_path, sign_key=SECRET))


@pytest.mark.parametrize("how", ["file", "environment"])
def test_a_worker_finds_the_key_as_its_parent_did(tmp_path, monkeypatch, how):
    file = tmp_path / "key"
    file.write_text(SECRET + "\n")
    options = {"sign_key_file": str(file)} if how == "file" else {}
    environment = {"MLOPS_EXT_JOBLIB_SIGN_KEY": SECRET} if how == "environment" else {}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cached = make(tmp_path / "cache", **options).cache(abs)
    cached(-1)
    first, told = run_worker(tmp_path, cached, **environment)
    assert (first, told.strip()) == ("7 True", "")
    assert cached.check_call_in_cache(-7)


def test_a_worker_without_the_key_says_what_is_missing_and_computes(tmp_path):
    cached = make(tmp_path / "cache", sign_key=SECRET).cache(abs)
    first, told = run_worker(tmp_path, cached)
    assert first == "7 False"
    assert "sign_key_file" in told
    assert "MLOPS_EXT_JOBLIB_SIGN_KEY" in told
    assert not cached.check_call_in_cache(-7)


def test_a_worker_with_another_key_is_one_without(tmp_path):
    cached = make(tmp_path / "cache", sign_key=SECRET).cache(abs)
    first, _ = run_worker(tmp_path, cached, MLOPS_EXT_JOBLIB_SIGN_KEY="another")
    assert first == "7 False"


def test_a_misspelt_variable_does_not_leave_the_cache_unsigned(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_EXT_JOBLIB_SIGNKEY", SECRET)
    with pytest.raises(SettingsError, match="did you mean sign_key") as refused:
        make(tmp_path)
    assert SECRET not in str(refused.value)


def test_a_key_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="sign_key_file"):
        make(tmp_path, sign_key_file=str(tmp_path / "none"))
