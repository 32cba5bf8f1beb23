"""Taking over a cache that joblib's own backend wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from joblib_ext.entries.entry import build
from joblib_ext.entries.payload import dump_body
from joblib_ext.maintenance.stats import Track
from joblib_ext.stores.kinds import Store
from joblib_ext.stores.layout import namespace_of
from joblib_ext.stores.store import Slot

_CODE = "func_code.py"
_HEADER = "# first line:"
# Function, source code and folder.
Result = tuple[str, str, Path]


@dataclass(slots=True, kw_only=True)
class Taken:
    """What was taken over.

    Attributes:
        entries: results that were written.
        present: results that were there already.
        left: results that could not be read, or whose function's code is not known.
    """

    entries: int = 0
    present: int = 0
    left: int = 0


def take_cache(source: Path, store: Store, track: Track[Result] = iter) -> Taken:
    """Write the results below *source* into *store*, under the code that joblib noted of them.

    They are unpickled on the way: whoever could write *source* can run code here. Functions that
    are wrapped or hold values of those around them, partials and callable objects are told apart in
    another way here, and will compute.
    """
    from joblib import load

    taken = Taken()
    for func_id, code, folder in track(list(_results(source))):
        slot = Slot(store.version(func_id, namespace_of(code, store.key), code), folder.name)
        if store.token_at(slot.path):
            taken.present += 1
        else:
            try:
                body = dump_body(load(folder / "output.pkl"))
                notes = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
                whole = build(*body, notes, slot.binding, **store.options.building)
                store.publish(slot, *whole)
                taken.entries += 1
            except Exception:  # noqa: BLE001  # unpickling raises what it likes
                taken.left += 1
    return taken


def _results(source: Path) -> Iterator[Result]:
    """All results below *source*."""
    base = source / "joblib" if (source / "joblib").is_dir() else source
    for file in base.rglob(_CODE):
        text = file.read_text(encoding="utf-8", errors="replace")
        header, _, code = text.partition("\n")
        func_id = str(file.parent.relative_to(base))
        for output in file.parent.glob("*/output.pkl"):
            yield func_id, code if header.startswith(_HEADER) else text, output.parent
