"""Every benchmark, one after the other, under one heading with machine and versions.

    python benchmarks/run_all.py [--quick] [--json] [--traces TRACE.csv …]

The memory policy is measured on traces, which are not part of this repository; without
``--traces`` it is left out, and that is said. Nothing else may run on the machine meanwhile.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
BENCHMARKS = ("joblib_store", "kserve_shutdown", "clearml_check", "zenml_oom", "memory_policy")
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


def run(name, arguments, *, as_json):
    """The benchmark's output (its JSON, or its table), or None with its error on stderr."""
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    command += ["--json"] if as_json else []
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )
    if done.returncode:
        return None
    return json.loads(done.stdout) if as_json else done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--traces", nargs="+", default=[])
    options = parser.parse_args()
    console = Console(stderr=options.json, width=120)
    found = {"machine": machine()}
    table = Table("machine and versions", "", show_header=False)
    for key, value in found["machine"].items():
        table.add_row(key, str(value))
    console.print(table)
    failed = []
    for name in BENCHMARKS:
        if name == "memory_policy":
            if not options.traces:
                console.print("memory_policy: left out, no --traces given")
                continue
            arguments = options.traces
        else:
            arguments = ["--quick"] if options.quick else []
        console.print(f"== {name}")
        found[name] = run(name, arguments, as_json=options.json)
        if found[name] is None:
            failed.append(name)
        elif not options.json:
            sys.stdout.write(found[name])
            sys.stdout.flush()
    if options.json:
        print(json.dumps(found, indent=2))
    if failed:
        console.print(f"failed: {', '.join(failed)}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
