"""Telling calls apart by their arguments, as joblib does, in a tenth of its time.

With each call of a cached function joblib binds the arguments by ``inspect.signature`` and hashes
them with a pickler that is written in Python; a miss binds twice. Together that is most of what a
hit costs, whatever the store. For functions and methods written in Python the arguments can be
bound from the code object, and for plain values, containers and arrays of them, and objects that
pickle their ``__dict__``, the very bytes that joblib hashes can be made without its pickler.
Everything else goes to joblib, as do all calls that are wrong, so that its errors stay what they
are.
"""

from __future__ import annotations

import copyreg
import inspect
import pickle
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import md5
from io import BytesIO
from itertools import chain
from types import FunctionType, MethodType, NoneType
from typing import Any

# Types whose pickles hold no reference: the pickler need not remember what it saw.
_PLAIN = frozenset({int, float, bool, str, bytes, NoneType})
# Arguments of one call; a pickle is cut into batches where there are 1,000.
_MOST, _BATCH = 100, 1000
# The first number that takes more than a byte.
_WIDE = 256
_PROTOCOL = 3  # joblib's, in all versions
_BEGIN = b"\x80\x03}"
# A pickle that begins with a dictionary, which joblib's pickler remembers as number 0.
_BEGIN_REMEMBERED = _BEGIN + b"q\x00"
_TUPLES = {0: b")", 1: b"\x85", 2: b"\x86", 3: b"\x87"}
_VARIADIC = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
# The name of the argument in the code of a generator expression.
_EXPRESSION = (".0",)
# What tells `inspect.signature` something else than the code does.
_MARKS = ("__signature__", "__partialmethod__", "_partialmethod")


def bind(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], ignored: Iterable[str] = ()
) -> dict[str, Any] | None:
    """The arguments of a call by name, defaults included, or None where joblib has to see to it.

    As joblib's ``filter_args``: surplus ones stand under ``*`` and ``**``.
    """
    if not kwargs and not ignored and type(func) is FunctionType and not func.__dict__:
        code = func.__code__
        others = code.co_flags & _VARIADIC or code.co_kwonlyargcount or code.co_posonlyargcount
        names = code.co_varnames[: code.co_argcount]
        if len(args) == len(names) and not others and names[:1] != _EXPRESSION:
            return dict(zip(names, args))  # noqa: B905  # as many, and a keyword costs
    try:
        return _bind(func, args, kwargs, ignored)
    except (KeyError, TypeError):
        return None


def _bind(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], ignored: Iterable[str]
) -> dict[str, Any]:
    is_method = type(func) is MethodType
    if is_method:
        args, func = (func.__self__, *args), func.__func__
    func = _signed(func)
    code, defaults, of_keywords = func.__code__, func.__defaults__ or (), func.__kwdefaults__ or {}
    count, flags = code.co_argcount, code.co_flags
    names = code.co_varnames[: count + code.co_kwonlyargcount]
    placed = dict(zip(names[:count], args))  # noqa: B905  # each as far as it goes
    bound: dict[str, Any] = dict(zip(names[count - len(defaults) : count], defaults))  # noqa: B905  # as above
    bound |= {name: of_keywords[name] for name in names[count:] if name in of_keywords}
    bound |= {name: kwargs[name] for name in names if name in kwargs}
    bound |= placed
    fits = (
        not code.co_posonlyargcount
        and names[:1] != _EXPRESSION
        and len(defaults) <= count >= is_method
        and set(map(type, kwargs)) <= {str}
        and kwargs.keys().isdisjoint(placed)
        and len(bound) == len(names)
        and not any(value is inspect.Parameter.empty for value in bound.values())
    )
    if flags & inspect.CO_VARARGS:
        bound["*"] = list(args[count:])
    more = {name: value for name, value in kwargs.items() if name not in bound}
    if flags & inspect.CO_VARKEYWORDS:
        bound["**"], more = more, {}
    if not fits or more or (len(args) > count and not flags & inspect.CO_VARARGS):
        raise TypeError("the call does not fit, or only joblib can tell")
    for name in ignored:
        del bound[name]
    return bound


def _signed(func: Any) -> FunctionType:
    """The function by whose signature joblib goes: what *func* wraps."""
    while type(func) is FunctionType:  # a proxy says it were one
        marks = func.__dict__
        if "__wrapped__" not in marks or "__signature__" in marks:
            if marks.keys().isdisjoint(_MARKS):
                return func
            break
        func = marks["__wrapped__"]
    raise TypeError("no function written in Python")


def digest(arguments: dict[str, Any]) -> str | None:
    """What ``joblib.hash`` gives for *arguments*, or None where only joblib can tell."""
    stream = BytesIO()
    try:
        if not _PLAIN.issuperset(map(type, arguments.values())) or len(arguments) > _MOST:
            return _Hasher().digest(arguments)
        pickler = pickle.Pickler(stream, _PROTOCOL)
        pickler.fast = True
        pickler.dump(dict(sorted(arguments.items())) if len(arguments) > 1 else arguments)
    except Exception:  # noqa: BLE001  # not plain, too deep or too long; joblib's own error is right
        return None
    whole = md5(_BEGIN_REMEMBERED, usedforsecurity=False)
    whole.update(stream.getbuffer()[len(_BEGIN) :])
    return whole.hexdigest()


