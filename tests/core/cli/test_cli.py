"""The command line: quick, lazy, and transparent to what it runs."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_ext.cli.run import _isolating_option, child_environment
from mlops_ext.extensions import activation

MLOPS_EXT = Path(sys.executable).with_name("mlops-ext")
BOOTSTRAP = Path(activation.__file__).with_name("bootstrap")
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
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "runs without patches" in done.stderr
    assert "did you mean autopatch" in done.stderr
    assert done.stderr.count("\n") == 1
    done = run("list", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_an_interpreter_without_mlops_ext_says_so_in_one_line():
    base = sys._base_executable
    probe = [base, "-c", "import mlops_ext"]
    if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        pytest.skip("the base interpreter has mlops-ext installed")
    done = run("run", "--", base, "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert done.stderr.startswith(f"mlops-ext: no patches in {base}")
    assert done.stderr.count("\n") == 1


def test_an_interpreter_whose_standard_error_is_closed_runs_all_the_same(tmp_path):
    """One without mlops-ext has something to say, and nowhere to say it."""
    folder = tmp_path / "bootstrap"
    shutil.copytree(BOOTSTRAP, folder)
    code = f"{sys.executable} -S -c 'import sys; sys.path.insert(0, sys.argv[1]); import sitecustomize; print(7)' {folder} 2>&-"
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        ["sh", "-c", code], capture_output=True, text=True, check=False, env=environ
    )
    assert (done.returncode, done.stdout) == (0, "7\n")


@pytest.mark.parametrize("base", ["Exception", "BaseException"])
def test_the_users_own_runs_even_if_arming_fails(tmp_path, base):
    (tmp_path / "mlops_ext").mkdir()
    (tmp_path / "mlops_ext" / "__init__.py").write_text(f"class B({base}): pass\nraise B('boom')")
    (tmp_path / "sitecustomize.py").write_text("print('mine')")
    environ = {**os.environ, "PYTHONPATH": f"{BOOTSTRAP}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", "print('ran')"],
        capture_output=True, text=True, check=False, env=environ,
    )  # fmt: skip
    assert done.stdout == "mine\nran\n"
    assert done.stderr == f"mlops-ext: no patches in {sys.executable}: boom\n"


def test_run_of_another_installation_inside_run_keeps_the_users_own(tmp_path):
    """Two folders with a bootstrap, as two environments have; each finds the one behind it."""
    other, mine = tmp_path / "other", tmp_path / "mine"
    shutil.copytree(BOOTSTRAP, other)
    mine.mkdir()
    (mine / "sitecustomize.py").write_text("print('mine')")
    for places in ((BOOTSTRAP, other, mine), (other, BOOTSTRAP, mine)):
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
        done = subprocess.run(
            [sys.executable, "-c", "import sitecustomize; print(sitecustomize.__file__)"],
            capture_output=True, text=True, check=False, env=environ,
        )  # fmt: skip
        assert done.stdout == f"mine\n{mine / 'sitecustomize.py'}\n", done.stderr
        assert done.stderr == ""


LAUNCHER = """#!{python}
import os, subprocess, sys
os.environ["PYTHONPATH"] = os.pathsep.join([sys.argv[1], os.environ.get("PYTHONPATH", "")])
if sys.argv[2] == "exec":
    os.execl(sys.argv[3], *sys.argv[3:])
