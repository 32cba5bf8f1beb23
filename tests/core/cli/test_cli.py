"""The command line: quick, lazy, and transparent to what it runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_ext.cli.run import child_environment

MLOPS_EXT = Path(sys.executable).with_name("mlops-ext")
FRAMEWORKS = ("zenml", "clearml", "kserve", "joblib", "kubernetes", "numpy", "rich", "pluggy")


def run(*arguments, **options):
    return subprocess.run(
        [MLOPS_EXT, *arguments], capture_output=True, text=True, check=False, timeout=120, **options
    )


@pytest.mark.parametrize(
    "code",
    [
        "import mlops_ext",
        "from mlops_ext.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_start_up_imports_nothing_heavy(code):
    check = f"{code}\nimport sys; print('HEAVY', sorted(set({FRAMEWORKS!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_extensions_are_listed_without_importing_a_framework():
    code = (
        "import sys\nfrom mlops_ext.extensions.discovery import extensions\nfound = extensions()\n"
        "names = [s.framework.name for s in found.frameworks()]; found.patches()\n"
        "found.memory_policies(); found.doctor_checks()\n"
        "print(names, sorted({'zenml','clearml','kserve','joblib','kubernetes'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['clearml', 'joblib', 'kserve', 'zenml'] []\n"


def test_an_unknown_command_suggests_the_nearest():
    done = run("docter")
    assert done.returncode == 2
    assert "did you mean 'doctor'?" in done.stderr


def test_doctor_says_what_an_import_will_activate():
    pytest.importorskip("kserve")
    for prefix, armed in (((), False), (("run", "--patch", "kserve", "--", MLOPS_EXT), True)):
        done = run(*prefix, "doctor", "--json")
        fixes = [one for one in json.loads(done.stdout)["fixes"] if one["framework"] == "kserve"]
        assert {(one["active"], one["armed"]) for one in fixes if one["needed"]} == {(False, armed)}


def test_doctor_names_settings_that_nobody_reads(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        "[tool.mlops-ext.kserv]\nlame_duck_s = 1\n[tool.mlops-ext.kserve]\ndrain_s = 1\n"
        "[tool.mlops-ext.memory]\ngrowth = 3\n"
    )
    environment = {**os.environ, "MLOPS_EXT_AUTOPATCH": "kserve,jobblib,other=json"}
    done = run("doctor", "--json", cwd=tmp_path, env=environment)
    noted = {
        (one["check"], one["advice"])
        for one in json.loads(done.stdout)["findings"]
        if one["check"].startswith("settings.")
    }
    assert noted == {
        ("settings.section", "did you mean kserve?"),
        ("settings.autopatch", "did you mean joblib?"),
        ("settings.autopatch", ""),
    }


def test_an_unknown_framework_suggests_the_nearest():
    done = run("run", "--patch", "kserv", "--", "true")
    assert done.returncode == 1
    assert done.stderr == "mlops-ext: no framework is named 'kserv'; did you mean 'kserve'?\n"


def test_run_needs_a_command_that_exists():
    assert run("run").returncode == 2
    done = run("run", "--", "no-such-command-here")
    assert done.returncode == 127
    assert done.stderr == "mlops-ext: command not found: no-such-command-here\n"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_run_says_why_a_file_that_is_there_cannot_be_run(tmp_path):
    (tmp_path / "script").touch(0o644)
    (tmp_path / "other").write_text("#!/no/such/interpreter\n")
    (tmp_path / "other").chmod(0o755)
    for command, why in (
        (tmp_path / "script", "Permission denied"),
        (tmp_path, "Permission denied"),
        (tmp_path / "other", "No such file or directory"),
    ):
        done = run("run", "--", str(command))
        assert (done.returncode, done.stderr) == (126, f"mlops-ext: cannot run {command}: {why}\n")
    assert run("run", "--", str(tmp_path / "missing")).returncode == 127


def test_options_after_the_command_are_the_command_s():
    program = [sys.executable, "-c", "import sys; print(sys.argv[1:])"]
    done = run("run", *program, "--patch", "x", "--help", "--unknown")
    assert done.stdout == "['--patch', 'x', '--help', '--unknown']\n", done.stderr


def test_a_misspelt_option_before_the_command_suggests_the_nearest():
    done = run("run", "--pathc", "joblib", "--", "true")
    assert done.returncode == 2
    assert "--patch" in done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="there is no SIGPIPE")
def test_a_command_dies_of_a_closed_pipe_as_it_does_on_its_own():
    assert run("run", "--", "sh", "-c", "kill -PIPE $$").returncode == -signal.SIGPIPE
    assert run("run", "--", "sh", "-c", "kill -XFSZ $$").returncode == -signal.SIGXFSZ


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        (None, []),
        ("", []),
        ("a", ["a"]),
        (f"a{os.pathsep}", ["a", ""]),
        (f"{os.pathsep}b", ["", "b"]),
    ],
)
def test_run_keeps_the_users_own_path_of_modules(monkeypatch, path, kept):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path)
    bootstrap, *others = child_environment([])["PYTHONPATH"].split(os.pathsep)
    assert Path(bootstrap, "sitecustomize.py").is_file()
    assert others == kept


def test_run_passes_the_exit_status_through():
    assert run("run", "--", sys.executable, "-c", "raise SystemExit(7)").returncode == 7


@pytest.mark.skipif(os.name != "posix", reason="signals to a process are POSIX")
def test_run_becomes_the_command_so_signals_reach_it():
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))\n"
        "print('ready', flush=True)\nsignal.pause()"
    )
    with subprocess.Popen(
        [MLOPS_EXT, "run", "--", sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 42


def test_run_keeps_the_users_own_sitecustomize(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.MINE = 'ran'")
    code = "import sitecustomize; print(MINE, sitecustomize.__file__)"
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = run("run", "--", sys.executable, "-c", code, env=environ)
    assert done.stdout == f"ran {tmp_path / 'sitecustomize.py'}\n", done.stderr


def test_run_inside_run_arms_each_framework_once():
    code = "import os; print(os.environ['MLOPS_EXT_AUTOPATCH'], os.environ['PYTHONPATH'].count('bootstrap'))"
    inner = [str(MLOPS_EXT), "run", "--patch", "joblib", "--", sys.executable, "-c", code]
    environ = {k: v for k, v in os.environ.items() if k != "MLOPS_EXT_AUTOPATCH"}
    done = run("run", "--patch", "joblib", "--patch", "kserve", "--", *inner, env=environ)
    assert done.stdout == "joblib,kserve 1\n", done.stderr


def test_a_bad_setting_is_one_clear_line_and_the_command_still_runs(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.mlops-ext]\nautopatsch = 'x'\n")
    done = run("run", "--patch", "joblib", "--", sys.executable, "-c", "print('ran')", cwd=tmp_path)
    assert done.returncode == 1
    assert "did you mean autopatch" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interpreter_without_mlops_ext_says_so_in_one_line():
    base = sys._base_executable
    probe = [base, "-c", "import mlops_ext"]
    if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        pytest.skip("the base interpreter has mlops-ext installed")
    done = run("run", "--", base, "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert done.stderr.startswith(f"mlops-ext: no patches in {base}")
    assert done.stderr.count("\n") == 1
