"""KServe's own tests of its model server, bare and under ``mlops-ext run --patch kserve``.

The wheel ships no tests; the sdist ships ``test/`` without its conftest.py, whose fixture
`server` is in kserve_server_fixture.py here. Left out: modules that import vllm
(test_dataplane.py, test_model_repository.py), those about Kubernetes objects, the tests that start
a Ray cluster, and the one of worker processes that gives them 5 s to boot. The rest runs in an
environment of its own below ``.nox``, with what the tests import (ray, avro, ...).
"""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
KSERVE = version("kserve")
MODULES = (
    "model_server", "server", "rest_server", "grpc_server", "model_repository_extension",
    "ssl_cert_refresher", "logging_config", "inference_client_factory", "header_forwarding",
)  # fmt: skip
NEEDS = (
    "pytest>=9", "pytest-timeout", "pytest-asyncio<2", "pytest-httpx", "avro", "tomlkit",
    "jinja2", "grpcio-testing", "httpx-retries",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        Version(KSERVE) < Version("0.21"), reason="its list of needs is for KServe 0.21"
    ),
]


def call(*command, timeout=900, **options):
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True, text=True, check=False, timeout=timeout, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The folder with the tests, and the interpreter that has what they need."""
    folder = tmp_path_factory.mktemp("suite")
    home = ROOT / ".nox" / f"kserve-own-suite-{KSERVE}"
    python = home / "bin" / "python"
    if not python.exists():
        assert call(sys.executable, "-m", "venv", home).returncode == 0
    fetched = call(
        python, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:",
        "--dest", folder, f"kserve=={KSERVE}",
    )  # fmt: skip
    archives = list(folder.glob("kserve-*.tar.gz"))
    if not archives:
        pytest.skip(f"the sdist of KServe cannot be had: {fetched.stderr.strip()[-200:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    (inner,) = folder.glob("kserve-*/")
    (inner / "test" / "__init__.py").touch()
    installed = call(
        sys.executable, "-m", "uv", "pip", "install", "--python", python,
        "-e", f"{ROOT}[kserve]", f"kserve[ray]=={KSERVE}", *NEEDS,
    )  # fmt: skip
    if installed.returncode:
        pytest.skip(f"what the tests import cannot be installed: {installed.stderr[-200:]}")
    (folder / "run").mkdir()
    (inner / "test").rename(folder / "run" / "test")
    return folder / "run", python


def outcomes(suite, *prefix):
    """The tests that passed, by name; the output."""
    folder, python = suite
    done = call(
        *prefix, python, "-m", "pytest", "-q", "-rA", "-W", "ignore", "-p", "no:cacheprovider",
        "-p", "kserve_server_fixture", "-c", os.devnull, "--rootdir", folder, "--timeout", "300",
        *(f"test/test_{name}.py" for name in MODULES), "-k", "not RayServer and not MutiProcess",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    lines = [line.split(" ") for line in done.stdout.splitlines()]
    return {words[1] for words in lines if words[0] == "PASSED"}, done.stdout[-3000:]


def test_what_passes_bare_passes_patched(suite):
    _, python = suite
    bare, output = outcomes(suite)
    assert len(bare) >= 85, output
    program = python.with_name("mlops-ext")
    patched, output = outcomes(suite, program, "run", "--patch", "kserve", "--")
    assert bare <= patched, (sorted(bare - patched), output)
