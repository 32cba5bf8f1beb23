"""Telling calls apart by their arguments, as joblib does, in a tenth of its time.

With each call of a cached function joblib binds the arguments by ``inspect.signature`` and hashes
them with a pickler that is written in Python. Together that is most of what a hit costs, whatever
the store, and a miss binds twice. For plain functions and plain values the same result is to be
had from the function's code object and from the pickler written in C. Everything else goes to
joblib, as do all calls that are wrong, so that its errors stay what they are.
"""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from hashlib import md5
from io import BytesIO
from types import FunctionType, NoneType
from typing import Any

__all__ = ["quick_filter_args", "quick_hash"]

_VARIADIC = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
_NAMES = frozenset({str})
_PLAIN = frozenset({int, float, bool, str, bytes, NoneType})
"""Types whose pickles hold no reference: the pickler need not remember what it saw."""
_MOST = 100
"""Arguments of one call; a pickle is cut into batches where there are 1,000."""
_PROTOCOL = 3  # joblib's, in all versions
_BEGIN = b"\x80\x03}"
_BEGIN_REMEMBERED = _BEGIN + b"q\x00"
"""A pickle that begins with a dictionary, which joblib's pickler remembers as number 0."""


def quick_filter_args(original: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """``joblib.func_inspect.filter_args``: the arguments of a call by name, defaults included."""

    @functools.wraps(original)  # by whose name it can be pickled
    def filter_args(
        func: Any,
        ignore_lst: Sequence[str],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.__class__ is FunctionType and ignore_lst == [] and not func.__dict__:
            code = func.__code__
            if not (code.co_flags & _VARIADIC or code.co_kwonlyargcount or code.co_posonlyargcount):
                names = code.co_varnames[: code.co_argcount]
                given = len(args)
                if not kwargs and given == len(names):
                    return dict(zip(names, args))  # noqa: B905  # as many, and a keyword costs
                bound = _bind(names, func.__defaults__ or (), args, kwargs or {})
                if bound is not None:
                    return bound
        return original(func, ignore_lst, args, {} if kwargs is None else kwargs)

    return filter_args


def _bind(
    names: Sequence[str], defaults: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The values of all *names*, or None where the call is wrong."""
    if len(args) > len(names) or not kwargs.keys() <= set(names[len(args) :]):
        return None
    bound = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    bound.update(zip(names, args, strict=False))
    bound.update(kwargs)
    return bound if len(bound) == len(names) else None


def quick_hash(original: Callable[..., Any]) -> Callable[..., Any]:
    """``joblib.hashing.hash``: the digest of arguments, equal to joblib's."""

    @functools.wraps(original)
    def hash(obj: Any, hash_name: str = "md5", coerce_mmap: bool = False) -> Any:  # noqa: A001, FBT001, FBT002  # joblib's own signature
        if (
            obj.__class__ is dict
            and hash_name == "md5"
            and _PLAIN.issuperset(map(type, obj.values()))
            and _NAMES.issuperset(map(type, obj))
            and len(obj) <= _MOST
        ):
            stream = BytesIO()
            pickler = pickle.Pickler(stream, _PROTOCOL)
            pickler.fast = True
            pickler.dump(dict(sorted(obj.items())) if len(obj) > 1 else obj)
            data = _BEGIN_REMEMBERED + stream.getvalue()[len(_BEGIN) :]
            return md5(data, usedforsecurity=False).hexdigest()
        return original(obj, hash_name, coerce_mmap)

    return hash
