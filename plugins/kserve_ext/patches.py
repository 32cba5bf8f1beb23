"""What stands in the places of KServe's own objects while the patches are applied."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

from kserve_ext import run
from kserve_ext.settings import add_flags
from kserve_ext.shutdown import signals


def start(original: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """``ModelServer.start`` that drains; the handlers stand from now on, while models load."""
    signals.install_early_handlers()

    @functools.wraps(original)
    def graceful(self: Any, models: Any) -> None:
        if run.run_of(self) is not None:  # a GracefulModelServer calls its parent's
            original(self, models)
        else:
            run.start(self, models, original)

    return graceful


def stop(original: Callable[..., Any]) -> Callable[..., Any]:
    """``ModelServer.stop`` that begins the drain."""

    @functools.wraps(original)
    def graceful(self: Any, sig: int | None = None) -> Any:
        return run.stop(self, sig, original)

    return graceful


def shutdown(_: object) -> Callable[..., bool]:
    """The method ``ModelServer.shutdown``, which KServe has not."""

    def shutdown(self: Any, *, wait: bool = True, timeout_s: float | None = None) -> bool:
        """Drain as a SIGTERM does, from any thread; see `kserve_ext.shutdown`."""
        return run.shutdown(self, wait=wait, timeout_s=timeout_s)

    return shutdown


def parser(original: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """KServe's parser, with our flags added to a copy."""
    copy = argparse.ArgumentParser(
        parents=[original], add_help=False, formatter_class=original.formatter_class
    )
    add_flags(copy)
    return copy
