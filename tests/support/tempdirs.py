"""Processes that own temporary directories."""

import subprocess
import sys
import textwrap
from pathlib import Path

__all__ = ["OWNER", "start"]

OWNER = """
    import sys
    from pathlib import Path
    from mlops_ext import tempdirs
    directory = tempdirs.RunDirectory.create(Path(sys.argv[1]), "run")
    (directory.make("zenml-") / "left.bin").write_bytes(b"x")
    print(directory.path, flush=True)
"""


def start(script: str, root: Path, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(script), str(root)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )
