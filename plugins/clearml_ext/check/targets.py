"""What `check` can look at: a topology file, a script that builds a pipeline, a pipeline's task."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clearml_ext.check.results import Answer, Result, examine, exit_code, load_result, merge
from clearml_ext.server.statuses import Status
from clearml_ext.settings import ClearmlSettings, load_settings
from clearml_ext.topology.file import read_topology
from mlops_ext.errors import MlopsExtError

if TYPE_CHECKING:
    from clearml_ext.server.client import Client

_TASK = re.compile(r"[0-9a-f]{32}")
_TAIL = 400


def check_target(target: str, settings: ClearmlSettings, queue: str | None = None) -> Result:
    """Check *target*; a failure to find out is an UNKNOWN result."""
    try:
        if _TASK.fullmatch(target):
            return check_task(target, settings, queue)
        if target.endswith(".py"):
            return check_script(target, (), settings)
        return examine(target, read_topology(Path(target)))
    except MlopsExtError as error:
        return _unknown(target, str(error))


def check_task(task: str, settings: ClearmlSettings, queue: str | None = None) -> Result:
    """Check the pipeline whose controller is *task*: what is left of its run, or else a new one."""
    from clearml_ext.check.plans import from_the_start, plan_of_task
    from clearml_ext.check.preflight import check_plan
    from clearml_ext.server.client import Client
    from clearml_ext.server.snapshot import fetch_tasks, take_snapshot
    from clearml_ext.server.tasks import is_pipeline

    client = Client.from_configuration(settings.timeout_s)
    document = fetch_tasks(client, [task]).get(task)
    if document is None or not is_pipeline(document):
        return _unknown(task, f"task {task} is no pipeline's controller on {client.shown}")
    plan = plan_of_task(document)
    snapshot = take_snapshot(client, settings, plan.base_tasks)
    own = task if task in snapshot.running else None
    if own is None and document.get("status") != Status.QUEUED:
        plan = from_the_start(plan)
    target = queue or (document.get("execution") or {}).get("queue") or settings.services_queue
    return check_plan(plan, target, snapshot, settings, client=client, own_task=own)


def guarded_environment(**settings: object) -> dict[str, str]:
    """This process's environment, for a child whose pipelines are guarded with *settings*."""
    from mlops_ext.cli.run import child_environment
    from mlops_ext.extensions.activation import trigger_of

    child = child_environment([trigger_of("clearml")])
    for name, value in settings.items():
        if value is not None:
            child[f"MLOPS_EXT_CLEARML_{name.upper()}"] = str(value)
    return child


def check_script(
    script: str, arguments: Sequence[str], settings: ClearmlSettings | None = None
) -> Result:
    """Run *script* without its pipelines, and check all that it would enqueue.

    Nothing that the script writes reaches the server, and no step is run.
    """
    from clearml_ext.check.dry_run import PretendedServer, serve
    from clearml_ext.check.preflight import check_enqueue
    from clearml_ext.server.client import Client
    from clearml_ext.server.snapshot import written_down

    settings = settings or load_settings()
    if not Path(script).is_file():
        return _unknown(script, f"there is no script {script}")
    client = _require_server(settings)
    agents = settings.agents and settings.agents.resolve()
    pretended = PretendedServer(client, written_down(agents).names if agents else ())
    with tempfile.TemporaryDirectory(prefix="mlops-ext-") as folder, serve(pretended) as address:
        report = Path(folder) / "results.jsonl"
        environment = guarded_environment(
            report=report, check_server=address, fix=False, agents=agents
        )
        # The script gets no credentials: all that it can ask is the pretended server.
        none = {"CLEARML_API_ACCESS_KEY": "none", "CLEARML_API_SECRET_KEY": "none"}
        hosts = {"CLEARML_FILES_HOST": f"file://{folder}", "CLEARML_API_HOST": address}
        environment |= none | hosts
        environment.pop("CLEARML_AUTH_TOKEN", None)
        for name in ("no_proxy", "NO_PROXY"):
            environment[name] = f"{environment.get(name, '')},127.0.0.1".lstrip(",")
        try:
            done = subprocess.run(
                [sys.executable, script, *arguments],
                env=environment,
                capture_output=True,
                text=True,
                timeout=settings.check_timeout_s,
                check=False,
            )
            ended = f"(exit status {done.returncode})"
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it printed nothing"]
        except subprocess.TimeoutExpired:
            ended, lines = f"within {settings.check_timeout_s:g} s", ["it was ended"]
        results = _reported(report)
        client = Client(address, token=lambda: "none", timeout_s=settings.timeout_s)
        for task, queue in pretended.enqueued:  # by processes or requests beside the guard
            results.append(check_enqueue(task, queue, settings, client=client))
    if results:
        return merge(script, results)
    return _unknown(script, f"{script} enqueued no pipeline {ended}: {lines[-1]}"[:_TAIL])


def launch(script: str, arguments: Sequence[str], settings: dict[str, object]) -> int:
    """Run *script* with its pipelines guarded; returns its exit status.

    The status of a script that a refusal ended is that of a check with the same result.

    Raises:
        ServerError: the server cannot be asked; the script was not started.
        TopologyError: the file with declared capacities cannot be read.
    """
    _require_server(load_settings())
    with tempfile.TemporaryDirectory(prefix="mlops-ext-") as folder:
        report = Path(folder) / "results.jsonl"
        done = subprocess.run(
            [sys.executable, script, *arguments],
            env=guarded_environment(report=report, **settings),
            check=False,
        )
        refused = _reported(report)
    return exit_code(refused[-1:]) if done.returncode and refused else done.returncode


def _reported(report: Path) -> list[Result]:
    """The results that a script's process left in the file *report*."""
    try:
        lines = report.read_text(encoding="utf-8").splitlines()
        return [load_result(line) for line in lines]
    except (OSError, ValueError, KeyError):
        return []


def _unknown(target: str, reason: str) -> Result:
    return Result(target=target, answer=Answer.UNKNOWN, reasons=(reason,))


def _require_server(settings: ClearmlSettings) -> Client | None:
    """Ask the server first: the SDK would retry for hours, or stop half way.

    Returns:
        A client of the server, or None if the settings name a file with agents instead.

    Raises:
        ServerError: the server does not answer, or not as a ClearML server does.
        TopologyError: the file with declared capacities cannot be read.
    """
    from clearml_ext.server.client import Client
    from clearml_ext.server.snapshot import take_snapshot, written_down

    if settings.agents is not None:
        written_down(settings.agents)
        return None
    client = Client.from_configuration(settings.timeout_s)
    take_snapshot(client, settings)
    client.tasks(["id"], type=["controller"], status=[Status.IN_PROGRESS])
    return client
