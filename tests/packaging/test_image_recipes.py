"""The recipes for images on the page about Kubernetes, followed line by line without Docker.

A folder stands for the image's root, a virtual environment for its Python. COPY, WORKDIR and RUN do
what they say, there; ENTRYPOINT and CMD are the process that the kubelet starts, and ends.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.servers.harness import Server

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.name != "posix", reason="an image's shell is POSIX"),
]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/how-to/kserve-kubernetes.md"
SERVER = ROOT / "docs/how-to/kserve.md"

STAND_IN = """
import runpy, pathlib
runpy.run_path(str(pathlib.Path(__file__).with_name("server.py")), run_name="__main__")
"""
"""For KServe's Hugging Face server, which its image alone contains: the page's own server."""


def blocks(page, start):
    return re.findall(
        rf"^```{start}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


class Image:
    """What a recipe builds in *folder*: files, and the command that a container runs."""

    def __init__(self, folder, environment):
        self.root, self.environment = folder / "root", environment
        self.workdir, self.entrypoint, self.command, self.base = self.root, [], [], ""
        (self.root / "tmp").mkdir(parents=True)

    def variables(self):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MLOPS_EXT"))}
        path = os.pathsep.join([str(self.environment / "bin"), os.environ["PATH"]])
        return {**kept, "PATH": path, "VIRTUAL_ENV": str(self.environment)}

    def build(self, recipe, context):
        """Do what each line of *recipe* says; a line that is not known here is an error."""
        for line in recipe.splitlines():
            word, _, rest = line.partition(" ")
            if word in {"FROM", "USER", "EXPOSE", "#"}:
                self.base = rest if word == "FROM" else self.base
            elif word == "WORKDIR":
                self.workdir = self.root / rest.lstrip("/")
                self.workdir.mkdir(parents=True, exist_ok=True)
            elif word == "COPY":
                pattern, target = rest.split()
                (source,) = context.glob(pattern)
                shutil.copy(source, self._inside(target))
            elif word == "RUN":
                command = rest.replace("/tmp/", f"{self.root}/tmp/")
                subprocess.run(
                    ["sh", "-ec", command], cwd=self.workdir, env=self.variables(), check=True
                )
            elif word == "ENTRYPOINT":
                self.entrypoint = json.loads(rest)
            elif word == "CMD":
                self.command = json.loads(rest)
            else:
                pytest.fail(f"not followed here: {line}")

    def _inside(self, target):
        return self.root / target.lstrip("/") if target.startswith("/") else self.workdir / target


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A Python with pip, as the official images have it, and nothing else."""
    folder = tmp_path_factory.mktemp("image") / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def context(wheel, tmp_path_factory):
    """The folder where ``docker build`` runs."""
    folder = tmp_path_factory.mktemp("context")
    (folder / "dist").mkdir()
    shutil.copy(wheel, folder / "dist")
    (program,) = blocks(SERVER, 'python title="server.py"')
    (folder / "server.py").write_text(program)
    return folder


START = """
import os, sys
os.chdir({folder!r})
os.execve({program!r}, [*{argv!r}, *sys.argv[1:5]], {environment!r})
"""
"""Becomes the container's process; its ports are the test's."""


def serves_and_drains(tmp_path, image):
    """Run the container's process: it answers, and ends by itself when the kubelet says so."""
    script, variables = tmp_path / "container.py", image.variables()
    script.write_text(
        START.format(
            folder=str(image.workdir),
            program=shutil.which(image.entrypoint[0], path=variables["PATH"]),
            argv=image.entrypoint,
            environment=variables,
        )
    )

    async def scenario():
        with Server(tmp_path, way="bare", script=script) as server:
            client = server.client(model="echo")
            end = asyncio.get_running_loop().time() + 120
            while True:
                assert server.process.poll() is None, server.log[-3000:]
                try:
                    if await client.ask("v1-new") == 0:
                        break
                except Exception:  # it is not up yet
                    assert asyncio.get_running_loop().time() < end, server.log[-3000:]
                await asyncio.sleep(0.1)
            await client.close()
            server.signal(signal.SIGTERM)
            return await server.ended(timeout=120), server.log

    status, log = asyncio.run(scenario())
    assert status == 0, log[-3000:]
    assert "shutdown: done after" in log, log[-3000:]


def test_the_images_of_the_page_build_serve_and_drain(tmp_path, environment, context):
    own, hugging_face = blocks(PAGE, "dockerfile")
    first = Image(tmp_path / "own", environment)
    first.build(own, context)
    assert first.base.startswith("python:3")
    assert first.command == ["--http_port", "8080"]
    serves_and_drains(tmp_path, first)

    # The second image begins with KServe in it: in the environment that the first one made.
    site = subprocess.run(
        [environment / "bin/python", "-c", "import kserve; print(kserve.__path__[0])"],
        capture_output=True, text=True, check=True, env=first.variables(),
    ).stdout.strip()  # fmt: skip
    package = Path(site).parent / "huggingfaceserver"
    package.mkdir()
    (package / "__main__.py").write_text(STAND_IN)
    # Its users change no code: KServe's own class, which the command's patch mends.
    program = (context / "server.py").read_text().replace("kserve_ext", "kserve")
    plain = program.replace("GracefulModelServer", "ModelServer")
    (package / "server.py").write_text(plain)
    (package / "__init__.py").touch()
    second = Image(tmp_path / "hugging_face", environment)
    second.build(hugging_face, context)
    assert second.base.startswith("kserve/huggingfaceserver:")
    serves_and_drains(tmp_path, second)


def test_the_entry_points_are_what_an_exec_form_is():
    for recipe in blocks(PAGE, "dockerfile"):
        (line,) = (line for line in recipe.splitlines() if line.startswith("ENTRYPOINT"))
        words = json.loads(line.partition(" ")[2])
        assert "sh" not in shlex.join(words).split()
