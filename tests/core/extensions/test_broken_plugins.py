"""Third parties that are broken in ways an installer would not let pass: none harms the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_ext.errors import PluginError, SettingsError

MLOPS_EXT = Path(sys.executable).with_name("mlops-ext")
HOOK = "from mlops_ext import hookimpl\n@hookimpl\ndef {}():\n    {}\n"
FRAMEWORK = (
    "from mlops_ext.hookspecs import Framework; return [Framework(name='odd', distribution={!r},"
    " supported='>=1', extension='odd', summary={!r})]"
)


class Site:
    """A folder on PYTHONPATH that holds distributions, as unpacked by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        name,
        points="",
        module="",
        metadata="Metadata-Version: 2.1\nName: {}\nVersion: {}\n",
        version="1.0",
    ):
        info = self.folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text(points)
        if metadata is not None:
            (info / "METADATA").write_text(metadata.format(name, version))
        (self.folder / f"{name}_module.py").write_text(module)

    def run(self, *arguments, **variables):
        return subprocess.run(
            [MLOPS_EXT, *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder), "COLUMNS": "250", **variables},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip


@pytest.fixture
def site(tmp_path):
    """An empty site."""
    return Site(tmp_path)


def test_a_module_that_ends_the_process_is_one_problem(site):
    site.add("exiter", "[mlops_ext]\nexiter = exiter_module\n", "raise SystemExit('bye')")
    done = site.run("list")
    assert done.returncode == 0
    assert "zenml" in done.stdout
    assert "extension 'exiter' (from exiter) is broken: SystemExit: bye" in done.stderr


def test_a_hook_and_a_check_that_end_the_process_are_problems(site):
    exits = HOOK.format("mlops_ext_frameworks", "raise SystemExit(0)")
    check = (
        "from mlops_ext import hookspecs as h\n@h.hookimpl\ndef mlops_ext_doctor_checks():\n"
        "    return [h.DoctorCheck(name='leave', framework='joblib', run=lambda: exit(0))]\n"
    )
    site.add("exiter", "[mlops_ext]\nexiter = exiter_module\n", exits)
    site.add("leaver", "[mlops_ext]\nleaver = leaver_module\n", check)
    done = site.run("doctor")
    assert done.returncode == 1
    assert "extension.exiter: extension 'exiter' (from exiter) is broken: SystemExit" in done.stdout
    assert "leave: the check raised SystemExit" in done.stdout


def test_commands_that_end_the_process_on_import_are_one_line(site):
    site.add("exiter", "[mlops_ext.commands]\nexiter = exiter_module:x\n", "raise SystemExit(0)")
    done = site.run("exiter")
    assert done.returncode == 1
    assert "the commands of exiter cannot be loaded: SystemExit" in done.stderr


def test_entry_points_that_cannot_be_read_are_left_out_with_a_warning(site):
    site.add("garbled", "[mlops_ext]\nno equals sign\n")
    site.add(
        "whole",
        "[mlops_ext]\nwhole = whole_module\n",
        HOOK.format("mlops_ext_frameworks", FRAMEWORK.format("whole", "fine")),
    )
    done = site.run("list")
    assert done.returncode == 0
    assert "zenml" in done.stdout
    assert "fine" in done.stdout
    assert "garbled-1.0.dist-info cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
    assert site.run("--help").returncode == 0


def test_a_distribution_without_metadata_is_named_by_its_entry_point(site):
    site.add("bare", "[mlops_ext]\nbare = nothing_here\n", metadata=None)
    done = site.run("list")
    assert done.returncode == 0
    assert "extension 'bare'" in done.stderr
    assert "No module named 'nothing_here'" in done.stderr


@pytest.mark.parametrize("version", ["unknown", "1.0-local_build.x!"])
def test_a_version_that_is_none_is_not_supported(site, version):
    hook = HOOK.format("mlops_ext_frameworks", FRAMEWORK.format("odd", "odd"))
    site.add("odd", "[mlops_ext]\nodd = odd_module\n", hook, version=version)
    done = site.run("doctor")
    assert done.returncode == 1
    assert f"odd.version: odd {version} is outside >=1" in done.stdout


def test_texts_of_third_parties_are_shown_as_they_are(site):
    summary = "odd[extra] [/bold] [red]"
    hook = HOOK.format("mlops_ext_frameworks", FRAMEWORK.format("odd", summary))
    site.add("odd", "[mlops_ext]\nodd = odd_module\n", hook)
    done = site.run("list")
    assert (done.returncode, done.stderr) == (0, "")
    assert summary in done.stdout


def test_a_claim_of_a_demo_is_shown_as_it_is(site):
    demo = (
        "from mlops_ext.demo import Claim, Progress\n"
        "def demo():\n"
        "    yield Progress(text='[/x]')\n"
        "    yield Claim(what='a[b]', before='[/red]', after='[x]', holds=True)\n"
    )
    site.add("odd", "[mlops_ext.demos]\nodd = odd_module:demo\n", demo)
    done = site.run("demo", "--only", "odd")
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in ("a[b]", "[/red]", "[x]"))


def test_a_check_that_gives_no_findings_is_a_problem(site):
    check = (
        "from mlops_ext import hookspecs as h\n@h.hookimpl\ndef mlops_ext_doctor_checks():\n"
        "    return [h.DoctorCheck(name='odd', framework='joblib', run=lambda: ['fine'])]\n"
    )
    site.add("odd", "[mlops_ext]\nodd = odd_module\n", check)
    done = site.run("doctor")
    assert done.returncode == 1
    assert "odd: the check gave 'fine', expected Finding" in done.stdout


