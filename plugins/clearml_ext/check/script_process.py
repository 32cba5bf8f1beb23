"""The process in which ``check SCRIPT`` runs a script: nothing that it does reaches the server.

The guard is in force before the script's first line, and no variable or file can loosen it.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from clearml_ext import settings
from clearml_ext.check.dry_run import pretended
from clearml_ext.server.snapshot import written_down
from mlops_ext.extensions.activation import apply


def main() -> None:
    """Run the script of the command line ``REPORT SCRIPT ARGUMENT...``."""
    report, script, *arguments = sys.argv[1:]
    settings.force(check_only=True, report=Path(report), fix=False)
    agents = settings.load_settings().agents
    if agents is not None:
        pretended.queues = written_down(agents).names
    apply("clearml")
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
