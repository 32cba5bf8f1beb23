"""A network file system for tests: a FUSE passthrough, one process a mount.

    python passthrough.py BACKING MOUNTPOINT PLAN ATTRIBUTE_SECONDS

The kernel caches attributes, names and missing names for ATTRIBUTE_SECONDS, as an NFS client does.
PLAN is a JSON file that may change at any time:

    {"round_trip_s": 0.0005,
     "lose": {"operations": ["link", ...], "rate": 0.05, "errno": 5},
     "skew_s": 3600,
     "fail": [{"operations": ["open"], "errno": 116, "rate": 0.1, "times": 3, "name": "text"}]}

A lost reply takes place and then fails; a failure does not take place. `times` bounds a failure,
`name` restricts it to paths that hold the text. Without `rate` it is certain. `skew_s` is added to the times of files.
"""

# ruff: noqa: PTH115, PTH116, PTH211, PTH123, PTH102, PTH106, PTH108, PTH104, PTH101

import errno
import functools
import json
import os
import random
import sys
import threading
import time

import mfusepy


class Plan:
    """The faults to inject, read anew when the file changes."""

    def __init__(self, path):
        self.path, self.stamp, self.data = path, None, {}
        self.left = {}
        self.lock = threading.Lock()

    def current(self):
        try:
            stamp = os.stat(self.path).st_mtime_ns
        except OSError:
            return self.data
        with self.lock:
            if stamp != self.stamp:
                try:
                    with open(self.path) as file:
                        self.data = json.load(file)
                    self.stamp = stamp
                    self.left = {
                        number: rule["times"]
                        for number, rule in enumerate(self.data.get("fail", []))
                        if "times" in rule
                    }
                except ValueError:
                    pass  # half written; the next operation reads it
            return self.data

    def before(self, operation, paths):
        data = self.current()
        if data.get("round_trip_s"):
            time.sleep(data["round_trip_s"])
        for number, rule in enumerate(data.get("fail", [])):
            if operation not in rule["operations"]:
                continue
            if "name" in rule and not any(rule["name"] in str(path) for path in paths):
                continue
            if random.random() >= rule.get("rate", 1.0):
                continue
            with self.lock:
                if self.left.get(number, 1) <= 0:
                    continue
                if number in self.left:
                    self.left[number] -= 1
            raise mfusepy.FuseOSError(rule["errno"])

    def after(self, operation):
        lose = self.current().get("lose")
        if lose and operation in lose["operations"] and random.random() < lose["rate"]:
            raise mfusepy.FuseOSError(lose.get("errno", errno.EIO))


def faulty(function):
    """Runs an operation with the round trip, the failures and the lost replies of the plan."""

    @functools.wraps(function)  # mfusepy looks at the parameters
    def run(self, path, *args):
        self.plan.before(function.__name__, (path, *args[:1]))
        done = function(self, path, *args)
        self.plan.after(function.__name__)
        return done

    return run


class Passthrough(mfusepy.Operations):
    use_ns = True

    def __init__(self, backing, plan):
        self.backing, self.plan = backing, Plan(plan)

    def _real(self, path):
        return self.backing + path

    @faulty
    def getattr(self, path, fh=None):
        st = os.lstat(self._real(path))
        skew_ns = int(self.plan.current().get("skew_s", 0) * 1e9)
        names = ("mode", "ino", "nlink", "uid", "gid", "size", "blocks")
        found = {f"st_{name}": getattr(st, f"st_{name}") for name in names}
        times = {n: getattr(st, f"st_{n}_ns") + skew_ns for n in ("atime", "mtime", "ctime")}
        return found | {f"st_{name}": time_ns for name, time_ns in times.items()}

    @faulty
    def readdir(self, path, fh):
        real = self._real(path)
        with os.scandir(real) as entries:
            found = [(entry.name, entry.inode()) for entry in entries]
        own = [(name, os.stat(f"{real}/{name}").st_ino) for name in (".", "..")]
        return [(name, {"st_ino": number}, 0) for name, number in own + found]

    @faulty
    def open(self, path, flags):
        return os.open(self._real(path), flags)

    @faulty
    def create(self, path, mode, flags):
        asked = flags & (os.O_EXCL | os.O_TRUNC)
        return os.open(self._real(path), os.O_RDWR | os.O_CREAT | asked, mode)

    @faulty
    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

    @faulty
    def write(self, path, data, offset, fh):
        return os.pwrite(fh, data, offset)

    @faulty
    def flush(self, path, fh):
        return 0

    def release(self, path, fh):
        os.close(fh)
        return 0

    @faulty
    def fsync(self, path, datasync, fh):
        os.fsync(fh)
        return 0

    @faulty
    def truncate(self, path, length, fh=None):
        os.truncate(self._real(path), length)

    @faulty
    def mkdir(self, path, mode):
        os.mkdir(self._real(path), mode)

    @faulty
    def rmdir(self, path):
        os.rmdir(self._real(path))

    @faulty
    def unlink(self, path):
        os.unlink(self._real(path))

    @faulty
    def rename(self, old, new):
        os.rename(self._real(old), self._real(new))

    @faulty
    def link(self, target, source):
        os.link(self._real(source), self._real(target))

    @faulty
    def symlink(self, target, source):
        os.symlink(source, self._real(target))

    @faulty
    def readlink(self, path):
        return os.readlink(self._real(path))

    @faulty
    def mknod(self, path, mode, dev):
        os.mknod(self._real(path), mode, dev)

    @faulty
    def chmod(self, path, mode):
        os.chmod(self._real(path), mode)

    @faulty
    def utimens(self, path, times=None):
        os.utime(self._real(path), ns=times)

    def statfs(self, path):
        found = os.statvfs(self._real(path))
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}

    chown = None


if __name__ == "__main__":
    backing, mountpoint, plan, seconds = sys.argv[1:]
    mfusepy.FUSE(
        Passthrough(os.path.realpath(backing), plan),
        mountpoint,
        foreground=True,
        use_ino=True,  # names that are links to one file show one number, as with NFS
        attr_timeout=float(seconds),
        entry_timeout=float(seconds),
        negative_timeout=float(seconds),
    )
