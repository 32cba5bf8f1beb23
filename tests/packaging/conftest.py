"""Clean environments with the built wheel, as a user gets them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Environment:
    """A virtual environment of its own, with the wheel and what the test adds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")
        _check(sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, folder)

    def install(self, *packages):
        _check(
            sys.executable, "-m", "uv", "pip", "install", "--quiet",
            "--python", self.bin / "python", *packages,
        )  # fmt: skip

    def run(self, program, *arguments, **variables):
        """Run a program of this environment, away from the source tree."""
        return subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.folder,
            env={**_bare_environment(), "PATH": self._path(), **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def _path(self):
        return os.pathsep.join([str(self.bin), os.environ["PATH"]])

    def doctor(self, **variables):
        done = self.run("mlops-ext", "doctor", "--json", **variables)
        return done.returncode, json.loads(done.stdout)


def _bare_environment():
    return {k: v for k, v in os.environ.items() if not k.startswith(("MLOPS_EXT", "PYTHON"))}


def _check(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The project's wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    _check(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def make_environment(wheel, tmp_path_factory):
    """Make an environment that holds the wheel (with *extras*) and *packages*."""

    def make(*packages, extras=""):
        environment = Environment(tmp_path_factory.mktemp("environment") / "venv")
        environment.install(f"mlops-ext{extras} @ {wheel.as_uri()}", *packages)
        return environment

    return make