class _Hasher:
    """Makes the pickle that joblib hashes, in pieces; arrays are hashed before it.

    Texts, bytes and numbers are not remembered, everything else is, by identity.
    """

    __slots__ = ("_add", "_array", "_count", "_known", "_pieces", "_whole")

    def __init__(self, count: int = 0) -> None:
        self._whole = md5(usedforsecurity=False)
        self._pieces: list[bytes] = []
        self._add = self._pieces.append
        self._known: dict[int, tuple[bytes, object]] = {}
        self._count = count  # of all that was remembered
        self._array = getattr(sys.modules.get("numpy"), "ndarray", None)

    def digest(self, value: object) -> str:
        self._save(value)
        self._whole.update(b"\x80\x03%b." % b"".join(self._pieces))
        return self._whole.hexdigest()

    def _save(self, value: Any) -> None:
        kind = type(value)
        if kind in _PLAIN:
            data = pickle.dumps(value, _PROTOCOL)
            self._add(data[2:-3] if kind is str or kind is bytes else data[2:-1])
        elif id(value) in self._known:
            self._add(self._known[id(value)][0])
        elif kind is tuple:
            self._save_tuple(value)
        elif kind is list:
            self._add(b"]")
            self._remember(value)
            self._save_batches(value, 1, b"a", b"e")
        elif kind is dict:
            if value and set(map(type, value)) not in ({str}, {int}):
                raise TypeError("joblib orders such keys in a way of its own")
            self._add(b"}")
            self._remember(value)
            self._save_batches([*chain(*sorted(value.items()))], 2, b"s", b"u")
        elif kind is self._array and not value.dtype.hasobject:
            self._save_array(value)
        elif kind is type:
            self._save_class(value)
        else:
            self._save_object(value, kind)

    def _remember(self, value: object) -> None:
        number, self._count = self._count, self._count + 1
        place = number.to_bytes(1 if number < _WIDE else 4, "little")
        put, get = (b"q", b"h") if number < _WIDE else (b"r", b"j")
        self._add(put + place)
        self._known[id(value)] = get + place, value  # which keeps it, and so its identity

    def _save_batches(self, values: Sequence[Any], size: int, one: bytes, many: bytes) -> None:
        """Values that belong together by *size*: the members of a list, or keys and values."""
        for start in range(0, len(values), _BATCH * size):
            batch = values[start : start + _BATCH * size]
            is_one = len(batch) == size
            self._add(b"" if is_one else b"(")
            for value in batch:
                self._save(value)
            self._add(one if is_one else many)

    def _save_tuple(self, value: tuple[Any, ...]) -> None:
        end = _TUPLES.get(len(value), b"t")
        self._add(b"(" if end == b"t" else b"")
        for part in value:
            self._save(part)
        if id(value) in self._known:
            raise RecursionError("a tuple that holds itself")
        self._add(end)
        if value:
            self._remember(value)

    def _save_array(self, value: Any) -> None:
        """As `NumpyHasher` does: the bytes go to the hash at once, and what they mean follows."""
        if not value.flags.c_contiguous or not value.shape:
            raise TypeError("joblib copies such arrays")
        dtype = value.dtype
        is_usual = dtype.isbuiltin == 1 and dtype.metadata is None
        self._whole.update(value.view("u1").data)
        self._whole.update(b"_HASHED_DTYPE" + (_dumps if is_usual else pickle.dumps)(dtype))
        self._save(type(value))
        self._add(_array_end(self._count, value.shape, value.strides))
        self._count += 4

    def array_end(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
        """See `_array_end`, which keeps what comes from here."""
        self._add(b"(")
        for part in ("HASHED", shape, strides):
            self._save(part)
        for end in (b"t", b"\x86"):  # of tuples that joblib makes
            self._add(end)
            self._remember(object())
        return b"".join(self._pieces)

    def _save_class(self, value: type) -> None:
        module, name = value.__module__, value.__qualname__
        if getattr(sys.modules[module], name) is not value or copyreg._extension_registry:  # type: ignore[attr-defined]  # noqa: SLF001  # pickle reads it
            raise TypeError("it has another name")
        self._add(f"c{module}\n{name}\n".encode())
        self._remember(value)

    def _save_object(self, value: Any, kind: Any) -> None:
        own = (kind.__reduce_ex__, kind.__reduce__) == (object.__reduce_ex__, object.__reduce__)
        if not own or kind in copyreg.dispatch_table or isinstance(value, type):
            raise TypeError("it pickles itself")
        made, (cls, *rest), state, *items = value.__reduce_ex__(_PROTOCOL)
        is_plain = made is copyreg.__newobj__ and cls is value.__class__ and not rest  # type: ignore[attr-defined]
        if not is_plain or any(part is not None for part in items):
            raise TypeError("it is not made by its class alone")
        self._save(cls)
        self._add(b")\x81")
        self._remember(value)
        if state is not None:
            self._save(state)
            self._add(b"b")


# Equal ones pickle alike where they are numpy's own.
_dumps = lru_cache(maxsize=64)(pickle.dumps)


@lru_cache(maxsize=1024)
def _array_end(count: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """What joblib says of an array after its class, where *count* objects are remembered."""
    return _Hasher(count).array_end(shape, strides)
