"""Draw the documentation's pictures from the code they explain, into docs/images/.

    python docs/draw.py

The demo is drawn from what ``mlops-ext demo --json`` printed last, into docs/demo.json.
The shutdown is played by `mlops_ext.shutdown`, the allocations are those of `mlops_ext.memory`,
the topologies are checked by `mlops_ext.queues.check`. A test draws them again and compares.
"""

import io
import itertools
import json
import sys
from html import escape
from pathlib import Path

from rich.console import Console

from clearml_ext.topology.file import read_topology
from clearml_ext.topology.svg import draw as draw_topology
from kserve_ext.manifest import PROBE_PERIOD_S, grace_s
from kserve_ext.settings import KServeSettings
from mlops_ext.cli.demo import Result, draw, verdict
from mlops_ext.demo import Claim
from mlops_ext.memory import (
    Attempt,
    Caps,
    Evidence,
    Features,
    InPlace,
    Quantity,
    RequestPolicy,
    TaskKey,
)
from mlops_ext.queues.check import check
from mlops_ext.shutdown import Phase, Shutdown, Signal, Started, Step, Stopped, Tick

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FONT = "DejaVu Sans, Verdana, Arial, sans-serif"
INK, GREY, PALE = "#222222", "#777777", "#f2f2f2"
GREEN, ORANGE, RED, BLUE = "#bfe3c0", "#fbdcae", "#f4b9b4", "#c3d9f2"
MIB = 1024**2


class Picture:
    """An SVG document, shape by shape; coordinates in pixels from the top left."""

    def __init__(self, width, height, title):
        self.parts = [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
                f' viewBox="0 0 {width} {height}" font-family="{FONT}" font-size="13">'
            ),
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" fill="white"/>',
            (
                '<defs><marker id="head" markerWidth="9" markerHeight="9" refX="8" refY="4.5"'
                f' orient="auto"><path d="M0,0 L9,4.5 L0,9 z" fill="{GREY}"/></marker></defs>'
            ),
        ]

    def box(self, x, y, width, height, fill, *lines):
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="4"'
            f' fill="{fill}" stroke="{GREY}"/>'
        )
        first = y + height / 2 + 4.5 - 8 * (len(lines) - 1)
        for number, line in enumerate(lines):
            self.text(x + width / 2, first + 16 * number, line, anchor="middle")

    def text(self, x, y, text, *, anchor="start", colour=INK):
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
            f"{escape(text)}</text>"
        )

    def line(self, points, *, colour=GREY, width=1.5, dashed=False, arrow=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"'
            + (' stroke-dasharray="5 4"' if dashed else "")
            + (' marker-end="url(#head)"' if arrow else "")
            + "/>"
        )

    def write(self, path):
        path.write_text("\n".join([*self.parts, "</svg>"]) + "\n", encoding="utf-8")


def played_shutdown(answered_s):
    """When each step of a shutdown is due, in seconds from a SIGTERM at 0.

    Requests are in flight until *answered_s*.
    """
    state, due, now = Shutdown().on(Started(at=-10.0)).state, {}, 0.0
    transition = state.on(Signal(at=now, number=15))
    while True:
        due |= dict.fromkeys(transition.steps, now)
        if transition.state.phase is Phase.ENDED:
            return due
        if Step.STOP in due:
            now += 0.1
            transition = transition.state.on(Stopped(at=now))
        else:
            now = min(now + 0.1, max(transition.state.wake_at, now))
            transition = transition.state.on(Tick(at=now, in_flight=int(now < answered_s)))


def kserve(path):
    """What a client, a probe and a model see after a SIGTERM."""
    due = played_shutdown(answered_s=8.0)
    closed, stopped, left = due[Step.CLOSE], due[Step.STOP], due[Step.LEAVE]
    end, left_edge, scale = 10.0, 150, 58
    picture = Picture(760, 250, "A model server's end after SIGTERM")

    def at(seconds):
        return left_edge + scale * seconds

    def bar(row, start, stop, fill, *lines):
        picture.box(at(start), 40 + 36 * row, scale * (stop - start), 28, fill, *lines)

    for row, name in enumerate(["phase", "readiness", "liveness", "new requests", "models"]):
        picture.text(12, 59 + 36 * row, name)
    bar(0, 0, closed, ORANGE, "lame duck")
    bar(0, closed, stopped, BLUE, "drain")
    bar(1, 0, left, RED, "503")
    bar(2, 0, left, GREEN, "200")
    bar(3, 0, closed, GREEN, "answered, Connection: close")
    bar(3, closed, left, PALE, "not accepted")
    bar(4, 0, stopped, GREEN, "loaded, answer what is in flight")
    for seconds, name in ((0, "SIGTERM"), (stopped, "last answer, stop, exit")):
        picture.line([(at(seconds), 30), (at(seconds), 224)], dashed=True)
        picture.text(at(seconds), 24, name, anchor="middle")
    for seconds in range(int(end) + 1):
        picture.text(at(seconds), 240, f"{seconds} s", anchor="middle", colour=GREY)
    picture.write(path)


