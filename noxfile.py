"""The version matrix of tests/versions.toml: `nox` runs all, `nox -t quick` the diagonal."""

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

ROWS = tomllib.loads(Path("tests/versions.toml").read_text(encoding="utf-8"))["row"]


def _name(row):
    return f"{'-'.join(row['pins']).replace('==', '-')}-py{row['python']}"


def _register(row):
    @nox.session(name=_name(row), python=row["python"], tags=["quick"] if row["quick"] else [])
    def session(session):
        session.install("-e", f".[{row['framework']},history]", *row["pins"], "--group", "test")
        tests = [str(p) for pattern in row["tests"] for p in sorted(Path().glob(pattern))]
        if not tests:
            session.error(f"no test matches {row['tests']}")
        session.run("pytest", "-q", "-m", row.get("mark", "not slow and not needs_cluster"), *tests)


for _row in ROWS:
    _register(_row)