def test_a_hook_of_memory_policies_that_raises_shows_in_doctor(site):
    hook = HOOK.format("mlops_ext_memory_policies", "raise RuntimeError('no policy today')")
    site.add("odd", "[mlops_ext]\nodd = odd_module\n", hook)
    done = site.run("doctor")
    assert done.returncode == 1
    assert "no policy today" in done.stdout


def test_a_setting_that_core_refuses_is_the_user_s_to_mend(site):
    (site.folder / "pyproject.toml").write_text("[tool.mlops-ext.memory]\ngrowth = 0.5\n")
    done = site.run("doctor")
    assert done.returncode == 1
    assert "memory.growth = 0.5: expected 1 or more" in done.stdout
    assert "uninstall" not in done.stdout
    assert "uninstall" in str(PluginError("acme", None, ValueError("x")))
    assert "uninstall" not in str(PluginError("acme", None, SettingsError("x", 1, "2")))


def test_a_memory_policy_that_is_missing_for_a_setting_says_which(site):
    (site.folder / "pyproject.toml").write_text("[tool.mlops-ext.memory]\ngrowth = 0.5\n")
    code = "from mlops_ext.extensions.discovery import extensions; extensions().memory_policy('double')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=site.folder, capture_output=True, text=True, check=False
    )
    assert "memory.growth = 0.5: expected 1 or more" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_character_that_the_output_lacks_ends_no_command(site, encoding):
    say = (
        "import click, sys\nfrom rich.console import Console\n"
        "@click.command()\ndef say():\n"
        "    Console().print('ok \\u2192')\n"
    )
    site.add("say", "[mlops_ext.commands]\nsay = say_module:say\n", say)
    done = site.run("say", PYTHONIOENCODING=encoding)
    arrow = "\u2192" if encoding == "utf-8" else "?"
    assert (done.returncode, done.stdout) == (0, f"ok {arrow}\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_the_output_is_one_line(site):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [MLOPS_EXT, "doctor", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=site.folder,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "mlops-ext: [Errno 28] No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_reader_that_leaves_early_ends_the_command_without_words(site):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [MLOPS_EXT, "doctor"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=site.folder,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


BASE_EXCEPTIONS = ["import asyncio; raise asyncio.CancelledError", "raise GeneratorExit"]


@pytest.mark.parametrize("text", BASE_EXCEPTIONS)
@pytest.mark.parametrize("where", ["module", "hook"])
def test_whatever_an_extension_raises_is_one_problem_and_stops_nothing(site, text, where):
    module = text if where == "module" else HOOK.format("mlops_ext_frameworks", text)
    site.add("odd", "[mlops_ext]\nodd = odd_module\n", module)
    for command in (("list",), ("doctor",)):
        done = site.run(*command)
        assert "extension 'odd'" in done.stdout + done.stderr
        assert "joblib" in done.stdout
        assert "Traceback" not in done.stderr
    done = site.run("run", "--", sys.executable, "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr


def test_what_an_extension_prints_is_no_part_of_a_document(site):
    site.add("loud", "[mlops_ext]\nloud = loud_module\n", "print('HELLO')")
    done = site.run("doctor", "--json")
    assert isinstance(json.loads(done.stdout), dict)
    assert "HELLO" in done.stderr


def test_an_extension_that_another_of_its_name_hides_is_told(site):
    site.add("thief", "[mlops_ext]\nzenml = thief_module\n", "")
    for command in ("list", "doctor"):
        done = site.run(command)
        shown = " ".join((done.stdout + done.stderr).split())
        assert "extension 'zenml' (from mlops-ext) is not used: a distribution earlier" in shown


def test_a_group_of_commands_does_not_hide_one_of_ours(site):
    site.add("lister", "[mlops_ext.commands]\nlist = lister_module:x\n", "x = None")
    done = site.run("--help")
    assert done.stdout.count("\n  list ") == 1
    assert site.run("list").returncode == 0


def test_the_second_patch_of_one_id_is_a_problem_of_its_extension(site):
    patch = (
        "from mlops_ext.patching import Patch; return [Patch(id='odd.x', framework='odd',"
        " distribution='odd', versions='', target='odd:{}', replacement='a:b', reason='r',"
        " verified_by='v')]"
    )
    for name in ("one", "two"):
        module = HOOK.format("mlops_ext_patches", patch.format(name))
        site.add(name, f"[mlops_ext]\n{name} = {name}_module\n", module)
    done = site.run("doctor", "--json")
    document = json.loads(done.stdout)
    assert [fix["id"] for fix in document["fixes"]].count("odd.x") == 1
    assert any(
        "the patch 'odd.x' is that of extension" in f["message"] for f in document["findings"]
    )


def test_the_second_framework_of_one_name_is_a_problem_of_its_extension(site):
    """It would otherwise decide which versions of ours are supported."""
    hook = FRAMEWORK.format("joblib", "mine").replace("'odd'", "'joblib'", 1)
    site.add("odd", "[mlops_ext]\nodd = odd_module\n", HOOK.format("mlops_ext_frameworks", hook))
    shown = json.loads(site.run("doctor", "--json").stdout)
    (ours,) = [f for f in shown["frameworks"] if f["name"] == "joblib"]
    assert ours["extension"] == "joblib_ext"
    (finding,) = [f for f in shown["findings"] if f["check"] == "extension.odd"]
    assert "the framework 'joblib' is that of extension 'joblib' already" in finding["message"]
