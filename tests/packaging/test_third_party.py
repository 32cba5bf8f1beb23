"""A third party's extension works through entry points alone; a broken one harms nobody."""

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def environment(make_environment):
    """An environment with a good and a broken third party, and no framework of ours."""
    return make_environment(HERE / "foreign", HERE / "broken")


@pytest.fixture(scope="module")
def alone(make_environment):
    """An environment with the wheel alone."""
    return make_environment()


PRINT_ANSWER = "import acme_fw; print(acme_fw.answer())"


def test_its_framework_is_listed(environment):
    done = environment.run("mlops-ext", "list", COLUMNS="200")
    assert done.returncode == 0
    assert "acme" in done.stdout
    assert "right answers" in done.stdout


def test_doctor_shows_the_fixes_of_what_is_installed(environment, alone):
    shown = environment.run("mlops-ext", "doctor", COLUMNS="200").stdout
    assert "acme.answer" in shown
    assert "kserve.start" not in shown
    fixes = environment.doctor()[1]["fixes"]
    assert {"acme.answer", "kserve.start"} <= {fix["id"] for fix in fixes}
    assert "no framework was found" in alone.run("mlops-ext", "doctor").stdout


def test_its_patch_is_applied_under_run_and_in_children(environment):
    assert environment.run("python", "-c", PRINT_ANSWER).stdout == "wrong\n"
    script = (
        "import subprocess, sys; "
        f"subprocess.run([sys.executable, '-c', {PRINT_ANSWER!r}], check=True)"
    )
    for code in (PRINT_ANSWER, script):
        done = environment.run("mlops-ext", "run", "--patch", "acme", "--", "python", "-c", code)
        assert (done.stdout, done.stderr) == ("right, not wrong\n", "")


def test_its_patch_is_applied_in_code_and_reverted(environment):
    code = f"""
import mlops_ext, acme_ext
with mlops_ext.apply("acme"):
    {PRINT_ANSWER}
{PRINT_ANSWER}
print(acme_ext.REPORTS)
"""
    done = environment.run("python", "-c", code)
    assert done.stdout.splitlines() == [
        "right, not wrong",
        "wrong",
        "[('acme.answer', 'applied'), ('acme.answer', 'reverted')]",
    ], done.stderr


def test_its_memory_policy_is_found_beside_the_built_in_ones(environment):
    code = "from mlops_ext.extensions.discovery import extensions; print(sorted(extensions().memory_policies()))"
    assert (
        environment.run("python", "-c", code).stdout
        == "['double', 'fixed', 'generous', 'history']\n"
    )


def test_its_commands_are_found(environment):
    assert environment.run("mlops-ext", "acme", "hello").stdout == "hello from acme\n"
    assert "acme" in environment.run("mlops-ext", "--help").stdout


def test_broken_extensions_show_in_doctor_and_harm_nobody(environment):
    status, document = environment.doctor()
    assert status == 1
    problems = {
        f["check"]: f["message"] for f in document["findings"] if f["severity"] == "problem"
    }
    assert set(problems) == {
        "extension.no-import",
        "extension.bad-range",
        "extension.raising-hook",
        "extension.unknown-hook",
        "extension.wrong-type",
    }
    assert "a_module_that_nobody_has" in problems["extension.no-import"]
    assert "'newest'" in problems["extension.bad-range"]
    assert "the hook failed" in problems["extension.raising-hook"]
    assert "mlops_ext_framework" in problems["extension.unknown-hook"]
    assert all("(from broken-ext)" in text for text in problems.values())
    assert [fix["id"] for fix in document["fixes"] if fix["needed"]] == ["acme.answer"]


def test_switched_off_extensions_are_not_loaded(environment):
    names = "no-import,bad-range,raising-hook,unknown-hook,wrong-type"
    status, document = environment.doctor(MLOPS_EXT_DISABLE=names)
    assert status == 0
    assert {f["severity"] for f in document["findings"]} == {"note", "ok"}


def test_commands_that_cannot_be_loaded_are_one_clear_line(environment):
    done = environment.run("mlops-ext", "broken", "x")
    assert done.returncode == 1
    assert done.stderr == (
        "Error: the commands of broken cannot be loaded: ModuleNotFoundError: "
        "No module named 'a_module_that_nobody_has'\n"
    )


def test_an_unsupported_version_changes_nothing_and_says_so(make_environment, tmp_path):
    for source in (HERE / "foreign").iterdir():
        text = source.read_text().replace('version = "1.2.0"', 'version = "2.0.0"')
        (tmp_path / source.name).write_text(text)
    environment = make_environment(tmp_path)
    done = environment.run("python", "-c", "import mlops_ext; mlops_ext.apply('acme')")
    assert "UnsupportedVersionError: acme-ext 2.0.0 is not supported" in done.stderr
    done = environment.run("mlops-ext", "run", "--patch", "acme", "python", "-c", PRINT_ANSWER)
    assert done.stdout == "wrong\n"
    assert "is used without its patches" in done.stderr
    status, document = environment.doctor()
    assert status == 1
    assert any(f["check"] == "acme.version" for f in document["findings"])


def test_the_wheel_alone_works_without_any_framework(alone):
    status, document = alone.doctor()
    assert status == 0, document["findings"]
    assert [s["version"] for s in document["frameworks"]] == [None] * 4
    assert {fix["needed"] for fix in document["fixes"]} <= {None}
    done = alone.run("mlops-ext", "demo", COLUMNS="200")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("zenml", "clearml", "kserve", "joblib"):
        assert f"pip install 'mlops-ext[{name}]'" in done.stdout
    assert "nothing to show" in done.stdout, "it must not claim success"
    done = alone.run("mlops-ext", "run", "--patch", "zenml", "--", "python", "-c", "print('ran')")
    assert done.stdout == "ran\n"
    assert done.stderr == (
        f"mlops-ext: zenml is not installed in {alone.folder}: --patch zenml changes nothing there\n"
    )
    done = alone.run("mlops-ext", "doctor", "--require", "zenml")
    assert (done.returncode, "zenml is not installed" in done.stdout) == (1, True)


@pytest.mark.parametrize(
    "command", ["clearml status", "clearml check script.py", "joblib import . .", "zenml check"]
)
def test_a_command_without_its_framework_says_what_to_install(alone, command):
    done = alone.run("mlops-ext", *command.split())
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.endswith(f" is not installed; run: pip install 'mlops-ext[{command.split()[0]}]'")


def test_the_base_stays_small(alone):
    code = (
        "import importlib.metadata as m;"
        "print(*sorted({d.name.lower().replace('_', '-') for d in m.distributions()}))"
    )
    names = set(alone.run("python", "-c", code).stdout.split())
    allowed = {
        "mlops-ext", "pluggy", "packaging", "click", "rich", "typing-extensions",
        "pygments", "markdown-it-py", "mdurl", "tomli", "colorama",
    }  # fmt: skip
    assert names <= allowed


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["zenml", "clearml", "kserve", "joblib", "history"])
def test_each_extra_installs_and_works_alone(make_environment, extra):
    environment = make_environment(extras=f"[{extra}]")
    status, document = environment.doctor()
    assert status == 0, document["findings"]
    if extra != "history":
        versions = {s["name"]: s["version"] for s in document["frameworks"]}
        assert versions[extra] is not None
        done = environment.run("mlops-ext", extra, "--help")
        assert done.returncode == 0, done.stderr
