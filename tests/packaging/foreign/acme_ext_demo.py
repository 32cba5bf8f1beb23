"""Demos: one whose claim holds, and four that must not pass."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlops_ext.demo import Claim, Progress


def demo():
    """Hold."""
    print("noise of a framework")
    yield Progress(text="asking")
    yield Claim(what="answers", before="wrong", after="right", holds=True)


def false_claim():
    """Claim what does not hold."""
    yield Claim(what="answers", before="wrong", after="wrong", holds=False)


def crash():
    """Break down after a claim that holds."""
    yield Claim(what="answers", before="wrong", after="right", holds=True)
    raise RuntimeError("the demo broke down")


def silent():
    """Show nothing at all."""
    yield Progress(text="nothing")


def hang():
    """Hang, with a child that ignores SIGTERM and a file in the temporary directory.

    It cleans up when it is stopped: at once, or never with ``HANG_IN_CLEAN_UP``.
    """
    report = Path(os.environ["HANG_REPORT"])
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal, time\nsignal.signal(15, 1)\ntime.sleep(300)"]
    )
    (Path(tempfile.mkdtemp()) / "left").write_text("left")
    report.write_text(f"{child.pid} {tempfile.gettempdir()}")
    try:
        time.sleep(300)
        yield Progress(text="never")
    finally:
        report.with_name("cleaning").touch()
        if "HANG_IN_CLEAN_UP" in os.environ:
            time.sleep(300)