def kubernetes(path):
    """A pod's end at its longest: what each part of the cluster does after the pod is deleted."""
    settings = KServeSettings()
    due = played_shutdown(answered_s=settings.drain_s + settings.lame_duck_s + 1)
    closed, refused, stopped = due[Step.CLOSE], due[Step.REFUSE], due[Step.STOP]
    ended, grace = stopped + settings.stop_s, grace_s(settings)
    left_edge, scale = 150, 18.5
    picture = Picture(760, 322, "The end of a pod on Kubernetes, at its longest")

    def at(seconds):
        return left_edge + scale * seconds

    def bar(row, start, stop, fill, *lines):
        picture.box(at(start), 40 + 36 * row, scale * (stop - start), 28, fill, *lines)

    names = ["kubelet", "endpoints", "gateways, proxies", "readiness probe", "server",
             "new requests", "in flight"]  # fmt: skip
    for row, name in enumerate(names):
        picture.text(12, 59 + 36 * row, name)
    failures = int(settings.lame_duck_s // PROBE_PERIOD_S)
    bar(0, 0, grace, PALE, f"terminationGracePeriodSeconds {grace}, then SIGKILL")
    bar(1, 0, grace, RED, "removed when the pod is deleted")
    bar(2, 0, 3, ORANGE, "1-3 s")
    bar(2, 3, grace, PALE, "no new requests for this pod")
    bar(3, 0, failures * PROBE_PERIOD_S, ORANGE, f"{failures} x 503")
    bar(3, failures * PROBE_PERIOD_S, grace, RED, "not ready: balancers that only probe leave")
    bar(4, 0, closed, ORANGE, "lame duck")
    bar(4, closed, refused, BLUE, "drain")
    bar(4, stopped, ended, GREEN, "models stop")
    bar(5, 0, closed, GREEN, "answered")
    bar(5, closed, grace, PALE, "not accepted")
    bar(6, 0, refused, GREEN, "answered")
    bar(6, refused, ended, RED, "503, UNAVAILABLE")
    picture.line([(at(0), 30), (at(0), 296)], dashed=True)
    picture.text(at(0), 24, "deleted, SIGTERM", anchor="middle")
    for seconds in range(0, grace + 1, 5):
        picture.text(at(seconds), 312, f"{seconds} s", anchor="middle", colour=GREY)
    picture.write(path)


def ladder(request, need):
    """The limits of the attempts of a step that needs *need* bytes, by the policy "double"."""
    policy = RequestPolicy()
    plan = policy.decide(TaskKey(pipeline="p", step="s"), Features(), request, Caps())
    limits = [plan.first_limit]
    while limits[-1] < need:
        attempt = Attempt(memory=limits[-1], oom_retries=len(limits) - 1)
        evidence = Evidence(exit_code=137, oom_killed=True, peak=limits[-1])
        limits.append(policy.on_failure(plan, attempt, evidence).memory)
    return limits


def zenml(path):
    """A step that needs 850 MiB and was given 600: killed and run again, or grown in place."""
    start, need = Quantity(600 * MIB), Quantity(850 * MIB)
    limits = ladder(start, need)
    grow = InPlace(start=start, threshold=0.9, growth=limits[1] / limits[0])
    picture = Picture(760, 250, "A step that needs more memory than its limit")
    bottom, scale = 215, 0.13

    def level(size):
        return bottom - scale * size / MIB

    for left, name in ((20, "retried"), (400, "grown in place")):
        picture.text(left, 24, name)
        picture.line([(left, bottom), (left + 340, bottom)], arrow=True)
        picture.text(left + 340, bottom + 18, "time", anchor="end", colour=GREY)
    x = 20
    for limit, following in itertools.zip_longest(limits, limits[1:]):
        reached = min(limit, need)
        wide = 150 * reached / need
        picture.line([(x, level(limit)), (x + wide, level(limit))], colour="#2a6fb0", dashed=True)
        picture.text(x + 4, level(limit) - 6, f"limit {limit}")
        picture.line([(x, bottom), (x + wide, level(reached))], colour="#2e7d32", width=2.5)
        ending = "killed" if following else "completed"
        picture.text(x + wide, level(reached) - 6 if not following else bottom + 18, ending,
                     anchor="middle" if following else "start")  # fmt: skip
        x += wide + 40
    turn = 400 + 150 * grow.threshold * grow.start / need
    grown = Quantity(int(grow.start * grow.growth))
    picture.line(
        [(400, level(start)), (turn, level(start)), (turn, level(grown)), (580, level(grown))],
        colour="#2a6fb0",
        dashed=True,
    )
    picture.text(404, level(start) - 6, f"limit {start}")
    picture.text(turn + 6, level(grown) - 6, f"limit {grown}, asked for at {grow.threshold:.0%}")
    picture.line([(400, bottom), (550, level(need))], colour="#2e7d32", width=2.5)
    picture.text(556, level(need) + 4, "completed, never killed")
    picture.write(path)


def joblib(path):
    """What stands under an entry's name, and who changes it."""
    picture = Picture(760, 230, "The life of one name in the shared cache")
    boxes = {
        "nothing": (20, 90, PALE, ("nothing",)),
        "claim": (290, 90, ORANGE, ("claim", "owner, beat counter")),
        "entry": (570, 90, GREEN, ("entry", "value, checksum")),
    }
    for x, y, fill, lines in boxes.values():
        picture.box(x, y, 170, 56, fill, *lines)
    picture.line([(190, 118), (288, 118)], arrow=True)
    picture.text(239, 108, "link", anchor="middle")
    picture.text(239, 136, "one wins", anchor="middle", colour=GREY)
    picture.line([(460, 118), (568, 118)], arrow=True)
    picture.text(514, 108, "rename", anchor="middle")
    picture.text(514, 136, "all or nothing", anchor="middle", colour=GREY)
    picture.line([(375, 90), (375, 44), (105, 44), (105, 88)], arrow=True)
    picture.text(240, 36, "the owner died, or its function raised: moved away", anchor="middle")
    picture.line([(655, 146), (655, 196), (105, 196), (105, 148)], arrow=True)
    picture.text(380, 188, "damaged, cleared or evicted: moved away by rename", anchor="middle")
    picture.write(path)


def clearml(example):
    def write(path):
        topology = read_topology(ROOT / "examples" / "clearml" / f"{example}.yaml")
        draw_topology(topology, check(topology), path)

    return write


TERMINAL = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" \
xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: DejaVu Sans Mono, Consolas, Menlo, monospace; \
font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: DejaVu Sans, Verdana, Arial, sans-serif; font-size: 18px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""Rich's picture of a terminal, with fonts that are on every machine in place of fetched ones."""


def demo(path):
    """What ``mlops-ext demo`` shows, as it printed it when docs/demo.json was made."""
    console = Console(record=True, width=118, file=io.StringIO(), force_terminal=True)
    documents = json.loads((ROOT / "docs/demo.json").read_text(encoding="utf-8"))
    results = [
        Result(**{**each, "claims": [Claim(**claim) for claim in each["claims"]]})
        for each in documents
    ]
    for result in results:
        draw(result, console)
    console.print(verdict(results))
    svg = console.export_svg(title="mlops-ext demo", code_format=TERMINAL, unique_id="demo")
    path.write_text("\n".join(map(str.rstrip, svg.splitlines())) + "\n", encoding="utf-8")


def badges(path):
    """The versions that the tests passed with, and the licence: from the project's own data."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons = [c.rpartition(" ")[2] for c in project["classifiers"] if c[-4:-1] == "3.1"]
    rows = tomllib.loads((ROOT / "tests/versions.toml").read_text(encoding="utf-8"))["row"]
    shown = [("Python", f"{pythons[0]} to {pythons[-1]}")]
    for name in ("zenml", "clearml", "kserve", "joblib"):
        passed = [r["pins"][0].partition("==")[2] for r in rows if r["framework"] == name]
        passed.sort(key=lambda version: [int(part) for part in version.split(".")])
        shown.append((f"tests pass with {name}", f"{passed[0]} to {passed[-1]}"))
    shown.append(("licence", project["license"]))
    gap, boxes, left = 6, [], 0.0
    for label, value in shown:
        for text, fill in ((label, "#555555"), (value, "#2a6fb0")):
            boxes.append((left, 14 + 6.2 * len(text), fill, text))
            left += boxes[-1][1]
        left += gap
    picture = Picture(round(left) - gap, 24, "versions and licence")
    for start, width, fill, text in boxes:
        picture.parts.append(
            f'<rect x="{start:.1f}" y="2" width="{width:.1f}" height="20" fill="{fill}"/>'
            f'<text x="{start + width / 2:.1f}" y="16" font-size="11" text-anchor="middle"'
            f' fill="white">{escape(text)}</text>'
        )
    picture.write(path)


PICTURES = {
    "badges.svg": badges,
    "demo.svg": demo,
    "clearml-deadlock.svg": clearml("classic-deadlock"),
    "clearml-separate-queues.svg": clearml("separate-queues"),
    "joblib-name.svg": joblib,
    "kserve-kubernetes.svg": kubernetes,
    "kserve-shutdown.svg": kserve,
    "zenml-memory.svg": zenml,
}


def main(folder):
    for name, write in PICTURES.items():
        write(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "docs" / "images")