environ = dict(os.environ) if sys.argv[2] == "env" else None
sys.exit(subprocess.run(sys.argv[3:], env=environ).returncode)
"""


@pytest.mark.skipif(os.name != "posix", reason="scripts with a shebang")
@pytest.mark.parametrize("how", ["exec", "popen", "env"])
def test_a_launcher_that_puts_its_own_sitecustomize_first_does_not_hide_ours(tmp_path, how):
    """As those of tracing agents do, whose sitecustomize does not run the next."""
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "sitecustomize.py").write_text("print('agent')")
    launcher = tmp_path / "launcher"
    launcher.write_text(LAUNCHER.format(python=sys.executable))
    launcher.chmod(0o755)
    code = "import sys; print('mlops_ext.extensions.finder' in sys.modules)"
    command = [str(launcher), str(tmp_path / "agent"), how, sys.executable, "-c", code]
    done = run("run", "--patch", "joblib", "--", *command)
    if how == "env":  # the mapping is the launcher's own: it is told, not changed
        assert done.stdout == "agent\nFalse\n", done.stderr
        assert "Put mlops-ext run behind the launcher" in done.stderr
    else:
        assert done.stdout == "agent\nTrue\n", done.stderr
        assert done.stderr == ""


@pytest.mark.skipif(os.name != "posix", reason="scripts with a shebang")
def test_run_of_another_installation_below_run_hides_nothing(tmp_path):
    """Its bootstrap goes first and runs ours; nobody is told that the program is not patched."""
    other = tmp_path / "mlops_ext" / "extensions" / "bootstrap"
    shutil.copytree(BOOTSTRAP, other)
    launcher = tmp_path / "launcher"
    launcher.write_text(LAUNCHER.format(python=sys.executable))
    launcher.chmod(0o755)
    code = "import joblib.memory, sys; print('joblib_ext.patches' in sys.modules)"
    command = [str(launcher), str(other), "env", sys.executable, "-c", code]
    done = run("run", "--patch", "joblib", "--", *command)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.skipif(os.name != "posix", reason="scripts with a shebang")
def test_a_launcher_whose_standard_error_is_closed_starts_its_program_all_the_same(tmp_path):
    """What is to be told of it has nowhere to go, and the hook that tells runs inside the start."""
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "sitecustomize.py").touch()
    launcher = tmp_path / "launcher"
    launcher.write_text(LAUNCHER.format(python=sys.executable))
    launcher.chmod(0o755)
    words = [MLOPS_EXT, "run", "--patch", "joblib", "--", launcher, tmp_path / "agent", "env"]
    words += [sys.executable, "-c", "print(7)"]
    command = shlex.join(map(str, words)) + " 2>&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "7\n")


def test_an_agent_that_puts_itself_first_for_the_children_does_not_hide_ours_from_them(tmp_path):
    """As OpenTelemetry's does at the end of its sitecustomize, in each interpreter below it."""
    agent = tmp_path / "agent"
    agent.mkdir()
    (agent / "sitecustomize.py").write_text(
        "import os\n"
        "places = [p for p in os.environ['PYTHONPATH'].split(os.pathsep) if p != os.environ['AGENT']]\n"
        "os.environ['PYTHONPATH'] = os.pathsep.join([os.environ['AGENT'], *places])\n"
        "print('agent')\n"
    )
    code = "import sys; print('mlops_ext.extensions.finder' in sys.modules, flush=True)"
    environ = {**os.environ, "PYTHONPATH": str(agent), "AGENT": str(agent)}
    nested = (
        f"import subprocess, sys; {code}; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    )
    program = [sys.executable, "-c", nested, nested, code]
    done = run("run", "--patch", "joblib", "--", *program, env=environ)
    seen = ["agent"] + ["agent", "True"] * 3  # in mlops-ext itself, then in three programs
    assert done.stdout.split() == seen, done.stderr


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["python3", "-I", "x.py"], "-I"),
        (["python", "-uE", "-m", "x"], "-uE"),
        (["/usr/bin/python3.11", "-X", "dev", "-S"], None),  # what follows -X is not looked at
        (["python", "-Werror::ImportWarning", "-S"], "-S"),
        (["python", "-m", "IES", "-I"], None),
        (["python", "x.py", "-I"], None),
        (["python", "-c", "pass", "-I"], None),
        (["pypy3", "-s", "-P", "-E"], "-E"),
        (["python-config", "-I"], None),
        (["grep", "-I"], None),
    ],
)
def test_an_option_with_which_python_ignores_us_is_found(command, option):
    assert _isolating_option("/no/such/file", tuple(command)) == option


@pytest.mark.skipif(os.name != "posix", reason="scripts with a shebang")
def test_run_says_that_a_python_ignores_it_and_runs_it_all_the_same(tmp_path):
    script = tmp_path / "script"
    script.write_text(f"#!{sys.executable} -E\nprint('ran')\n")
    script.chmod(0o755)
    for command, option in (
        ((str(script),), "-E"),
        ((sys.executable, "-I", "-c", "print('ran')"), "-I"),
    ):
        done = run("run", "--patch", "joblib", "--", *command)
        assert (done.returncode, done.stdout) == (0, "ran\n")
        assert done.stderr == f"mlops-ext: {command[0]} runs without patches, because of {option}\n"


def test_python_m_is_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "mlops_ext", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("mlops-ext, version ")


def test_a_required_framework_whose_fixes_are_not_active_is_a_problem():
    def required(document, name):
        return [f for f in document["findings"] if f["check"] == f"require.{name}"]

    # Without the extensions whose checks look at the machine: what they find is another matter.
    environ = {**os.environ, "MLOPS_EXT_DISABLE": "zenml,clearml"}
    for prefix, status in (((), 1), (("run", "--patch", "joblib", "--", MLOPS_EXT), 0)):
        done = run(*prefix, "doctor", "--json", "--require", "joblib", env=environ)
        (finding,) = required(json.loads(done.stdout), "joblib")
        assert (done.returncode, finding["severity"]) == (status, "ok" if prefix else "problem")
    done = run("doctor", "--require", " joblib,kserve", "--require", "zenml")
    assert done.returncode == 1
    assert done.stdout.count("require.") == 3
    assert "mlops-ext run --patch joblib -- mlops-ext doctor --require joblib" in " ".join(
        done.stdout.split()
    )
    done = run("doctor", "--require", "jobblib")
    assert (done.returncode, "did you mean 'joblib'?" in done.stderr) == (1, True)


def test_doctor_counts_the_fixes_that_are_needed_and_not_active():
    environ = {**os.environ, "MLOPS_EXT_DISABLE": "zenml,clearml"}
    assert "fixes are needed and not active" in run("doctor", env=environ).stdout.splitlines()[-1]
    done = run("run", "--", MLOPS_EXT, "doctor", env=environ)
    assert done.stdout.splitlines()[-1] == "doctor: nothing is wrong", done.stderr


