"""The parts of joblib's store interface that are the same for any folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from joblib._store_backends import StoreBackendBase, StoreBackendMixin
from joblib.disk import mkdirp
from joblib.logger import format_time

__all__ = ["VERY_TALKATIVE", "FolderBackend"]

VERY_TALKATIVE = 10
"""From this verbosity on, joblib names paths."""


class FolderBackend(StoreBackendBase, StoreBackendMixin):  # type: ignore[misc,unused-ignore]  # joblib has no types
    """What joblib's abstract base asks of a backend that keeps files in a folder."""

    location: str

    def _open_item(self, f: str, mode: str) -> Any:
        return Path(f).open(mode)

    def _item_exists(self, location: str) -> Any:
        return os.path.exists(location)  # noqa: PTH110  # a text

    def _move_item(self, src: str, dst: str) -> None:
        Path(src).replace(dst)

    def create_location(self, location: str) -> None:
        """Make a folder."""
        mkdirp(location)

    def _tell(
        self,
        call_id: Sequence[str],
        verbose: int,
        timestamp: float | None,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        """Say what is loaded, in joblib's words."""
        age = f"{format_time(time.time() - timestamp): <16}" if timestamp is not None else ""
        signature = os.path.basename(call_id[0])  # noqa: PTH119  # a text
        if metadata and "input_args" in metadata:
            arguments = ", ".join(f"{name}={text}" for name, text in metadata["input_args"].items())
            signature += f"({arguments})"
        more = "..." if verbose < VERY_TALKATIVE else f" from {self.location}"
        print(f"[Memory]{age}: Loading {signature}{more}")  # noqa: T201  # as joblib's own
