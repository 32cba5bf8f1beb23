"""Topology files, `mlops-ext clearml check FILE`, the fixes it proposes and the pictures it draws."""

import gc
import json
import subprocess
import sys
import xml.dom.minidom
from pathlib import Path

import pytest
from click.testing import CliRunner

from clearml_ext.check.fixes import FixKind, propose
from clearml_ext.cli import clearml
from clearml_ext.topology.documents import read_document
from clearml_ext.topology.file import parse_topology, read_topology, write_topology
from clearml_ext.topology.layout import lay_out
from mlops_ext.errors import MlopsExtError, TopologyError
from mlops_ext.queues.check import Pipeline, Step, Topology, Worker, check

EXAMPLES = Path(__file__).parents[4] / "examples/clearml"
SPEC = """
workers:
  - {name: agent-1, queues: [services, default], slots: 1}
  - {name: glue, queues: [gpu], slots: unbounded}
pipelines:
  - name: train
    queue: services
    instances: 2
    steps:
      - {name: prepare, queue: default}
      - {name: fit, queue: gpu, after: [prepare]}
      - name: tune
        queue: services
        after: [fit]
        pipeline:
          steps: [{name: trial, queue: gpu}]
"""


def run(*arguments):
    return CliRunner().invoke(clearml, ["check", *map(str, arguments)])


def test_the_document_means_what_it_says(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(SPEC)
    topology = read_topology(path)
    assert [worker.slots for worker in topology.workers] == [1, None]
    pipeline = topology.pipelines[0]
    assert (pipeline.queue, pipeline.instances) == ("services", 2)
    assert pipeline.steps[2].steps[0].queue == "gpu"
    assert pipeline.steps[2].after == ("fit",)


@pytest.mark.parametrize("name", ["plan.json", "plan.yaml"])
def test_what_is_written_is_read_back_the_same(tmp_path, name):
    (tmp_path / "in.yaml").write_text(SPEC)
    topology = read_topology(tmp_path / "in.yaml")
    write_topology(topology, tmp_path / name)
    assert read_topology(tmp_path / name) == topology


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "the topology is \\[\\]: expected a mapping"),
        ({}, "to have a pipelines"),
        ({"pipelines": [], "wrokers": []}, "'wrokers': expected 'workers'"),
        ({"pipelines": [{"name": "p"}]}, r"pipelines\[0\].*to have a queue"),
        ({"pipelines": [{"name": "p", "queue": "q", "instances": "two"}]}, "instances is 'two'"),
        (
            {"pipelines": [], "workers": [{"name": "w", "queues": ["q"], "slots": "many"}]},
            r"workers\[0\].slots is 'many'.*unbounded",
        ),
        (
            {"pipelines": [{"name": "p", "queue": "q", "steps": [{"name": "a", "queue": True}]}]},
            r"steps\[0\].queue is True: expected a name",
        ),
    ],
)
def test_a_wrong_document_is_refused_with_the_place(document, words):
    with pytest.raises(MlopsExtError, match=words):
        parse_topology(document)


def test_exit_codes_and_one_json_object_a_line(tmp_path):
    result = run(EXAMPLES / "separate-queues.yaml", "--json")
    assert (result.exit_code, json.loads(result.output)["verdict"]) == (0, "safe")
    result = run(EXAMPLES / "classic-deadlock.yaml", EXAMPLES / "separate-queues.yaml", "--json")
    assert result.exit_code == 1
    first, second = map(json.loads, result.output.splitlines())
    assert first["reasons"] == [
        'nightly: controller holds agent-1 → step "train" waits in default → only agent-1 listens'
    ]
    assert "clearml-agent daemon --queue default" in " ".join(first["fixes"])
    assert set(second) == {"file", "verdict", "reasons", "fixes"}
    (tmp_path / "bad.yaml").write_text("pipelines: [")
    result = run(tmp_path / "bad.yaml", tmp_path / "none.yaml", "--json")
    assert result.exit_code == 2
    assert [json.loads(line)["verdict"] for line in result.output.splitlines()] == ["unknown"] * 2


NAMED = "workers: [{{name: w, queues: [q]}}]\npipelines: [{{name: p, queue: q, steps: {steps}}}]\n"
DOUBLED = "  - name: p{at}\n    queue: q\n    steps: &s{at} [{inner}]\n"


