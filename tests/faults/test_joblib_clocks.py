"""Nodes whose clocks are an hour apart, and file times that are an hour off."""

import shutil
from pathlib import Path

import pytest
from tests.faults.nodes import Node, need_namespaces, shares
from tests.faults.test_joblib_stampede import stampede

from mlops_ext.files import temp_name

pytestmark = [pytest.mark.integration, pytest.mark.needs_namespaces, pytest.mark.needs_fuse]

HOUR_S = 3600
COLLECT = """
    import sys, time
    import joblib_ext
    from pathlib import Path
    from joblib_ext.maintenance.find import find_store
    from joblib_ext.maintenance.garbage import collect_garbage
    print(int(time.time()), collect_garbage(find_store(Path(sys.argv[1], "cache"))).orphans)
"""


@pytest.fixture(
    params=[
        "ext4",
        pytest.param("fuse", marks=pytest.mark.slow),
        "fuse-cached",
    ]
)
def kind(request):
    need_namespaces()
    return request.param


@pytest.fixture
def skewed():
    """The environments of three nodes: an hour fast, right, and an hour slow."""
    found = sorted(Path("/usr/lib").rglob("faketime/libfaketime.so.1"))
    if not found or not shutil.which("faketime"):
        pytest.skip("libfaketime is not installed")
    return [
        {"LD_PRELOAD": str(found[0]), "FAKETIME": f"{seconds:+d}"} for seconds in (HOUR_S, -HOUR_S)
    ] + [{}]


@pytest.mark.parametrize("kill", [False, True])
def test_clocks_an_hour_apart_change_nothing(kind, tmp_path, skewed, kill):
    with shares(kind, tmp_path, 3) as found:
        computed = stampede(found, tmp_path, processes=6, kill=kill, environs=skewed)
        assert computed == (2 if kill else 1)


@pytest.mark.parametrize("kill", [False, True])
def test_file_times_an_hour_off_change_nothing(tmp_path, kill):
    need_namespaces()
    with shares("fuse-cached", tmp_path, 3) as found:
        for share, seconds in zip(found, (HOUR_S, -HOUR_S, 0), strict=True):
            share.inject(skew_s=seconds)
        computed = stampede(found, tmp_path, processes=6, kill=kill)
        assert computed == (2 if kill else 1)


def test_a_collector_whose_clock_is_an_hour_fast_leaves_a_young_file(kind, tmp_path, skewed):
    with shares(kind, tmp_path, 3) as found:
        assert stampede(found, tmp_path, processes=3) == 1
        root = Path(found[2].path, "cache", "joblib", "mlops-shared-1")
        (root / temp_name("entry").replace(".", ".elsewhere-", 1)).write_bytes(b"being written")
        outputs = []
        for share, environ in zip(found, skewed, strict=True):
            process = Node("collector", share).start(COLLECT, **environ)
            out, error = process.communicate(timeout=60)
            assert process.returncode == 0, error
            outputs.append([int(text) for text in out.split()])
        times = [now for now, _ in outputs]
        assert times[0] - times[1] > HOUR_S, "the clocks were not skewed"
        assert [orphans for _, orphans in outputs] == [0, 0, 0]
