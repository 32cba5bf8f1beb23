"""One line for each thing a benchmark measured: what, without mlops-ext, with it."""

import statistics

__all__ = ["rows"]


def rows(name, found):
    """The (what, without, with) texts of the benchmark *name*, whose ``--json`` gave *found*."""
    return list(_ROWS[name](found))


def _joblib_store(found):
    for row in found:
        unit, form = (f" {row['unit']}", ",.1f") if row["unit"] else ("", ",.0f")  # else a count
        texts = {store: f"{value:{form}}{unit}" for store, value in row["medians"].items()}
        others = [f"{store} {texts[store]}" for store in ("joblib", "diskcache") if store in texts]
        yield row["row"], ", ".join(others), texts.get("shared", "-")


def _kserve_shutdown(found):
    cells = {}
    for row in found["restarts"]:
        cells.setdefault((row["model"], row["workers"]), {})[row["way"]] = row["runs"]
    for (model, workers), ways in cells.items():
        what = f"rolling restart, {model} model, workers {workers}: lost / by a stopped model"
        yield what, _restarts(ways.get("bare", [])), _restarts(ways.get("patch", []))
    for kind, row in found["cost"].items():
        rate, pair = row["per_s"], row["throughput"]
        ours = f"{rate['patch']} requests/s (x{pair['ratio']} of bare; control x{pair['control']})"
        yield f"no signal, {kind}", f"{rate['bare']} requests/s", ours


def _restarts(runs):
    return ", ".join(
        run.get("failed") or f"{run['lost']} / {run['stopped']} of {run['sent']}" for run in runs
    )


def _clearml_check(found):
    size = f"{found['workers']:,} workers, {found['queues']:,} queues, {found['steps']:,} steps"
    for row in found["rows"]:
        requests = f", {row['requests']} requests" if row["requests"] else ""
        yield (
            f"check, {size}: {row['plan']}",
            "-",
            f"{row['verdict']} in {row['seconds']:.3f} s, {row['peak_mib']:.0f} MiB{requests}",
        )


def _zenml_oom(found):
    calls = found["api_calls_of_a_step"]
    yield "API calls of a step", str(calls["bare"]), str(calls["ours"])
    kill = found["kill_to_next_pod"]
    texts = [f"{kill[way]['seconds']:.2f} s, {kill[way]['calls']} calls" for way in _WAYS]
    yield "from a kill to the next pod", *texts
    side = found["side_by_side"]
    texts = [
        f"{row['completed']} done in {row['seconds']:.0f} s, {row['calls_per_step']} calls a step"
        for row in (side[way] for way in _WAYS)
    ]
    yield f"{side['ours']['steps']} steps side by side", *texts


_WAYS = ("bare", "ours")


def _memory_policy(found):
    totals = {}
    for row in found["results"]:
        waste, kills = totals.get(row["method"], (0.0, 0.0))
        totals[row["method"]] = (waste + row["waste_gbh"], kills + row["kills"])
    ours = {name: total for name, total in totals.items() if name.startswith("ours")}
    others = {name: total for name, total in totals.items() if name not in ours}
    best = min(others, key=lambda name: others[name][0], default=None)
    least = "-" if best is None else f"{best}, the least: {_waste(others[best])}"
    middle = "-" if best is None else f"median of {len(others)}: {_waste(_median(others.values()))}"
    for name, total in ours.items():
        yield f"GB·h wasted / kills, {name}", f"{least}; {middle}", _waste(total)


def _waste(total):
    return f"{total[0]:,.0f} / {total[1]:,.0f}"


def _median(totals):
    return tuple(statistics.median(part) for part in zip(*totals, strict=True))


def _core_start(found):
    more = f"{found['armed_ms']} ms (+{found['more_ms']}), {found['modules']} modules more"
    yield "CPU time of a Python's start below mlops-ext run", f"{found['bare_ms']} ms", more


_ROWS = {
    "joblib_store": _joblib_store,
    "kserve_shutdown": _kserve_shutdown,
    "clearml_check": _clearml_check,
    "zenml_oom": _zenml_oom,
    "core_start": _core_start,
    "memory_policy": _memory_policy,
}
