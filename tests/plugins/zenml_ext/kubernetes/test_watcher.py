"""The process that watches a step's memory: its report, its end, and a step that hangs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zenml_ext.kubernetes.growth import Growth
from zenml_ext.kubernetes.watcher import Hung, Report, Sampler, Watch, write_report
from zenml_ext.memory.cgroup import MemoryCgroup, MemoryReading

MIB = 1 << 20
needs_cgroup = pytest.mark.skipif(MemoryCgroup.own() is None, reason="no memory cgroup here")


class Cgroup:
    """Gives these (MiB in use, kills) one after the other."""

    def __init__(self, *states, limit=None):
        self.states, self.limit = list(states), limit

    def read(self):
        size, kills = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return MemoryReading(limit=self.limit, used=size * MIB, oom_kills=kills)


def sampler(*states):
    growth = Growth(rule=None, resizer=None)
    return Sampler(cgroup=Cgroup(*states), growth=growth, began=0.0)


def test_the_peak_is_kept_and_kills_of_the_watchers_own_time_are_counted():
    one = sampler((10, 3), (500, 3), (100, 4))
    assert one.poll(1.0)
    assert one.poll(2.0)
    assert (one.report.peak, one.report.oom_kills) == (500 * MIB, 1)
    assert not one.poll(3.0)  # no news


def test_the_curve_of_a_long_climb_is_kept_in_few_points():
    one = sampler(*((100 + step, 0) for step in range(3000)))
    for second in range(3000):
        one.poll(float(second))
    assert 16 <= len(one.report.curve) <= 33
    assert one.report.curve[0] == (0.0, 101 * MIB)
    assert one.report.curve[-1][1] > 0.9 * one.report.peak


def test_the_report_can_be_read_after_every_write(tmp_path):
    path = tmp_path / "termination-log"
    path.touch()
    for peak in (10**12, 5, 10**9):
        write_report(path, Report(peak=peak).text())
        assert json.loads(path.read_text()) == {"mlops-ext": 1, "peak": peak}
    write_report(tmp_path / "none", Report().text())  # no file, no report


@needs_cgroup
def test_a_process_is_watched_until_it_says_that_it_is_over(tmp_path):
    path = tmp_path / "termination-log"
    path.touch()
    with Watch(MemoryCgroup.own(), None, report=path) as watch:
        process = watch._process
        while not path.read_text():
            time.sleep(0.05)
        assert watch.look().peak > 0
    assert process.returncode == 0
    assert json.loads(path.read_text())["peak"] == watch.look().peak > 0


@needs_cgroup
def test_what_anybody_prints_as_python_starts_ends_no_step(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("print('hello', flush=True)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    report = tmp_path / "report"
    report.touch()
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from zenml_ext.kubernetes.watcher import Watch\n"
        "from zenml_ext.memory.cgroup import MemoryCgroup\n"
        "path = Path(sys.argv[1])\n"
        "with Watch(MemoryCgroup.own(), None, report=path):\n"
        "    while not path.read_text():\n"
        "        time.sleep(0.05)\n"
        "print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(report)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("hello") == 2  # this process and the one that watches
    assert done.stdout.endswith("done\n")


@needs_cgroup
def test_the_watcher_ends_with_the_process_that_it_watches(tmp_path):
    code = (
        "import os\n"
        "from zenml_ext.kubernetes.watcher import Watch\n"
        "from zenml_ext.memory.cgroup import MemoryCgroup\n"
        "watch = Watch(MemoryCgroup.own(), None).__enter__()\n"
        "print(watch._process.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    gone = Path(f"/proc/{done.stdout.strip()}")
    while gone.exists():
        time.sleep(0.05)


@needs_cgroup
def test_a_step_that_waits_for_a_killed_child_is_ended_when_the_watcher_says_so(tmp_path):
    code = (
        "import time\n"
        "from zenml_ext.kubernetes import watcher\n"
        "import io, os\n"
        "read, write = os.pipe()\n"
        "os.write(write, b'!')\n"
        "watcher._obey(read)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 137


@pytest.mark.parametrize(("cpu_per_s", "hangs"), [(0.005, True), (0.2, False)])
def test_only_a_container_that_comes_to_a_standstill_hangs(cpu_per_s, hangs):
    class Group:
        cpu = 0.0

        def cpu_s(self):
            self.cpu += cpu_per_s / 5
            return self.cpu

    hung, group = Hung(), Group()
    assert any(hung.is_so(group, fifth / 5) for fifth in range(5 * 60)) is hangs


def test_the_cpu_time_of_a_group_is_that_of_its_processes(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        (tmp_path / "cgroup.procs").write_text(f"{process.pid}\n{os.getpid()}\n")
        group = MemoryCgroup(path=tmp_path, version=2)
        begin = group.cpu_s()
        while group.cpu_s() < begin + 0.2:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