def billion_steps():
    """Ten pipelines whose steps are ten times those of the one before."""
    lines = ["workers: []\npipelines:\n", DOUBLED.format(at=0, inner="{name: s, queue: q}")]
    for at in range(1, 10):
        step = f"pipeline: {{steps: *s{at - 1}}}"
        inner = ",".join(f"{{name: k{number}, queue: q, {step}}}" for number in range(10))
        lines.append(DOUBLED.format(at=at, inner=inner))
    return "".join(lines)


def million_steps():
    step = "{{name: {name}, queue: q, pipeline: {{steps: {steps}}}}}"
    lines = ["workers: []\npipelines:\n"]
    many = ",".join(f"{{name: s{number}, queue: q}}" for number in range(1000))
    lines.append(DOUBLED.format(at=0, inner=many))
    inner = ",".join(step.format(name=f"t{number}", steps="*s0") for number in range(1000))
    lines.append(DOUBLED.format(at=1, inner=inner))
    return "".join(lines)


BAD_FILES = {
    "empty.yaml": ("", "is 'empty'"),
    "space.yaml": (" \n\n", "is 'empty'"),
    "text.yaml": ("hello", "the topology is 'hello': expected a mapping"),
    "open.yaml": ("pipelines: [", "expected valid YAML"),
    "two.yaml": (NAMED.format(steps="[]") * 2, "two keys 'workers'"),
    "twice.json": ('{"pipelines": [], "pipelines": []}', "two keys 'pipelines'"),
    "deep.yaml": ("workers: " + "[" * 20_000 + "]" * 20_000, "nest"),
    "dashes.yaml": ("- " * 20_000, "nested too deep"),
    "deep.json": ("[" * 20_000 + "]" * 20_000, "recursion depth"),
    "digits.json": ('{"pipelines": ' + "9" * 5_000 + "}", "expected valid JSON"),
    "hours.yaml": (f"workers: [{'1:' * 300_000}1]", "at most 1,000"),
    "lines.json": ('{"pipelines": [{"name": "a\\u2028b", "queue": "q"}]}', "control characters"),
    "nan.yaml": (NAMED.format(steps="[]").replace("[q]", "[q], slots: .nan"), "slots is nan"),
    "half.json": ('{"pipelines": [{"name": "\\ud800", "queue": "q"}]}', "control characters"),
    "escape.yaml": (NAMED.format(steps="[]").replace("p,", '"\\e[31m",'), "control characters"),
    "object.yaml": ("!!python/object/apply:os.abort []", "could not determine a constructor"),
    "itself.yaml": (
        NAMED.format(steps="&s [{name: a, queue: q, pipeline: {steps: *s}}]"),
        "an alias within what it stands for",
    ),
    "bomb.yaml": (billion_steps(), "aliases that stand for more than"),
    "many.yaml": (million_steps(), "the number of steps is 'over 100,000'"),
    "unknown.yaml": (NAMED.format(steps="[{name: a, queue: q, after: [b]}]"), "named 'b'"),
    "twin.yaml": (
        NAMED.format(steps="[{name: a, queue: q}, {name: a, queue: q}]"),
        "no other step",
    ),
    "utf16.yaml": (NAMED.format(steps="[]").encode("utf-16"), "codec can't decode"),
    "none.yaml": (None, "No such file"),
    "instances.yaml": (
        "pipelines: [{name: p, queue: q, instances: 1000000000}]",
        "a whole number from 1 to 10,000",
    ),
    "turned.yaml": (
        'pipelines: [{name: "safe\u202eefasnu", queue: q}]',
        "a name without control characters",
    ),
    "workers.json": (
        json.dumps(
            {
                "workers": [{"name": f"w{at}", "queues": ["q"]} for at in range(150_000)],
                "pipelines": [],
            }
        ),
        "at most 50,000",
    ),
    "workers.yaml": (
        "".join(["workers:\n", *(f"- {{name: w{at}, queues: [q]}}\n" for at in range(150_000))]),
        "at most 1 MiB",
    ),
}


