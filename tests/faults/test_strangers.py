"""Another user races with removal, reaping and clearing, and no file outside is lost.

The victim (uid 1234) removes what the stranger (uid 65534) may change meanwhile: the stranger swaps
directories for links to the victim's home as fast as the system does it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

RACE = """
import ctypes, os, pathlib, shutil, signal, stat, sys, time
import joblib, joblib_ext, joblib_ext.backend, json, re
__import__("tomllib" if sys.version_info >= (3, 11) else "tomli")
from mlops_ext import files, tempdirs
from mlops_ext.processes import identity

base, way, rounds = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
VICTIM, STRANGER = 1234, 65534
EXCHANGE = 2
libc = ctypes.CDLL(None, use_errno=True)
home, shared, root = base / "home", base / "shared", base / "root"
for folder in (home, shared, root):
    folder.mkdir()
NAMES = [f"thesis-{number}" for number in range(50)]
for name in NAMES:
    (home / name).write_text("x")
    (home / name).chmod(0o600)
    os.chown(home / name, VICTIM, VICTIM)
os.chown(home, VICTIM, VICTIM)
home.chmod(0o700)
shared.chmod(0o777)
root.chmod(0o777)  # without the sticky bit, as a Kubernetes emptyDir


def swap(place, link):
    "Exchange a directory for the link, and back."
    for _ in range(2):
        if libc.renameat2(-100, os.fsencode(place), -100, os.fsencode(link), EXCHANGE):
            return


def stranger():
    os.setgid(STRANGER)
    os.setuid(STRANGER)
    os.umask(0)
    number = 0
    while True:
        number += 1
        link = (root if way == "reap" else shared) / f"link-{number % 7}"
        try:
            if not os.path.lexists(link):
                os.symlink(home, link)
            if way in ("remove", "naive"):
                tree = shared / "tree"
                tree.mkdir(exist_ok=True)
                (tree / "d").mkdir(exist_ok=True)
                for name in NAMES[:10]:
                    (tree / "d" / name).touch()
                swap(tree / "d", link)
            elif way == "reap":
                for name in os.listdir(root):
                    if name.startswith("mlops-ext-"):
                        swap(root / name, link)
            else:
                for folder, folders, _ in os.walk(shared / "cache"):
                    for name in folders:
                        swap(os.path.join(folder, name), link)
        except OSError:
            continue


def naive(tree):
    "Removal by paths, as it must not be: look, list, unlink."
    try:
        for entry in os.listdir(tree):
            path = os.path.join(tree, entry)
            if stat.S_ISDIR(os.lstat(path).st_mode):
                for name in os.listdir(path):
                    os.unlink(os.path.join(path, name))
                os.rmdir(path)
            else:
                os.unlink(path)
    except OSError:
        pass


def value(x):
    return [x] * 100


def dead():
    "A directory whose owner has died, by its start time."
    made = tempdirs.RunDirectory.create(root, "run")
    (made.path / "sub").mkdir()
    for name in NAMES[:10]:
        (made.path / name).touch()
    text = made.marker.read_text()
    made.marker.write_text(text.replace(f'"{identity.own_identity().started}"', '"1"'))
    os.close(made._descriptor)


child = os.fork()
if child == 0:
    stranger()
os.setgid(VICTIM)
os.seteuid(VICTIM)
os.umask(0)
done = 0
try:
    for done in range(1, rounds + 1):
        if way == "remove":
            files.remove(shared / "tree", patience_s=0)
        elif way == "naive":
            naive(shared / "tree")
        elif way == "reap":
            if len(os.listdir(root)) < 20:
                try:
                    dead()
                except Exception:  # the stranger has swapped it for a link meanwhile
                    pass
            tempdirs.reap(root)
        else:
            try:
                memory = joblib.Memory(shared / "cache", backend="shared", verbose=0)
                memory.cache(value)(done)
                memory.clear(warn=False)
            except Exception:
                pass
        if not set(NAMES) <= set(os.listdir(home)):
            break
finally:
    os.seteuid(0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
left = [home / name for name in NAMES if (home / name).exists()]
modes = {oct(stat.S_IMODE(path.stat().st_mode)) for path in left}
print(way, done, len(left), *modes, oct(stat.S_IMODE(home.stat().st_mode)))
"""

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs renameat2"),
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to be two users"
    ),
]


@pytest.fixture
def base():
    """A folder that every user can reach; pytest's own are for its user only."""
    folder = Path(tempfile.mkdtemp(prefix="mlops-ext-race-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def race(base, way, rounds):
    """What is left of the victim's 50 files and their modes."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RACE, str(base), way, str(rounds)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(("way", "rounds"), [("remove", 1000), ("reap", 200), ("clear", 30)])
def test_no_file_outside_is_lost_to_a_race(base, way, rounds):
    assert race(base, way, rounds) == [way, str(rounds), "50", "0o600", "0o700"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("way", "rounds"), [("remove", 100_000), ("reap", 20_000), ("clear", 3_000)]
)
def test_no_file_outside_is_lost_in_minutes_of_a_race(base, way, rounds):
    assert race(base, way, rounds) == [way, str(rounds), "50", "0o600", "0o700"]
