"""Every benchmark, one after the other, in one table with machine and versions.

    python benchmarks/run_all.py [--quick] [--json] [--traces TRACE.csv …]

The memory policy is measured on traces, which are not part of this repository; without
``--traces`` it is left out, and that is said. A benchmark that fails, or takes longer than
``--limit-min``, is named, and the others go on; the exit status is then 1. Nothing else may run on
the machine meanwhile.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from _summary import rows

HERE = Path(__file__).resolve().parent
BENCHMARKS = (
    "joblib_store",
    "kserve_shutdown",
    "clearml_check",
    "zenml_oom",
    "core_start",
    "memory_policy",
)
DISTRIBUTIONS = ("mlops-ext", "zenml", "clearml", "kserve", "joblib", "diskcache", "kubernetes")


def machine():
    """What the figures were measured on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        **{name: version(name) for name in DISTRIBUTIONS},
    }


def processor():
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor()


def version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def run(name, arguments, limit_s):
    """What the benchmark's ``--json`` gave (or None), and what went wrong (or "")."""
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments, "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return None, f"not done after {limit_s / 60:g} min"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left behind
    problem = f"exit status {process.returncode}" if process.returncode else ""
    try:
        return json.loads(output), problem
    except ValueError:
        return None, problem or "it printed no JSON"


def arguments_of(name, options):
    """The benchmark's arguments, or None where it is left out."""
    if name == "memory_policy":
        quick = ["--quick"] if options.quick else []
        return [*options.traces, *quick] if options.traces else None
    return ["--quick"] if options.quick else []


def table_of(found):
    """One table of all that was *found*, by benchmark."""
    table = Table("benchmark", "measured", "without", "with mlops-ext")
    for name, result in found.items():
        for number, texts in enumerate(rows(name, result)):
            table.add_row("" if number else name, *texts)
        table.add_section()
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--traces", nargs="+", default=[])
    parser.add_argument("--limit-min", type=float, default=60.0, help="for each benchmark")
    options = parser.parse_args()
    told = Console(stderr=True)
    found, problems = {}, {}
    for name in BENCHMARKS:
        arguments = arguments_of(name, options)
        if arguments is None:
            told.print(f"{name}: left out, no --traces given")
            continue
        told.print(f"{name} …")
        result, problem = run(name, arguments, 60 * options.limit_min)
        if result is not None:
            found[name] = result
        if problem:
            problems[name] = problem
    if options.json:
        print(json.dumps({"machine": machine(), **found, "failed": problems}, indent=2))
    else:
        console = Console(width=140)
        console.print(", ".join(f"{key}: {value}" for key, value in machine().items()))
        console.print(table_of(found))
    for name, problem in problems.items():
        told.print(f"{name} failed: {problem}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
