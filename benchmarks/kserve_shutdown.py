"""Rolling restart under load, and the price of it: KServe's own server against the patched one.

    python benchmarks/kserve_shutdown.py [--json] [--quick] [--rounds 3] [--sets 24]
                                         [--only restarts|starts|cost]

The ways are bare KServe, bare KServe behind Kubernetes' hook ``preStop: sleep 5`` (the signal comes
5 s after the pod is deleted), and the patch. Each restart sends open-loop load (REST v1, v2 and
gRPC, kept and new connections, 150 requests a second) that leaves 2 s after the pod is deleted; the
long requests take 8 s each, 10 a second. Signals to a server that starts come 20 to 60 ms after
start(). The cost is taken without signals, closed loop. Processes of the same code differ by
several percent, so many are compared, for a second each: every set starts two bare and two patched
servers afresh, which take turns, and gives one ratio of the two patched ones' mean to the two bare
ones'. The result is the mean of the middle half of the sets' ratios with its 95 % interval
(bootstrap). The control, the second bare one to the first, is what the same code differs by. The 24
sets take six minutes on two cores.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table
from tests.support.servers.harness import HAS_WORKERS, Server, rolling_restart

WAYS = ("bare", "preStop", "patch")
PRE_STOP_S = 5.0
LONG_S = 8.0
CONCURRENCY = 16
SIDES = {"bare": "bare", "patch": "patch", "bare again": "bare", "patch again": "patch"}
"""What is compared for the cost, and how each is served."""
SERVED = SIDES | {"preStop": "bare"}
MOST_COST = 0.02
"""What a request may cost without a signal, as a share of the throughput."""
VERDICTS = {True: "at most", False: "more than", None: "perhaps more than, perhaps less than"}
"""By whether the whole interval lies below `MOST_COST`; None for on both sides of it."""
COST_KINDS = ("v1-kept", "grpc-kept")
WARM_UP_S = 0.3
RESAMPLES = 5000
FEWEST_SETS = 8  # for a verdict: the bootstrap of fewer is too sure of itself


async def restart(folder, way, workers, model, long):
    load_of = {"rate": 10, "before": 20, "instance": LONG_S} if long else {}
    hook = {"pre_stop_s": PRE_STOP_S} if way == "preStop" else {}
    with Server(folder, way=SERVED[way], workers=workers) as server:
        await server.up()
        load, probes = await rolling_restart(server, model=model, **load_of, **hook)
        status = await server.ended(timeout=40)
        count = load.count()
        return {
            "sent": len(load.answers),
            "lost": count["lost"],
            "stopped": count["stopped"],
            "never_unready": not any(probe[0] == 503 for probe in probes),
            # From the deletion of the pod, as those who wait for a rollout count.
            "exit_s": round(server.seconds + hook.get("pre_stop_s", 0.0), 2)
            if status is not None
            else None,
            "status": status,
        }


def run_restart(folder, way, workers, model, long):
    """As `restart`; a server that does not come up (bare KServe replaces workers that boot slowly)
    is a row of its own, not the end of the benchmark."""
    try:
        return asyncio.run(restart(folder, way, workers, model, long))
    except AssertionError as error:
        return {"failed": str(error).partition("\n")[0]}


def starts(folder, way, number):
    """How servers ended that got a signal while they started: their exit statuses."""
    statuses = []
    for delay in range(number):
        with Server(folder, way=SERVED[way]) as server:
            server.wait_for("start")
            time.sleep(0.02 + 0.04 * delay / max(1, number - 1))
            server.signal()
            statuses.append(server.wait())
    return statuses


def cpu_s(server):
    """CPU seconds of the server so far; other load on the machine does not count."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def rest_caller(port):
    """Asks over one kept connection; 15 lines, because httpx costs more than the server asked."""
    body = b'{"instances":[0.0]}'
    head = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask():
        writer.write(head % len(body) + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert answer.startswith(b"http/1.1 200"), answer
        await reader.readexactly(int(answer.partition(b"content-length:")[2].split()[0]))

    return ask


async def closed_loop(server, client, kind, seconds):
    """Requests a second, the 99th percentile and the server's CPU time for a request in ms."""
    took, end, cpu = [], time.monotonic() + seconds, cpu_s(server)

    async def caller():
        ask = (
            (lambda: client.ask(kind))
            if kind == "grpc-kept"
            else await rest_caller(server.http_port)
        )
        while (begun := time.monotonic()) < end:
            await ask()
            took.append(time.monotonic() - begun)

    begun = time.monotonic()
    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    rate = len(took) / (time.monotonic() - begun)
    p99 = statistics.quantiles(took, n=100)[98]
    return rate, 1000 * p99, 1000 * (cpu_s(server) - cpu) / len(took)


async def one_set(folder, number, rounds, seconds):
    """What each side of a set of fresh servers took: requests, seconds and CPU for each kind.

    The servers take turns, in an order of chance and back again, so that a machine that slows down
    slows all of them. The servers of a set share a hash seed, and the next set has another.
    """
    order = random.Random(number).sample(list(SIDES), len(SIDES))  # a repeatable order
    flags, same = ("--sleep", "0.0005"), {"PYTHONHASHSEED": str(number)}
    async with contextlib.AsyncExitStack() as stack:
        sides = {}
        for side in order:
            server = Server(folder, way=SIDES[side], flags=flags, environment=same)
            stack.enter_context(server)
            sides[side] = (server, server.client())
            stack.push_async_callback(sides[side][1].close)
        for server, _ in sides.values():
            await server.up()
        taken = {kind: {side: [] for side in SIDES} for kind in COST_KINDS}
        for kind in COST_KINDS:
            for side in order:
                await closed_loop(*sides[side], kind, WARM_UP_S)
            for turn in range(rounds):
                for side in order[:: 1 if turn % 2 == 0 else -1]:
                    taken[kind][side].append(await closed_loop(*sides[side], kind, seconds))
        return taken


def cost(folder, sets, rounds, seconds):
    """What a request costs without a signal: the ratios of the sets, their middle, its interval."""
    taken = [asyncio.run(one_set(folder, number, rounds, seconds)) for number in range(sets)]
    return {kind: compared([each[kind] for each in taken]) for kind in COST_KINDS}


def layer_us():
    """CPU time of our layer for a REST request, in microseconds: the smallest of many rounds."""
    from kserve_ext.endpoints.asgi import gated
    from kserve_ext.shutdown.drain import Drain

    async def app(_, __, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        pass

    async def measured():
        scope = {"type": "http", "method": "POST", "path": "/v1/models/m:predict"}
        sides = {"bare": app, "patch": gated(app, Drain(may_kill=False))}
        least = dict.fromkeys(sides, math.inf)
        for _ in range(100):
            for side, called in sides.items():
                begun = time.process_time()
                for _ in range(2000):
                    await called(scope, None, send)
                least[side] = min(least[side], (time.process_time() - begun) / 2000)
        return round(1e6 * (least["patch"] - least["bare"]), 2)

    return asyncio.run(measured())


def compared(sets):
    """The patched sides against the bare ones, and the same code against itself."""

    def of(one, names, at):
        return statistics.fmean(statistics.fmean(turn[at] for turn in one[name]) for name in names)

    bare, patched = ("bare", "bare again"), ("patch", "patch again")
    pairs = {
        "ratio": (patched, bare),
        "control": (bare[1:], bare[:1]),
        "control_patched": (patched[1:], patched[:1]),
    }
    result = {
        "per_s": {
            side: round(statistics.median(of(s, (side,), 0) for s in sets)) for side in SIDES
        },
        "bare_cpu_us": round(1000 * statistics.median(of(s, bare, 2) for s in sets)),
        "sets": len(sets),
    }
    for at, name in enumerate(("throughput", "p99", "cpu")):
        result[name] = {}
        for what, (over, under) in pairs.items():
            ratios = [of(one, over, at) / of(one, under, at) for one in sets]
            result[name][what] = round(middle(ratios), 4)
            result[name][f"{what}_interval"] = interval(ratios)
    low, high = (value >= 1 - MOST_COST for value in result["throughput"]["ratio_interval"])
    return result | {"holds": low if low == high and len(sets) >= FEWEST_SETS else None}


def middle(ratios):
    """The mean of the middle half of *ratios*: surer than the median, and as deaf to a burst."""
    cut = len(ratios) // 4
    return statistics.fmean(sorted(ratios)[cut : len(ratios) - cut])


def interval(ratios):
    """Where the middle of *ratios* lies with 95 % certainty, by the bootstrap."""
    chance = random.Random(0)  # the same answer for the same ratios
    middles = sorted(middle(chance.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return [round(middles[int(RESAMPLES * share)], 4) for share in (0.025, 0.975)]


def measure(quick, only, rounds, sets):
    cells = [(w, m, False) for w in (1, 2) for m in ("m", "c") if w == 1 or HAS_WORKERS]
    cells += [(w, "m", True) for w in (1, 2) if w == 1 or HAS_WORKERS]
    if quick:
        cells = [cells[0], cells[-1]]
    result = {
        "kserve": version("kserve"),
        "cores": os.cpu_count(),
        "restarts": [],
        "starts": {},
        "cost": {},
    }
    with tempfile.TemporaryDirectory() as name:
        for workers, model, long in cells if only in (None, "restarts") else []:
            for way in WAYS:
                runs = [run_restart(Path(name), way, workers, model, long) for _ in range(rounds)]
                kind = f"{LONG_S:.0f} s" if long else {"m": "async", "c": "CPU-bound"}[model]
                row = {"way": way, "workers": workers, "model": kind, "runs": runs}
                result["restarts"].append(row)
        for way in ("bare", "patch") if only in (None, "starts") else ():
            result["starts"][way] = starts(Path(name), way, 3 if quick else 20)
        if only in (None, "cost"):
            result["layer_us"] = layer_us()
            result["cost"] = cost(Path(name), 2 if quick else sets, 2, 0.5)
    return result


def show(result):
    console = Console()
    title = f"KServe {result['kserve']}, rolling restart, {result['cores']} cores"
    columns = ("server", "workers", "model", "sent", "lost", "by a stopped model", "exit after")
    table = Table(*columns, title=title)
    for row in result["restarts"]:
        runs = row["runs"]
        exits = [run["exit_s"] for run in runs if run.get("exit_s") is not None]
        cells = [
            " ".join(str(run.get(key, run.get("failed"))) for run in runs)
            for key in ("sent", "lost", "stopped")
        ]
        ended = f"{statistics.median(exits):.1f} s" if exits else "never (30 s)"
        table.add_row(row["way"], str(row["workers"]), row["model"], *cells, ended)
    if result["restarts"]:
        console.print(table)
    for way, statuses in result["starts"].items():
        crashed = sum(status < 0 for status in statuses)
        console.print(f"{way}: {crashed} of {len(statuses)} crashed on a signal while they started")
    for kind, row in result["cost"].items():
        if kind == "v1-kept":
            share = result["layer_us"] / row["bare_cpu_us"]
            console.print(
                f"our layer takes {result['layer_us']} us of a REST request, for which a bare"
                f" server computes {row['bare_cpu_us']} us: {share:.2%}"
            )
        console.print(f"{kind}: {row['per_s']} requests/s, {row['sets']} sets of fresh servers")
        for name in ("throughput", "p99", "cpu"):
            told = (
                f"{words} x{row[name][what]} [{row[name][f'{what}_interval'][0]},"
                f" {row[name][f'{what}_interval'][1]}]"
                for what, words in (
                    ("ratio", "patched to bare"),
                    ("control", "bare to bare"),
                    ("control_patched", "patched to patched"),
                )
            )
            console.print(f"  {name}: {', '.join(told)}", soft_wrap=True)
        console.print(f"  it costs {VERDICTS[row['holds']]} {MOST_COST:.0%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two kinds of restart, once")
    parser.add_argument("--rounds", type=int, default=3, help="restarts of each kind")
    parser.add_argument("--sets", type=int, default=24, help="sets of fresh servers for the cost")
    parser.add_argument("--only", choices=["restarts", "starts", "cost"])
    args = parser.parse_args()
    result = measure(args.quick, args.only, 1 if args.quick else args.rounds, args.sets)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
