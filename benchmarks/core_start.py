"""What ``mlops-ext run`` costs each Python interpreter below it: CPU time over a bare start.

Run: python benchmarks/core_start.py [--json] [--quick]

Bare and armed starts alternate, so that a busy machine slows both down; each figure is the median
over the rounds of the CPU time (user and system) that the interpreter used. "armed" has all four
frameworks armed and imports none. Modules counts what is in ``sys.modules`` beyond a bare start.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys

from mlops_ext.cli.run import child_environment

FRAMEWORKS = ["zenml", "clearml", "kserve", "joblib"]
ROUNDS, QUICK_ROUNDS = 60, 8
LIMIT_MS = 10.0


def cpu_ms(environ):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "pass"], env=environ, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def modules(environ):
    code = "import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ways = {"bare": bare, "armed": child_environment(FRAMEWORKS)}
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, environ in ways.items():
            times[name].append(cpu_ms(environ))
    medians = {name: statistics.median(values) for name, values in times.items()}
    found = {
        **{f"{name}_ms": round(value, 1) for name, value in medians.items()},
        "more_ms": round(medians["armed"] - medians["bare"], 1),
        "modules": len(modules(ways["armed"]) - modules(bare)),
    }
    print(json.dumps(found) if options.json else f"{found}; at most {LIMIT_MS} ms more")
    sys.exit(0 if found["more_ms"] <= LIMIT_MS else 1)


if __name__ == "__main__":
    main()
