"""No secret leaves through an error or a log of the extension, wherever the secret stands."""

import asyncio
import logging
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import kserve  # noqa: F401  # its clients must be there to be closed
import pytest
from tests.support.servers.harness import Server, get

from kserve_ext.settings import load
from kserve_ext.shutdown import models as ending
from mlops_ext.errors import MlopsExtError

pytestmark = pytest.mark.timeout(300)

SECRET = "s3cr3t-8f1e7a"


def misspelt_in_the_file(folder, _):
    (folder / "pyproject.toml").write_text(f"[tool.mlops-ext.kserve]\ntoken = '{SECRET}'\n")
    load(argv=[])


def beside_a_bad_value(*_):
    load({"lame_duck_s": -1}, argv=["--token", SECRET, f"--api_key={SECRET}"])


def beside_a_bad_flag(*_):
    load(argv=["--token", SECRET, "--drain_s", "soon", f"--api_key={SECRET}"])


def beside_a_bad_variable(_, monkeypatch):
    monkeypatch.setenv("MLOPS_EXT_KSERVE_DRAIN_S", "soon")
    load(argv=["--token", SECRET])


@pytest.mark.parametrize(
    "path", [misspelt_in_the_file, beside_a_bad_value, beside_a_bad_flag, beside_a_bad_variable]
)
def test_an_error_never_shows_a_secret(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_TOKEN", SECRET)
    with pytest.raises(MlopsExtError) as caught:
        path(tmp_path, monkeypatch)
    error = caught.value
    shown = [str(error), repr(error), str(vars(error)), *traceback.format_exception_only(error)]
    assert not [text for text in shown if SECRET in text]


@pytest.mark.parametrize("command", ["settings", "manifest"])
def test_a_command_never_shows_a_secret(command, tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_TOKEN", SECRET)
    program = Path(sys.executable).with_name("mlops-ext")
    (tmp_path / "pyproject.toml").write_text(f"[tool.mlops-ext.kserve]\ntoken = '{SECRET}'\n")
    done = subprocess.run(
        [program, "kserve", command],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "token" in done.stderr
    assert SECRET not in done.stdout + done.stderr


class Model:
    token = SECRET

    def __repr__(self):
        return f"Model(token={SECRET})"

    @property
    def _http_client_instance(self):
        return self

    async def aclose(self):
        raise ConnectionError(f"cannot reach http://user:{SECRET}@predictor")


class Repository:
    def __init__(self):
        self.models = {"m": Model()}

    def get_models(self):
        return self.models

    def unload(self, name):
        raise RuntimeError(f"cannot stop {name}: authorization {SECRET}")


def test_what_models_and_clients_raise_is_logged_without_its_message(caplog, monkeypatch):
    with caplog.at_level(logging.DEBUG):
        models = ending.stop_models(Repository())
        factory = sys.modules.get("kserve.utils.inference_client_factory")
        if factory is not None:
            monkeypatch.setattr(factory.InferenceClientFactory, "close", Model.aclose)
        asyncio.run(ending.close_clients(models))
    assert "model m raised while it was stopped: RuntimeError in unload" in caplog.text
    assert "a client raised while it was closed: ConnectionError in aclose" in caplog.text
    assert SECRET not in caplog.text


async def leak_everywhere(server):
    """Secrets in the path, the query, the headers and the body, while serving and past the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
    body = b'{"instances": [30], "token": "%s"}' % SECRET.encode()
    writer.write(
        b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"
        b"Cookie: session=%s\r\nContent-Length: %d\r\n\r\n"
        % (SECRET.encode(), SECRET.encode(), len(body))
        + body
    )
    await server.begun()
    server.signal(signal.SIGTERM)
    await server.noticed()
    probe = await get(server.http_port, f"/v1/models/{SECRET}")
    answer = await reader.read()
    writer.close()
    return probe, answer


def test_a_server_that_drains_and_refuses_says_nothing_secret(tmp_path):
    async def scenario():
        flags = ("--token", SECRET)
        environment = {"MODEL_TOKEN": SECRET, "PREDICTOR_URL": f"http://u:{SECRET}@127.0.0.1"}
        with Server(
            tmp_path, flags=flags, environment=environment, lame_duck_s=3.0, drain_s=0.5
        ) as server:
            await server.up()
            probe, answer = await leak_everywhere(server)
            return probe, answer, await server.ended(), server.log

    (status, _, content), answer, ended, log = asyncio.run(scenario())
    assert (status, ended) == (503, 0)
    assert answer.startswith(b"HTTP/1.1 503")
    assert SECRET.encode() not in content + answer
    assert "refused 1 requests" in log
    # uvicorn's access log shows the path that the client itself chose; every other line is checked.
    lines = [line for line in log.splitlines() if "uvicorn.access" not in line]
    assert not [line for line in lines if SECRET in line]
