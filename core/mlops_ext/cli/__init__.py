"""The command line: ``mlops-ext``."""

from mlops_ext.processes.signals import hear_as_pid_1

hear_as_pid_1()  # before the rest is imported: `mlops-ext run` may be PID 1 of a container

from mlops_ext.cli.root import main  # noqa: E402

__all__ = ["main"]
