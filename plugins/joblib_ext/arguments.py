"""Telling calls apart by their arguments, as joblib does, in a tenth of its time.

With each call of a cached function joblib binds the arguments by ``inspect.signature`` and hashes
them with a pickler that is written in Python; a miss binds twice. Together that is most of what a
hit costs, whatever the store. For plain functions and plain values the same digest is to be had
from the function's code object and from the pickler written in C. Everything else goes to joblib,
as do all calls that are wrong, so that its errors stay what they are.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Mapping, Sequence
from hashlib import md5
from io import BytesIO
from types import FunctionType, NoneType
from typing import Any

_VARIADIC = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
_NAMES = frozenset({str})
# Types whose pickles hold no reference: the pickler need not remember what it saw.
_PLAIN = frozenset({int, float, bool, str, bytes, NoneType})
# Arguments of one call; a pickle is cut into batches where there are 1,000.
_MOST = 100
_PROTOCOL = 3  # joblib's, in all versions
_BEGIN = b"\x80\x03}"
# A pickle that begins with a dictionary, which joblib's pickler remembers as number 0.
_BEGIN_REMEMBERED = _BEGIN + b"q\x00"


def bind(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a call by name, defaults included, or None where joblib has to see to it."""
    if type(func) is not FunctionType or func.__dict__:  # a proxy says it were one
        return None
    code = func.__code__
    if code.co_flags & _VARIADIC or code.co_kwonlyargcount or code.co_posonlyargcount:
        return None
    names = code.co_varnames[: code.co_argcount]
    if names[:1] == (".0",):  # the code of a generator expression
        return None
    given = len(args)
    if given == len(names) and not kwargs:
        return dict(zip(names, args))  # noqa: B905  # as many, and a keyword costs
    defaults = func.__defaults__ or ()
    if (
        given > len(names)
        or len(defaults) > len(names)
        or any(default is inspect.Parameter.empty for default in defaults)
        or not _NAMES.issuperset(map(type, kwargs))
        or not kwargs.keys() <= set(names[given:])
    ):
        return None
    bound = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    bound.update(zip(names, args, strict=False))
    bound.update(kwargs)
    return bound if len(bound) == len(names) else None


def digest(arguments: dict[str, Any]) -> str | None:
    """What ``joblib.hash`` gives for *arguments*, or None where one of them is not plain."""
    if not _PLAIN.issuperset(map(type, arguments.values())) or len(arguments) > _MOST:
        return None
    stream = BytesIO()
    pickler = pickle.Pickler(stream, _PROTOCOL)
    pickler.fast = True
    try:
        pickler.dump(dict(sorted(arguments.items())) if len(arguments) > 1 else arguments)
    except OverflowError:  # a text of 4 GiB
        return None
    whole = md5(_BEGIN_REMEMBERED, usedforsecurity=False)
    whole.update(stream.getbuffer()[len(_BEGIN) :])
    return whole.hexdigest()
