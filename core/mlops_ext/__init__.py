"""Fixes that teams bolt onto the MLOps frameworks they already run.

Importing this package imports no framework and changes nothing.
"""

from mlops_ext.lazy import lazy_exports

TYPE_CHECKING = False  # type checkers know this name; importing typing costs milliseconds
if TYPE_CHECKING:
    from mlops_ext.errors import MlopsExtError
    from mlops_ext.extensions.activation import apply, apply_on_import, autopatch
    from mlops_ext.hookspecs import hookimpl
    from mlops_ext.patching import Patch

__all__ = [
    "MlopsExtError",
    "Patch",
    "__version__",
    "apply",
    "apply_on_import",
    "autopatch",
    "hookimpl",
]

__version__ = "0.1.0"

__getattr__ = lazy_exports(  # so that `import mlops_ext` costs nothing
    __name__,
    {
        "MlopsExtError": "mlops_ext.errors",
        "Patch": "mlops_ext.patching",
        "apply": "mlops_ext.extensions.activation",
        "apply_on_import": "mlops_ext.extensions.activation",
        "autopatch": "mlops_ext.extensions.activation",
        "hookimpl": "mlops_ext.hookspecs",
    },
)
