"""Which code runs when a cached function is called, as a text that every process agrees on.

The text of a function stands for it only where that text compiles to the very code that runs: the
file may have changed since it was imported. Then, on any Python, the function's version follows
from the text. Otherwise it follows from the code object itself, without line numbers and names of
files. What a function wraps (`functools.wraps`), the functions and unchangeable values that it has
from the functions around it, the arguments of a partial, the methods of a class and the state of a
callable object are part of it.
"""

from __future__ import annotations
import __future__

import ast
import contextlib
import functools
import hashlib
import operator
import os
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

_FUTURE = functools.reduce(
    operator.or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)
# A flag that says where a function was defined, not what it does.
_NESTED = 0x10
_PLAIN = (int, float, complex, bool, str, bytes, type(None))
_FUNCTIONS = (FunctionType, MethodType, functools.partial)
_INDENT = (" ", "\t")


def describe(func: Any, text: str | None = None) -> str:
    """The code that runs when *func* is called.

    Args:
        func: anything callable.
        text: its source code as joblib found it; it may be that of other code.
    """
    return "\0".join(_parts(func, text, set()))


def _parts(func: Any, text: str | None, seen: set[int]) -> Iterator[str]:
    while id(func) not in seen:
        seen.add(id(func))
        if _is_cached(func):  # what it caches counts
            func = func.func
        if isinstance(func, MethodType):
            func = func.__func__
        if isinstance(func, functools.partial):
            yield f"partial {_state((func.args, func.keywords))}"
            func, text = func.func, None
        elif isinstance(func, FunctionType):
            yield _function(func, text)
            for value in _captured(func):
                yield from _parts(value, None, seen) if callable(value) else (repr(value),)
            func, text = vars(func).get("__wrapped__", func), None
        elif _is_object(func):
            yield f"object {type(func).__module__}.{type(func).__qualname__} {_state(func)}"
            func, text = type(func).__call__, None
        else:
            yield f"{getattr(func, '__module__', '')}.{getattr(func, '__qualname__', repr(func))}"
            if isinstance(func, type):
                methods = [getattr(each, "__func__", each) for each in vars(func).values()]
                yield from (_function(each, None) for each in methods if type(each) is FunctionType)
            func = getattr(func, "__wrapped__", func)  # as of `functools.lru_cache`


def _captured(func: FunctionType) -> Iterator[Any]:
    """What *func* has from the functions around it: other functions, and values that stay."""
    for cell in func.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is empty yet
            value = cell.cell_contents
            if _is_plain(value) or isinstance(value, _FUNCTIONS) or _is_cached(value):
                yield value


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _is_cached(func: object) -> bool:
    return hasattr(type(func), "check_call_in_cache")


def is_settled(func: Any) -> bool:
    """Whether what `describe` says of *func* can only change with its ``__code__``."""
    return isinstance(func, (FunctionType, MethodType)) or not _is_object(func)


def _is_object(func: Any) -> bool:
    """Whether *func* is of a class with a ``__call__`` written in Python."""
    return isinstance(getattr(type(func), "__call__", None), FunctionType)  # noqa: B004  # which one


def _state(value: object) -> str:
    from joblib import hash as digest

    try:
        return str(digest(value))
    except Exception:  # noqa: BLE001  # a value's own pickling raises what it likes
        return repr(value)


def _function(func: FunctionType, text: str | None) -> str:
    code = func.__code__
    if text is None:
        text = _source(func)
    if text is not None and _compiles_to(text, func):
        return text  # what the defaults are is a part of the arguments
    defaults = [*(func.__defaults__ or ()), *sorted((func.__kwdefaults__ or {}).items())]
    return "\0".join([fingerprint(code), *map(repr, filter(_is_plain, defaults))])


def _source(func: FunctionType) -> str | None:
    """The text of a function that others can read too: not of one typed into a notebook."""
    if func.__module__ == "__main__" or not os.path.isfile(func.__code__.co_filename):  # noqa: PTH113  # a text
        return None
    from joblib.func_inspect import get_func_code

    found, file, _ = get_func_code(func)
    return str(found) if file is not None else None


@functools.lru_cache(maxsize=4096)
def fingerprint(code: CodeType) -> str:
    """What *code* does, as 64 hex digits: of one minor version of Python."""
    constants = []
    nested = {value.co_name for value in code.co_consts if isinstance(value, CodeType)}
    for value in code.co_consts:
        if isinstance(value, CodeType):
            constants.append(fingerprint(value))
        elif isinstance(value, str) and "<locals>." in value and value.rpartition(".")[2] in nested:
            continue  # Python 3.10 keeps here where a nested function stands
        elif isinstance(value, frozenset):
            constants.append(f"frozenset {sorted(map(repr, value))}")
        else:
            constants.append(repr(value))
    parts = (
        code.co_code,
        constants,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        code.co_flags & ~_NESTED,
        getattr(code, "co_exceptiontable", b""),
    )
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _compiles_to(text: str, func: FunctionType) -> bool:
    """Whether *text* defines *func*: compiled where that was defined, it gives the same code."""
    code = func.__code__
    try:
        body = ast.parse(f"if 1:\n{text}" if text.startswith(_INDENT) else text).body
        if text.startswith(_INDENT):
            body = body[0].body  # type: ignore[attr-defined]  # of the `if` above
        tree = _shell(func, body)
        flags = code.co_flags & _FUTURE
        found = compile(tree, code.co_filename, "exec", flags=flags, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    wanted = fingerprint(code)
    return any(
        each.co_name == code.co_name and fingerprint(each) == wanted for each in _nested(found)
    )


def _shell(func: FunctionType, body: list[ast.stmt]) -> ast.Module:
    """*body* as a module, within a function and a class such as those that *func* stood in."""
    free = [name for name in func.__code__.co_freevars if name != "__class__"]
    owner = func.__qualname__.rpartition(".")[0].rpartition(".")[2]
    in_class = owner.isidentifier()
    if not free and not in_class:
        return ast.Module(body=body, type_ignores=[])
    inner = f"class {owner}:\n  pass" if in_class else "pass"
    shell = ast.parse(f"def shell({', '.join(free)}):\n {inner}")
    place: Any = shell.body[0]
    if in_class:
        place = place.body[0]
    place.body = body
    return shell


def _nested(code: CodeType) -> Iterator[CodeType]:
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield value
            yield from _nested(value)