def test_each_bad_file_is_one_clear_line_and_the_others_are_still_checked(tmp_path):
    for name, (content, _) in BAD_FILES.items():
        if content is not None:
            raw = content if isinstance(content, bytes) else content.encode()
            (tmp_path / name).write_bytes(raw)
    (tmp_path / "good.yaml").write_text(SPEC)
    names = [*BAD_FILES, "good.yaml"]
    done = subprocess.run(
        [Path(sys.executable).with_name("mlops-ext"), "clearml", "check", "--json", *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    found = {row["file"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert (list(found), done.stderr) == (names, "")
    assert (found["good.yaml"]["verdict"], done.returncode) == ("unsafe", 1)
    for name, (_, words) in BAD_FILES.items():
        (reason,) = found[name]["reasons"]
        assert found[name]["verdict"] == "unknown", name
        assert words in reason, name
        assert "\n" not in reason, name


def test_a_document_is_read_without_a_walk_through_all_that_was_read_before(tmp_path):
    path, walks = tmp_path / "plan.yaml", []
    rows = "".join(f"- {{name: w{at}, queues: [q]}}\n" for at in range(3_000))
    path.write_text(f"pipelines: []\nworkers:\n{rows}")

    def count(phase, info):
        if phase == "start" and info["generation"] == 2:
            walks.append(info)

    gc.callbacks.append(count)
    try:
        read_document(path)
    finally:
        gc.callbacks.remove(count)
    assert not walks
    assert gc.isenabled()


def test_a_hundred_queues_that_do_not_help_do_not_hide_the_fixes_that_do():
    queues = [f"q{number}" for number in range(100)]
    topology = parse_topology(
        {
            "workers": [{"name": "only", "queues": ["services", *queues]}],
            "pipelines": [
                {"name": "p", "queue": "services", "steps": [{"name": "s", "queue": "q1"}]}
            ],
        }
    )
    kinds = {fix.kind for fix in propose(topology, check(topology))}
    assert {FixKind.LOCAL_CONTROLLER, FixKind.NEW_AGENT} <= kinds


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_file_of_a_hundred_megabytes_is_not_read(tmp_path, ending):
    path = tmp_path / f"large.{ending}"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    result = run(path)
    assert result.exit_code == 2
    assert "100 MiB large': expected at most 64 MiB" in result.output


def test_a_merged_key_may_be_given_again_and_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "merged.yaml"
    workers = "workers: [&w {name: a, queues: [q], slots: 2}, {<<: *w, name: b}]"
    path.write_text(f"\ufeff{workers}\npipelines: []\n", encoding="utf-8")
    assert [worker.name for worker in read_topology(path).workers] == ["a", "b"]


def test_sub_pipelines_may_be_nested_fifty_deep(tmp_path):
    steps = "[{name: s, queue: q}]"
    for _ in range(50):
        steps = f"[{{name: s, queue: q, pipeline: {{steps: {steps}}}}}]"
    path = tmp_path / "deep.yaml"
    path.write_text(NAMED.format(steps=steps))
    assert run(path).exit_code == 1


def test_checking_a_file_imports_neither_clearml_nor_a_client():
    code = (
        "import sys; from click.testing import CliRunner; from clearml_ext.cli import clearml;"
        f"CliRunner().invoke(clearml, ['check', {str(EXAMPLES / 'nested.yaml')!r}]);"
        "sys.exit('clearml' in sys.modules or 'requests' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["classic-deadlock", "nested"])
def test_every_proposed_fix_makes_the_topology_safe(name):
    topology = read_topology(EXAMPLES / f"{name}.yaml")
    fixes = list(propose(topology, check(topology)))
    assert FixKind.NEW_AGENT in {fix.kind for fix in fixes}
    assert all(check(fix.topology).safe for fix in fixes)


def test_a_controller_is_moved_to_a_queue_of_its_own_where_there_is_one():
    topology = parse_topology(
        {
            "workers": [
                {"name": "s", "queues": ["services"]},
                {"name": "a", "queues": ["default"]},
            ],
            "pipelines": [
                {"name": "p", "queue": "default", "steps": [{"name": "x", "queue": "default"}]}
            ],
        }
    )
    first = next(propose(topology, check(topology)))
    assert (first.kind, first.controller_queue) == (FixKind.CONTROLLER_QUEUE, "services")


@pytest.mark.parametrize("ending", ["svg", "html"])
def test_the_picture_shows_the_deadlock(tmp_path, ending):
    path = tmp_path / f"topology.{ending}"
    assert run(EXAMPLES / "nested.yaml", "--plot", path).exit_code == 1
    text = path.read_text()
    if ending == "svg":
        xml.dom.minidom.parseString(text)
    assert "held by train #1/tune" in text
    assert "#c62828" in text


def test_a_picture_of_a_safe_topology_has_nothing_red(tmp_path):
    path = tmp_path / "topology.svg"
    assert run(EXAMPLES / "separate-queues.yaml", "--plot", path).exit_code == 0
    assert 'stroke="#c62828"' not in path.read_text()


def test_a_picture_with_an_unknown_ending_is_refused(tmp_path):
    result = run(EXAMPLES / "separate-queues.yaml", "--plot", tmp_path / "topology.bmp")
    assert isinstance(result.exception, MlopsExtError)
    assert ".svg or .html" in str(result.exception)


def test_labels_and_autoscaled_queues_are_read_and_written_back(tmp_path):
    document = {
        "workers": [
            {"name": "a", "queues": ["gpu", "cpu"], "labels": ["a100", "big"]},
            {"name": "b", "queues": ["gpu"], "labels": ["a100"]},
        ],
        "queues": [
            "idle",
            {"name": "elastic", "autoscaled": True, "min": 0, "max": 4, "labels": ["spot"]},
            {"name": "many", "autoscaled": "unbounded"},
            {"name": "cpu", "max": 3},
        ],
        "pipelines": [
            {"name": "p", "queue": "s", "steps": [{"name": "x", "queue": "gpu", "needs": ["a100"]}]}
        ],
    }
    found = parse_topology(document)
    slots = {each.name: each.slots for each in found.workers}
    assert slots == {
        "a": 1, "b": 1, "autoscaler of elastic": 4, "autoscaler of many": None,
        "autoscaler of cpu": 3,
    }  # fmt: skip
    assert {queue: sorted(each) for queue, each in found.labels.items()} == {
        "gpu": ["a100"], "cpu": ["a100", "big"], "elastic": ["spot"]
    }  # fmt: skip
    assert found.pipelines[0].steps[0].needs == ("a100",)
    path = tmp_path / "again.yaml"
    write_topology(found, path)
    again = read_topology(path)
    assert (again.workers, again.labels, again.pipelines) == (
        found.workers, found.labels, found.pipelines
    )  # fmt: skip


@pytest.mark.parametrize(
    "queue",
    [
        {"name": "q", "autoscaled": "many"},
        {"name": "q", "autoscaled": True, "min": 5, "max": 4},
        {"name": "q", "autoscaled": True, "max": -1},
        {"autoscaled": 4},
        {"name": "q", "maximum": 4},
        7.5,
    ],
)
def test_a_queue_that_is_declared_wrongly_is_refused_with_its_place(queue):
    with pytest.raises(TopologyError, match=r"queues\[0\]"):
        parse_topology({"pipelines": [], "queues": [queue]})


def test_what_a_refusal_does_not_name_is_folded_and_the_chain_comes_first():
    workers = [Worker(name=f"gpu-{at}", queues=("gpu",)) for at in range(15)]
    workers.append(Worker(name="shared", queues=("services", "default")))
    pipelines = [
        Pipeline(
            name=f"p{at}",
            queue="controllers" if at else "services",
            steps=tuple(
                Step(name=f"s{at}-{n}", queue="gpu" if at or n else "default") for n in range(4)
            ),
        )
        for at in (1, 2, 3, 4, 5, 0)
    ]
    workers.append(Worker(name="controllers", queues=("controllers",), slots=None))
    topology = Topology(workers=tuple(workers), pipelines=tuple(pipelines))
    drawing = lay_out(topology, check(topology))
    boxes = {box.full: box for box in drawing.boxes}
    assert len(boxes) <= 16
    top = min(box.y for box in drawing.boxes)
    assert {box.full for box in drawing.boxes if box.y == top} == {"p0", "default", "shared"}
    assert all(boxes[name].stuck for name in ("p0", "p0/s0-0", "default", "shared"))
    assert boxes["p1"].texts[2] == "4 steps: s1-0, s1-1, s1-2, s1-3"
    assert any("15 agents" in box.texts for box in drawing.boxes)
    assert drawing.height < 1100 > drawing.width  # a page
