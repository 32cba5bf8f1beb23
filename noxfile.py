"""The version matrix of tests/versions.toml: `nox` runs all, `nox -t quick` the diagonal."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"

SIDE_BY_SIDE = ["-n", "4"]  # as in the Makefile

ROWS = tomllib.loads(Path("tests/versions.toml").read_text(encoding="utf-8"))["row"]


@functools.cache
def _interpreter(version):
    """The path of a Python *version* that answers: on PATH, or pyenv's. Else the bare version."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in (shutil.which(name), *sorted(pyenv.glob(f"{version}.*/bin/{name}"))):
        if candidate and _answers(candidate):
            return str(candidate)
    return version


def _answers(python):
    return subprocess.run([python, "-V"], capture_output=True, check=False).returncode == 0


def _name(row):
    return f"{'-'.join(row['pins']).replace('==', '-')}-py{row['python']}"


def _register(row):
    @nox.session(
        name=_name(row), python=_interpreter(row["python"]), tags=["quick"] if row["quick"] else []
    )
    def session(session):
        session.install("-e", f".[{row['framework']},history]", *row["pins"], "--group", "test")
        tests = [str(p) for pattern in row["tests"] for p in sorted(Path().glob(pattern))]
        if not tests:
            session.error(f"no test matches {row['tests']}")
        mark = row.get("mark", "not slow and not needs_cluster")
        processes = SIDE_BY_SIDE if row.get("side_by_side") else []
        session.run("pytest", "-q", *processes, "-m", mark, *tests)


for _row in ROWS:
    if not _row.get("main"):
        _register(_row)


@nox.session
def site(session):
    """Every page of the documentation in headless Chromium, which is the system's."""
    tools = ("pytest", "pytest-timeout", "hypothesis")
    session.install("-e", ".", "--group", "screenshots", *tools)
    session.run("pytest", "-q", "tests/docs/test_pages_in_a_browser.py")


def _register_suite(version):
    @nox.session(name=f"suite-py{version}", python=_interpreter(version))
    def suite(session):
        """All that `make test` runs, and the tests marked integration, on another Python."""
        session.install("-e", ".[all]", "--group", "dev")
        session.run("pytest", *SIDE_BY_SIDE, "-m", "not slow and not needs_cluster")


for _version in ("3.10", "3.12", "3.13"):
    _register_suite(_version)