def test_a_single_fix_can_be_switched_off_by_its_id():
    code = (
        "import joblib.memory\nfrom mlops_ext.extensions.discovery import extensions\n"
        "from mlops_ext.patching import PatchSet\n"
        "for r in PatchSet(extensions().patches('joblib')).status(): print(r.patch.id, r.outcome.name)"
    )
    environ = {**os.environ, "MLOPS_EXT_DISABLE": "joblib.arguments,zenml,clearml"}
    program = ["run", "--patch", "joblib", "--", sys.executable, "-c", code]
    found = dict(line.split() for line in run(*program, env=environ).stdout.splitlines())
    assert found.pop("joblib.arguments") == "DISABLED"
    assert set(found.values()) == {"APPLIED"}
    done = run(
        "run",
        "--patch",
        "joblib",
        "--",
        MLOPS_EXT,
        "doctor",
        "--json",
        "--require",
        "joblib",
        env=environ,
    )
    assert done.returncode == 0, "it is off on purpose"
    document = json.loads(done.stdout)
    (fix,) = [fix for fix in document["fixes"] if fix["disabled"]]
    assert (fix["id"], fix["why"]) == ("joblib.arguments", "switched off by MLOPS_EXT_DISABLE")
    environ["MLOPS_EXT_DISABLE"] = "joblib.argumens"
    advice = [
        f["advice"] for f in json.loads(run("doctor", "--json", env=environ).stdout)["findings"]
    ]
    assert "did you mean joblib.arguments?" in advice


def test_a_disabled_extension_has_no_demo():
    environ = {**os.environ, "MLOPS_EXT_DISABLE": "joblib"}
    done = run("demo", "--only", "joblib", env=environ)
    assert (done.returncode, "no demo is named 'joblib'" in done.stderr) == (1, True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_commands_and_options(shell):
    environ = {**os.environ, "_MLOPS_EXT_COMPLETE": f"{shell}_source"}
    assert "_MLOPS_EXT_COMPLETE" in run(env=environ).stdout
    words = {"COMP_WORDS": "mlops-ext doctor --r", "COMP_CWORD": "2"}
    if shell == "fish":
        words["COMP_CWORD"] = "--r"
    done = run(env={**os.environ, "_MLOPS_EXT_COMPLETE": f"{shell}_complete", **words})
    assert "--require" in done.stdout


def test_an_interpreter_below_run_loads_nothing_but_a_few_modules_of_ours():
    code = "import sys; print(*sys.modules)"
    bare = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    below = run("run", "--", sys.executable, "-c", code).stdout.split()
    more = {name for name in set(below) - set(bare) if not name.startswith("mlops_ext")}
    assert more <= {"sitecustomize"}
    assert len(set(below) - set(bare)) < 12


@pytest.mark.skipif(os.name != "posix", reason="scripts of a POSIX shell")
def test_run_runs_a_script_without_a_shebang_as_a_shell_does(tmp_path):
    script = tmp_path / "script"
    script.write_text('echo "$1"; exit 3\n')
    script.chmod(0o755)
    done = run("run", "--", str(script), "two words")
    assert (done.returncode, done.stdout) == (3, "two words\n")


def test_a_disabled_extension_has_no_commands():
    environ = {**os.environ, "MLOPS_EXT_DISABLE": "joblib"}
    assert "  joblib " not in run("--help", env=environ).stdout
    assert "  joblib " in run("--help").stdout
    assert run("joblib", "--help", env=environ).returncode == 2


def test_doctor_names_what_is_misspelt_and_what_is_not_read(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.mlops_ext]\nautopatch = ['joblib']\n")
    environ = {
        **os.environ,
        "MLOPS_EXT_DISABLE": "jobllib",
        "MLOPS_EXT_JOBLIB_SIGN_KEI": "hidden",
        "MLOPS_EXT_AUTOPACH": "kserve",
    }
    done = run("doctor", "--json", cwd=tmp_path, env=environ)
    found = {(f["message"], f["advice"]) for f in json.loads(done.stdout)["findings"]}
    assert (
        "disable lists 'jobllib', and no extension or fix has that name",
        "did you mean joblib?",
    ) in found
    file = tmp_path / "pyproject.toml"
    assert (f"[tool.mlops_ext] in {file} is not read", "did you mean [tool.mlops-ext]?") in found
    assert (
        "no setting is read from MLOPS_EXT_AUTOPACH",
        "did you mean MLOPS_EXT_AUTOPATCH?",
    ) in found
    assert any("MLOPS_EXT_JOBLIB_SIGN_KEI" in message for message, _ in found)
    assert "hidden" not in done.stdout
    if os.name == "posix":
        file.chmod(0o666)
        done = run("doctor", "--json", cwd=tmp_path)
        assert f"{file} is not read: another user could have written it" in done.stdout
