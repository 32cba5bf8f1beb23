"""A ZenML of its own for tests: embedded store, configuration in a temporary folder.

The fixture `zenml_home` gives one for a whole session, with both stacks made: ``default`` (ZenML's
own local orchestrator) and ``oom`` (`local_oom`). Pipelines are scripts that run in processes of
their own, as a user's do.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REPORT = """
def report(name=None):
    import json
    from zenml.client import Client
    client = Client()
    run = client.list_pipeline_runs(pipeline=name, sort_by="desc:created", size=1, hydrate=True)[0]
    rows = client.list_run_steps(pipeline_run_id=run.id, sort_by="created", size=200, hydrate=True)
    plain = lambda metadata: json.loads(json.dumps(dict(metadata), default=str))
    print("REPORT " + json.dumps({
        "status": run.status.value,
        "id": str(run.id),
        "metadata": plain(run.run_metadata),
        "steps": [
            {"name": s.name, "version": s.version, "status": s.status.value,
             "metadata": plain(s.run_metadata)}
            for s in rows
        ],
    }), flush=True)
"""


# ZenML takes seconds to import: one process answers all questions about what the store holds.
ANSWER = """
import json, sys
import zenml.client
for line in sys.stdin:
    exec(json.loads(line), {"report": report})
    print("ANSWERED", flush=True)
"""


# The same for `mlops-ext` commands: each runs in a fork of a process that has imported what they need,
# and has opened nothing.
COMMANDS = """
import json, os, sys
import zenml.zen_stores.sql_zen_store, zenml_ext.cli
from mlops_ext.cli import main
for line in sys.stdin:
    arguments, environment, output, errors = json.loads(line)
    child = os.fork()
    if child == 0:
        for path, number in ((os.devnull, 0), (output, 1), (errors, 2)):
            os.dup2(os.open(path, os.O_RDWR), number)
        os.environ.update(environment)
        sys.argv = arguments
        sys.exit(main(arguments[1:]))
    print("STATUS", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class ZenmlHome:
    """A configuration of ZenML, and the folder in which its pipelines' scripts stand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.code = folder / "code"
        self.code.mkdir(parents=True)
        self.answerer: subprocess.Popen[str] | None = None
        self.commander: subprocess.Popen[str] | None = None

    def environment(self, **variables):
        """The environment of a process that uses this configuration."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ZENML_", "MLOPS_EXT_"))}
        return {
            **kept,
            "ZENML_CONFIG_PATH": str(self.folder / "config"),
            "ZENML_LOCAL_STORES_PATH": str(self.folder / "stores"),
            "ZENML_ANALYTICS_OPT_IN": "false",
            "ZENML_ENABLE_RICH_TRACEBACK": "false",
            "ZENML_LOGGING_COLORS_DISABLED": "true",
            "MLOPS_EXT_MEMORY_HISTORY": str(self.folder / "history.sqlite"),
            "AUTO_OPEN_DASHBOARD": "false",
            **variables,
        }

    def script(self, name, text):
        """Write a script; it can call ``report()`` at its end."""
        path = self.code / f"{name}.py"
        path.write_text(textwrap.dedent(text) + REPORT + REPORT_CALL, encoding="utf-8")
        return path

    def start(self, script, *arguments, stdin=subprocess.DEVNULL, **variables):
        """Start a script in a process of its own."""
        return subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            cwd=self.code,
            env=self.environment(**variables),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def python(self, code, *, cwd=None, **variables):
        """Run *code* in an interpreter of its own; what it printed, as `subprocess.run` gives it."""
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=cwd,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            check=True,
        )

    def run(self, script, *arguments, timeout=540, **variables):
        """Run a script to its end: its output, and what it reported."""
        process = self.start(script, *arguments, **variables)
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return output, reported(output)

    def ask(self, text):
        """Run *text*, which may call ``report()``, beside the pipelines: its output."""
        if self.answerer is None:
            (self.code / "answer.py").write_text(REPORT + ANSWER, encoding="utf-8")
            self.answerer = self.start("answer.py", stdin=subprocess.PIPE)
        self.answerer.stdin.write(json.dumps(textwrap.dedent(text)) + "\n")
        self.answerer.stdin.flush()
        output = ""
        for line in self.answerer.stdout:
            if line == "ANSWERED\n":
                return output
            output += line
        self.close()
        raise AssertionError(output)

    def close(self):
        """End the processes that answer and that run commands."""
        for process in (self.answerer, self.commander):
            if process is not None:
                process.communicate()
        self.answerer = self.commander = None

    def command(self, *arguments, check=True, fresh=False, **variables):
        """Run a command of the environment's ``bin`` folder; its standard output.

        One of `mlops-ext` runs in a fork of a process that has imported ZenML, unless it is to be *fresh*.
        """
        command = [str(Path(sys.executable).parent / arguments[0]), *map(str, arguments[1:])]
        if fresh or arguments[0] != "mlops-ext":
            done = subprocess.run(
                command,
                cwd=self.code,
                env=self.environment(**variables),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=400,
            )
        else:
            done = self._forked(command, variables)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout if check else done

    def _forked(self, command, variables):
        if self.commander is None:
            (self.code / "commands.py").write_text(COMMANDS, encoding="utf-8")
            self.commander = self.start("commands.py", stdin=subprocess.PIPE)
        written = [self.folder / "stdout", self.folder / "stderr"]
        for path in written:
            path.write_text("")
        order = [command, variables, *map(str, written)]
        self.commander.stdin.write(json.dumps(order) + "\n")
        self.commander.stdin.flush()
        told = next(line for line in self.commander.stdout if line.startswith("STATUS "))
        status = int(told.removeprefix("STATUS "))
        return subprocess.CompletedProcess(command, status, *(path.read_text() for path in written))


REPORT_CALL = """

if __name__ == "__main__":
    import sys
    main(*sys.argv[1:])
"""


def reported(output):
    """The report in *output*, or None."""
    lines = [line for line in output.splitlines() if line.startswith("REPORT ")]
    return json.loads(lines[-1].removeprefix("REPORT ")) if lines else None


SETUP = """
from zenml.client import Client
from zenml.enums import StackComponentType as T
client = Client()
client.create_stack_component("local_oom", flavor="local_oom", component_type=T.ORCHESTRATOR,
                              configuration={"max_parallel_steps": 3})
client.create_stack("oom", {T.ORCHESTRATOR: "local_oom", T.ARTIFACT_STORE: "default"})
"""


@pytest.fixture(scope="session")
def zenml_home(tmp_path_factory):
    """A ZenML of its own; the flavors were registered by the command users type."""
    pytest.importorskip("zenml")
    home = ZenmlHome(tmp_path_factory.mktemp("zenml"))
    home.registered = home.command("mlops-ext", "zenml", "register", fresh=True)
    home.ask(SETUP)
    yield home
    home.close()
