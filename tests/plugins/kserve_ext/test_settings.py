"""Settings by argument, flag, file and environment; patches that come and go; the commands."""

import json
import subprocess
import sys
import textwrap
from dataclasses import asdict

import pytest

from kserve_ext.settings import NAMES, KServeSettings, flag_of, load
from mlops_ext.errors import SettingsError


def python(folder, code, *arguments, **environment):
    import os

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_argument_then_flag_then_environment_then_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def value(arguments=None, argv=()):
        resolved = load(arguments, argv)
        return resolved.value.lame_duck_s, resolved.sources["lame_duck_s"]

    assert value() == (5.0, "default")
    (tmp_path / "pyproject.toml").write_text("[tool.mlops-ext.kserve]\nlame_duck_s = 2\n")
    assert value() == (2.0, str(tmp_path / "pyproject.toml"))
    monkeypatch.setenv("MLOPS_EXT_KSERVE_LAME_DUCK_S", "1")
    assert value() == (1.0, "MLOPS_EXT_KSERVE_LAME_DUCK_S")
    assert value(argv=["--http_port", "80", "--lame_duck_s", "3"]) == (3.0, "flag")
    assert value(argv=["--lame-duck-s=3"]) == (3.0, "flag")
    assert value({"lame_duck_s": 4.0}, ["--lame_duck_s", "3"]) == (4.0, "argument")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["argument", "flag", "file", "environment"])
def test_every_setting_can_be_given_every_way(tmp_path, monkeypatch, name, way):
    monkeypatch.chdir(tmp_path)
    given = "end" if name == "second_signal" else 7.5
    if way == "file":
        text = f"[tool.mlops-ext.kserve]\n{name} = {given!r}\n"
        (tmp_path / "pyproject.toml").write_text(text)
    if way == "environment":
        monkeypatch.setenv(f"MLOPS_EXT_KSERVE_{name.upper()}", str(given))
    arguments = {name: given} if way == "argument" else None
    argv = [flag_of(name), str(given)] if way == "flag" else []
    assert getattr(load(arguments, argv).value, name) == given


def test_a_user_s_own_flags_stay_the_user_s(tmp_path):
    code = """
    from kserve_ext import GracefulModelServer
    from kserve_ext.settings import load
    from kserve import model_server
    import argparse
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    for name in ("stop_s", "quiet_s", "keep_alive_s"):
        parser.add_argument(f"--{name}", type=float)
    print(parser.parse_args().stop_s, load().value.stop_s)
    """
    assert python(tmp_path, code, "--stop_s", "99") == ["99.0", "8.0"]


def test_a_misspelt_variable_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLOPS_EXT_KSERVE_LAMEDUCK_S", "3")
    with pytest.warns(RuntimeWarning, match="lame_duck_s"):
        load(argv=[])


def test_a_wrong_value_is_found_before_a_model_loads(tmp_path):
    code = """
    import os
    os.environ["MLOPS_EXT_KSERVE_DRAIN_S"] = "soon"
    from mlops_ext.errors import SettingsError
    try:
        from kserve_ext import GracefulModelServer
    except SettingsError as error:
        print("DRAIN_S" in str(error))
    """
    assert python(tmp_path, code) == ["True"]


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon"])
def test_what_is_not_a_time_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLOPS_EXT_KSERVE_DRAIN_S", text)
    with pytest.raises(SettingsError, match=r"(?i)drain_s"):
        load(argv=[])


def test_a_flag_that_is_not_a_number_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="lame_duck_s"):
        load(argv=["--lame_duck_s", "soon"])


def test_the_defaults_fit_into_what_kubernetes_gives():
    assert KServeSettings().limits.total_s < 30


def test_importing_the_extension_imports_no_framework(tmp_path):
    code = "import kserve_ext, kserve_ext.plugin, kserve_ext.cli, sys; print(sorted({'kserve', 'grpc', 'uvicorn', 'prometheus_client'} & set(sys.modules)))"
    assert python(tmp_path, code) == ["[]"]


