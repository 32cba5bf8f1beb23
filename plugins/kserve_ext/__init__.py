"""Start-up and shutdown of KServe model servers that lose no request.

    from kserve_ext import GracefulModelServer

Importing this package imports no framework; the first use of a name does.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers know this name; importing typing costs milliseconds
if TYPE_CHECKING:
    from kserve_ext._run import shutdown
    from kserve_ext.server import GracefulModelServer
    from kserve_ext.settings import KServeSettings

__all__ = ["GracefulModelServer", "KServeSettings", "shutdown"]

_HOMES = {"GracefulModelServer": "server", "KServeSettings": "settings", "shutdown": "_run"}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
