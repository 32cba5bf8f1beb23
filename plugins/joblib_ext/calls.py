"""A call on its way: what `_cached_call` of joblib holds on to until it ends, one way or another.

joblib keeps the answer of ``get_cached_func_info`` in a local variable of the call. When the call
ends, by returning or by the user's exception, that answer goes, and with it the claim.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from joblib_ext.entries.payload import Buffer
from joblib_ext.stores.files.lease import Claim, release
from joblib_ext.stores.files.store import Address

if TYPE_CHECKING:
    from joblib_ext.writer import Writer

__all__ = ["Call", "CallInfo", "Calls"]


class CallInfo(dict[str, str]):
    """What ``get_cached_func_info`` answers.

    Attributes:
        func_id: the function that is called. Set by whoever makes one, as each call does: a
            constructor would double its cost.
        call: set when the call has to compute.
    """

    __slots__ = ("call", "func_id")
    func_id: str
    call: Call


class Call:
    """A call that missed, with the claim under which it computes.

    Attributes:
        call_id: joblib's pair of function and arguments; the very tuple identifies the call.
        path: where the entry goes, as decided when the call began.
        address: what its checksum binds it to.
        home: the version of the function that is computing.
        calls: where it can be looked up until it ends.
        pending: the result as bytes, between ``dump_item`` and ``store_metadata``.
        metadata: what joblib noted, for a large result, which is published when the call ends.
        item: the result, for a memory-mapped reload that the store could not serve.
    """

    __slots__ = (
        "__weakref__",
        "address",
        "call_id",
        "calls",
        "claim",
        "home",
        "item",
        "metadata",
        "path",
        "pending",
        "writer",
    )

    def __init__(
        self, writer: Writer, call_id: Any, path: str, address: bytes, home: Address
    ) -> None:
        self.writer, self.call_id, self.path = writer, call_id, path
        self.address, self.home = address, home
        self.claim: Claim | None = None
        self.pending: tuple[Sequence[Buffer], int] | None = None
        self.metadata: Mapping[str, Any] = {}
        self.item: tuple[Any] | None = None
        self.calls: Calls | None = None

    def release(self) -> None:
        """Give up the claim."""
        claim, self.claim = self.claim, None
        if claim is not None and claim.held:
            release(claim)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # an interpreter that ends takes modules away
            if self.calls is not None:
                self.calls.remove(self)
            if self.pending is not None:
                self.writer.finish(self, self.metadata)
            self.release()


class Calls:
    """The calls on their way, by the tuple that identifies each; none is kept alive.

    A `weakref.WeakValueDictionary` does the same for three times the price.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[Call]] = {}

    def add(self, call: Call) -> Call:
        """Note *call*, until it ends."""
        call.calls = self
        self._known[id(call.call_id)] = weakref.ref(call)
        return call

    def get(self, call_id: object) -> Call | None:
        """The call that this very tuple stands for."""
        known = self._known.get(id(call_id))
        call = known() if known is not None else None
        return call if call is not None and call.call_id is call_id else None

    def remove(self, call: Call) -> None:
        """Forget *call*, which ends; its tuple lives until then, so that no other has its id."""
        known = self._known.get(id(call.call_id))
        if known is not None and known() in (None, call):  # a weak reference may be dead by now
            self._known.pop(id(call.call_id), None)