@pytest.mark.integration
def test_patches_come_and_go_without_a_trace(tmp_path):
    code = """
    from kserve import ModelServer, model_server
    import mlops_ext
    before = (dict(vars(ModelServer)), model_server.parser)
    with mlops_ext.apply("kserve"):
        during = (dict(vars(ModelServer)), model_server.parser)
        with mlops_ext.apply("kserve"):  # twice is once
            assert vars(ModelServer)["start"] is during[0]["start"]
    after = (dict(vars(ModelServer)), model_server.parser)
    print(all(during[0][name] is not before[0].get(name) for name in ("start", "stop", "shutdown")))
    print(during[1] is not before[1])
    print(after[1] is before[1] and after[0].keys() == before[0].keys())
    print(all(after[0][name] is before[0][name] for name in before[0]))
    """
    assert python(tmp_path, code) == ["True"] * 4


def test_an_unknown_release_is_left_alone_and_told(tmp_path):
    code = """
    import importlib.metadata, warnings
    from kserve_ext import GracefulModelServer
    from kserve_ext import run
    from kserve import ModelServer
    run.installed_version = lambda _: "0.22.0"
    called = []
    ModelServer.start = lambda self, models: called.append(models)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        GracefulModelServer().start([1])
    print(called == [[1]], len(caught), "0.22.0" in str(caught[0].message))
    """
    assert python(tmp_path, code) == ["True", "1", "True"]


def test_a_place_that_somebody_else_has_changed_is_left_alone_and_told(tmp_path):
    code = """
    import warnings
    from kserve_ext import GracefulModelServer
    from kserve import ModelServer
    import uvicorn
    async def theirs(self, sockets=None): pass
    uvicorn.Server.serve = theirs
    called = []
    ModelServer.start = lambda self, models: called.append(models)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        GracefulModelServer().start([1])
    told = [str(w.message) for w in caught if w.category is RuntimeWarning]
    print(called == [[1]], len(told), "uvicorn.server:Server.serve" in told[0])
    print(uvicorn.Server.serve is theirs)
    """
    assert python(tmp_path, code) == ["True", "1", "True", "True"]


@pytest.mark.integration
def test_nothing_stays_changed_after_a_server_s_end(tmp_path):
    code = """
    from kserve import Model, ModelServer
    from kserve.protocol.grpc import server as grpc_server
    from kserve_ext import GracefulModelServer
    import socket, threading, time, uvicorn
    def now():
        return dict(vars(ModelServer)), vars(uvicorn.Server)["serve"], grpc_server.aio
    before = now()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    model = Model("m")
    model.ready = True
    server = GracefulModelServer(http_port=port, enable_grpc=False, lame_duck_s=0)
    def end():
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.05)
        while not server.shutdown(wait=False):
            during.append(vars(uvicorn.Server)["serve"])
            time.sleep(0.05)
    during = []
    thread = threading.Thread(target=end)
    thread.start()
    server.start([model])
    thread.join()
    print(now() == before, any(each is not before[1] for each in during))
    """
    assert python(tmp_path, code)[-2:] == ["True", "True"]


@pytest.mark.integration
def test_the_parser_knows_the_flags(tmp_path):
    code = """
    from kserve_ext import GracefulModelServer
    from kserve import model_server
    import argparse
    args = argparse.ArgumentParser(parents=[model_server.parser]).parse_args()
    print(args.lame_duck_s, args.http_port)
    """
    assert python(tmp_path, code, "--lame_duck_s", "3", "--http_port", "81") == ["3.0", "81"]


def command(*arguments, folder):
    from pathlib import Path

    program = Path(sys.executable).with_name("mlops-ext")
    return subprocess.run(
        [program, "kserve", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_settings_are_shown_with_their_sources(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.mlops-ext.kserve]\ndrain_s = 60\n")
    document = json.loads(command("settings", "--json", folder=tmp_path).stdout)
    assert document["values"] == {**asdict(KServeSettings()), "drain_s": 60.0}
    assert document["sources"]["drain_s"] == str(tmp_path / "pyproject.toml")


def test_a_bad_value_is_one_line(tmp_path):
    done = command("manifest", "--drain-s", "-3", folder=tmp_path)
    assert done.returncode == 1
    assert "drain_s" in done.stderr
    assert "Traceback" not in done.stderr
