"""A cached function of the shared backend: what a hit, a wait and a miss are.

joblib makes a ``MemorizedFunc`` for each cached function; where the store is ours it becomes one of
these classes. So a call knows its function, and what it holds while it computes: the lease ends
with the call, by ``finally``.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from joblib.func_inspect import filter_args, format_signature, get_func_name
from joblib.memory import (
    AsyncMemorizedFunc,
    JobLibCollisionWarning,
    MemorizedFunc,
    MemorizedResult,
    NotMemorizedResult,
)
from typing_extensions import TypeIs

from joblib_ext.arguments import bind
from joblib_ext.calls import CallId, call_at, call_id
from joblib_ext.entries.entry import Entry
from joblib_ext.entries.large_entry import CorruptEntryError, LargeEntry
from joblib_ext.single_flight import acquire_or_wait
from joblib_ext.stores.events import tell
from joblib_ext.stores.leases import Lease
from joblib_ext.stores.store import CodeVersion, Slot, View
from joblib_ext.versions import describe, is_settled

if TYPE_CHECKING:
    from joblib_ext.backend import SharedStoreBackend
    from joblib_ext.runtime import Runtime

_STALE = (
    "If a function that it calls has changed since, they are stale: clear them, and name what it"
    " depends on with joblib_ext.cache(memory, depends=[...])"
)
_SLOW_REPR_S = 0.5  # joblib's limit
# Above these verbosities joblib tells of loading, of computing and of everything.
_DURATIONS, _COMPUTATIONS, _QUERIES = 4, 10, 20


def cache(
    memory: Any,
    func: Any = None,
    *,
    depends: Iterable[Callable[..., Any]] = (),
    version: str = "",
    **options: Any,
) -> Any:
    """``memory.cache``, told what else the result depends on; can be used as a decorator.

    Args:
        memory: a ``Memory`` with the shared backend.
        func: the function, or nothing where this is a decorator with arguments.
        depends: helpers: a change of their code counts as one of the function's.
        version: a text that stands for anything else; another text is another version.
        options: what ``Memory.cache`` takes.
    """

    def decorate(func: Any) -> Any:
        made = memory.cache(func, **options)
        made.code_depends, made.code_version = tuple(depends), version
        return made

    return decorate if func is None else decorate(func)


class SharedMemorizedFunc(MemorizedFunc):  # type: ignore[misc,unused-ignore]  # joblib has no types
    """A cached function whose results stand in a shared store."""

    store_backend: SharedStoreBackend
    # Functions whose code counts as this one's.
    code_depends: tuple[Any, ...] = ()
    # A text of the user's that stands for whatever else the result depends on.
    code_version: str = ""
    # Whether a call waits for another process that computes the same.
    _waits = True
    _known: tuple[Any, Runtime, CodeVersion] | None = None

    def __repr__(self) -> str:
        return str(super().__repr__()).replace("Shared", "", 1)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state.pop("_known", None)
        return state

    def _version(self, runtime: Runtime) -> CodeVersion:
        """The version of the code that runs when the function is called now."""
        known, func = self._known, self.func
        code = getattr(func, "__code__", None)
        if known is not None and known[0] is code and known[1] is runtime:
            return known[2]
        text = self.func_code_info[0] if code is not None else None
        whole = [describe(func, text), *map(describe, self.code_depends), self.code_version]
        version = runtime.version(self.func_id, "\0".join(whole).rstrip("\0"))
        if is_settled(func):
            if runtime.is_namesake(version):
                what = f"Cannot detect name collisions: {self.func_id!r} is several functions"
                tell(what, JobLibCollisionWarning, stacklevel=6)
            if not (self.code_depends or self.code_version) and runtime.is_revived(version):
                what = f"{self.func_id}: results of an earlier version of its code are used again."
                runtime.store.events.warn_once(f"revived {self.func_id}", f"{what} {_STALE}")
            self._known = code, runtime, version
        return version

    def _slot(self, runtime: Runtime, args: Any, kwargs: Any) -> Slot:
        arguments: Any = self._get_args_id(*args, **kwargs)
        return Slot(self._version(runtime), arguments)

    # -- the entry points -----------------------------------------------------------------------

    def _cached_call(self, args: Any, kwargs: Any, shelving: bool) -> Any:  # noqa: FBT001  # joblib's
        """The result, or a reference to it, and the metadata of a call that computed."""
        runtime = self.store_backend._runtime  # noqa: SLF001  # one idea in two classes
        slot = self._slot(runtime, args, kwargs)
        view: Any = runtime.reader.look(slot)
        if (
            view.__class__ is Entry
            and not shelving
            and self._verbose <= 1
            and self.cache_validation_callback is None
        ):
            try:
                return view.value(), {}
            except Exception:  # noqa: BLE001  # the slow way tells of it
                view = runtime.reader.look(slot)
        return self._answer(runtime, slot, view, args, kwargs, shelving=shelving)

    def check_call_in_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a verified and valid result is there; nothing is computed or waited for."""
        runtime = self.store_backend._runtime  # noqa: SLF001  # as above
        slot = self._slot(runtime, args, kwargs)
        view = runtime.reader.look(slot)
        return _is_entry(view) and self._notes(runtime, slot, view) is not None

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Compute and store the result; the result and its metadata."""
        runtime = self.store_backend._runtime  # noqa: SLF001  # as above
        call = call_at(self._slot(runtime, args, kwargs))
        call.is_forced = True
        return self._call(call, args, kwargs)

    def clear(self, warn: bool = True) -> None:  # noqa: FBT001, FBT002  # joblib's
        """Remove the results of the version at hand; other versions keep theirs."""
        if self._verbose > 0 and warn:
            self.warn(f"Clearing function cache identified by {self.func_id}")
        backend = self.store_backend
        backend.clear_version(self._version(backend._runtime))  # noqa: SLF001  # as above

    # -- from a look to a result ----------------------------------------------------------------

    def _answer(
        self, runtime: Runtime, slot: Slot, view: View, args: Any, kwargs: Any, *, shelving: bool
    ) -> Any:
        """What a call gives whose entry cannot just be returned."""
        call = call_at(slot)
        if self._verbose >= _QUERIES:
            self._tell_query(call, args, kwargs)
        # Those of a large entry are known to be true only if all of it is read.
        needs_notes = shelving or self._verbose > 1 or self.cache_validation_callback is not None
        try:
            while True:
                if _is_entry(view):
                    notes = self._notes(runtime, slot, view) if needs_notes else {}
                    if notes is not None:
                        try:
                            return self._deliver(call, view, notes, shelving=shelving), {}
                        except (CorruptEntryError, OSError) as error:
                            runtime.discard(view, error)  # and tells of it
                        except Exception:  # noqa: BLE001  # what unpickling likes to raise
                            self._complain(args, kwargs)
                            break  # a good entry that cannot be used here
                    view = None
                found = self._lease(runtime, slot, view)
                if _is_entry(found):
                    view = found
                    continue
                call.lease = found
                break
            if self._verbose > _COMPUTATIONS:
                self.warn(f"Computing func {get_func_name(self.func)[1]}, argument hash {call[1]}")
            return self._call(call, args, kwargs, shelving)
        finally:
            call.release()

    def _lease(self, runtime: Runtime, slot: Slot, view: View) -> Entry | LargeEntry | Lease | None:
        """The result that another process computed, a lease to compute under, or None."""
        if not (self._waits and runtime.store.options.single_flight):
            return None
        return acquire_or_wait(runtime.store, slot, view)

    def _notes(
        self, runtime: Runtime, slot: Slot, entry: Entry | LargeEntry
    ) -> Mapping[str, Any] | None:
        """What joblib noted of the call whose result *entry* is; None if that is of no use.

        It is damaged, and moved aside, or the user's callback says that it has expired. Then it is
        removed, unless somebody has renewed it since.
        """
        try:
            notes = entry.metadata()
        except (CorruptEntryError, OSError) as error:
            runtime.discard(entry, error)
            return None
        if self.cache_validation_callback is None or self.cache_validation_callback(notes):
            return notes
        runtime.writer.forget(slot.path)
        runtime.store.remove_entry(slot, entry.header.token)
        return None

    def _deliver(
        self, call: CallId, entry: Entry | LargeEntry, notes: Mapping[str, Any], *, shelving: bool
    ) -> Any:
        if shelving:
            return self._reference(call, notes)
        start = time.time()
        if self._verbose > 1:
            self.store_backend.tell(call, self._verbose, self.timestamp, notes)
        value = self.store_backend.value_of(entry)
        if self._verbose > _DURATIONS:
            self._print_duration(time.time() - start, context="cache loaded ")
        return value

    def _after_call(  # joblib's
        self,
        call_id: Any,
        args: Any,
        kwargs: Any,
        shelving: bool,  # noqa: FBT001  # joblib's
        output: Any,
        start_time: float,
    ) -> Any:
        """Store what was computed, before the caller gets it and can change it."""
        runtime = self.store_backend._runtime  # noqa: SLF001  # one idea in two classes
        if self._verbose > _COMPUTATIONS:
            print(f"Persisting in {call_id.slot.path}")  # noqa: T201  # as joblib's own
        body = runtime.writer.serialise(output)
        duration = time.time() - start_time
        if self._verbose > 0:
            self._print_duration(duration)
        noted = self._note_arguments(args, kwargs)
        metadata = {"duration": duration, "input_args": noted, "time": time.time()}
        is_stored = body is not None and runtime.writer.finish(call_id, body, metadata)
        call_id.release()
        if shelving:
            if not is_stored:
                return NotMemorizedResult(output), metadata
            return self._reference(call_id, metadata), metadata
        if self.mmap_mode is not None and is_stored:
            output = self._mapped(runtime, call_id.slot, output)
        return output, metadata

    def _mapped(self, runtime: Runtime, slot: Slot, output: Any) -> Any:
        """The result as later calls get it; what was computed where that is not to be had."""
        with contextlib.suppress(Exception):  # what was computed is right
            found = runtime.reader.look(slot)
            if _is_entry(found):
                return self.store_backend.value_of(found)
        return output

    def _note_arguments(self, args: Any, kwargs: Any) -> dict[str, str]:
        """The arguments in words; none where the repr of one raises, which may be any error."""
        start, noted = time.time(), {}
        with contextlib.suppress(Exception):
            bound = bind(self.func, args, kwargs, self.ignore)
            bound = bound or filter_args(self.func, self.ignore, args, kwargs)
            noted = {name: repr(value) for name, value in bound.items()}
        if (lasted := time.time() - start) > _SLOW_REPR_S:
            what = f"Persisting input arguments took {lasted:.2f}s to run: some are large."
            tell(what, UserWarning, stacklevel=6)
        return noted

    def _reference(self, call: CallId, metadata: Mapping[str, Any]) -> MemorizedResult:
        return MemorizedResult(
            self.store_backend,
            call_id(*call, call.namespace),
            metadata=dict(metadata),
            timestamp=self.timestamp,
            verbose=self._verbose - 1,
        )

    def _complain(self, args: Any, kwargs: Any) -> None:
        _, signature = format_signature(self.func, *args, **kwargs)
        self.warn(f"Exception while loading results for {signature}\n {traceback.format_exc()}")

    def _tell_query(self, call: CallId, args: Any, kwargs: Any) -> None:
        logging.basicConfig(level=logging.INFO)
        name = get_func_name(self.func)[1]
        _, signature = format_signature(self.func, *args, **kwargs)
        self.info(
            f"Querying {name} with signature\n{signature}.\n\n(argument hash {call[1]})\n\n"
            f"The store location is {self.store_backend.location}."
        )


class SharedAsyncMemorizedFunc(SharedMemorizedFunc, AsyncMemorizedFunc):  # type: ignore[misc,unused-ignore]  # joblib has no types
    """A cached coroutine function: it waits for no other process, which would stop its loop."""

    _waits = False  # it takes a lease when it runs, if it ever does

    async def _call(  # pyright: ignore[reportIncompatibleMethodOverride]  # joblib's own does too
        self,
        call_id: Any,
        args: Any,
        kwargs: Any,
        shelving: bool = False,  # noqa: FBT001, FBT002  # joblib's
    ) -> Any:  # joblib's
        store = self.store_backend._runtime.store  # noqa: SLF001  # one idea in two classes
        if store.options.single_flight and not call_id.is_forced:
            found = store.acquire(call_id.slot)
            call_id.lease = found if isinstance(found, Lease) else None
        try:
            return await super()._call(call_id, args, kwargs, shelving)
        finally:
            call_id.release()


def _is_entry(view: object) -> TypeIs[Entry | LargeEntry]:
    return isinstance(view, (Entry, LargeEntry))


OURS = {MemorizedFunc: SharedMemorizedFunc, AsyncMemorizedFunc: SharedAsyncMemorizedFunc}
