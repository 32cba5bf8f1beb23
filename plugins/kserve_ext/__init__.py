"""Start-up and shutdown of KServe model servers that lose no request.

    from kserve_ext import GracefulModelServer

Importing this package imports no framework; the first use of a name does.
"""

from __future__ import annotations

from mlops_ext.lazy import lazy_exports

TYPE_CHECKING = False  # type checkers know this name; importing typing costs milliseconds
if TYPE_CHECKING:
    from kserve_ext.run import shutdown
    from kserve_ext.server import GracefulModelServer
    from kserve_ext.settings import KServeSettings

__all__ = ["GracefulModelServer", "KServeSettings", "shutdown"]

__getattr__ = lazy_exports(
    __name__,
    {
        "GracefulModelServer": "kserve_ext.server",
        "KServeSettings": "kserve_ext.settings",
        "shutdown": "kserve_ext.run",
    },
)
