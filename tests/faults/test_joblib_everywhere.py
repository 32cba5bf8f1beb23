"""What the tests show on a local disk, shown on network mounts: they run with their files there."""

import subprocess
import sys

import pytest
from tests.faults.nodes import shares

TESTS = {
    "behaviour": "tests/plugins/joblib_ext/test_backend.py",
    "single flight": "tests/plugins/joblib_ext/test_single_flight.py",
    "takeover": "tests/plugins/joblib_ext/stores/files/test_takeover.py",
    "versions": "tests/plugins/joblib_ext/test_functions.py",
    "damage": "tests/faults/test_joblib_damage.py",
}


@pytest.mark.slow
@pytest.mark.needs_fuse
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tests", TESTS.values(), ids=TESTS)
@pytest.mark.parametrize(
    "kind", ["fuse", pytest.param("fuse-cached", marks=pytest.mark.integration)]
)
def test_what_holds_on_a_local_disk_holds_on_a_network_mount(tmp_path, kind, tests):
    with shares(kind, tmp_path, 1) as (share,):
        folder = ["--basetemp", share.path / "base"]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *folder, tests]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr
        assert " passed" in done.stdout
