"""Rolling restart under load, and the price of it: KServe's own server against the patched one.

    python benchmarks/kserve_shutdown.py [--json] [--quick]

Each restart sends open-loop load (REST v1, v2 and gRPC, kept and new connections, 150 requests a
second) that leaves 2 s after SIGTERM. Throughput and p99 are taken without signals, closed loop,
bare and patched alternating; the ratio is the median of the pairs.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table
from tests.servers.harness import HAS_WORKERS, Server, rolling_restart

WAYS = ("bare", "patch")
CONCURRENCY = 16


async def restart(folder, way, workers, model):
    with Server(folder, way=way, workers=workers) as server:
        await server.up()
        load, probes = await rolling_restart(server, model=model)
        status = await server.ended(timeout=30)
        count = load.count()
        return {
            "sent": len(load.answers),
            "lost": count["lost"],
            "stopped": count["stopped"],
            "never_unready": not any(probe[0] == 503 for probe in probes),
            "exit_s": round(server.seconds, 2) if status is not None else None,
            "status": status,
        }


def run_restart(folder, way, workers, model):
    """As `restart`; a server that does not come up (bare KServe replaces workers that boot slowly)
    is a row of its own, not the end of the benchmark."""
    try:
        return asyncio.run(restart(folder, way, workers, model))
    except AssertionError as error:
        return {"failed": str(error).partition("\n")[0]}


def cpu_s(server):
    """CPU seconds of the server so far; other load on the machine does not count."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def closed_loop(server, client, kind, seconds):
    """Requests a second, the 99th percentile and the server's CPU time for a request in ms."""
    took, end, cpu = [], time.monotonic() + seconds, cpu_s(server)

    async def caller():
        while (begun := time.monotonic()) < end:
            await client.ask(kind)
            took.append(time.monotonic() - begun)

    begun = time.monotonic()
    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    rate = len(took) / (time.monotonic() - begun)
    p99 = statistics.quantiles(took, n=100)[98]
    return rate, 1000 * p99, 1000 * (cpu_s(server) - cpu) / len(took)


async def throughput(folder, kind, rounds, seconds):
    flags = ("--sleep", "0.0005")
    bare_server, our_server = (Server(folder, way=way, flags=flags) for way in WAYS)
    with bare_server as bare, our_server as ours:
        sides = {}
        for way, server in zip(WAYS, (bare, ours), strict=True):
            await server.up()
            sides[way] = (server, server.client())
            await closed_loop(*sides[way], kind, min(1.0, seconds))
        pairs = []
        for number in range(rounds):
            order = WAYS if number % 2 == 0 else WAYS[::-1]
            pairs.append({way: await closed_loop(*sides[way], kind, seconds) for way in order})
        for _, client in sides.values():
            await client.close()
    rate = {way: round(statistics.median(p[way][0] for p in pairs)) for way in WAYS}
    ratios = [statistics.median(p["patch"][i] / p["bare"][i] for p in pairs) for i in range(3)]
    return {
        "bare_per_s": rate["bare"],
        "patch_per_s": rate["patch"],
        "throughput_ratio": round(ratios[0], 4),
        "p99_ratio": round(ratios[1], 4),
        "cpu_ratio": round(ratios[2], 4),
        "pairs": rounds,
    }


def measure(quick):
    rounds = 1 if quick else 3
    cells = [(w, m) for w in (1, 2) for m in ("m", "c") if w == 1 or HAS_WORKERS]
    result = {
        "kserve": version("kserve"),
        "cores": os.cpu_count(),
        "restarts": [],
        "throughput": {},
    }
    with tempfile.TemporaryDirectory() as name:
        for workers, model in cells[:1] if quick else cells:
            for way in WAYS:
                runs = [run_restart(Path(name), way, workers, model) for _ in range(rounds)]
                kind = {"m": "async", "c": "CPU-bound"}[model]
                row = {"way": way, "workers": workers, "model": kind, "runs": runs}
                result["restarts"].append(row)
        for kind in ("v1-kept", "grpc-kept"):
            amount = (2, 1.0) if quick else (15, 2.0)
            result["throughput"][kind] = asyncio.run(throughput(Path(name), kind, *amount))
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
    console.print(table)
    for kind, row in result["throughput"].items():
        console.print(
            f"{kind}: {row['bare_per_s']} -> {row['patch_per_s']} requests/s,"
            f" throughput x{row['throughput_ratio']}, p99 x{row['p99_ratio']},"
            f" CPU for a request x{row['cpu_ratio']}"
            f" (medians of {row['pairs']} pairs)"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    result = measure(args.quick)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
