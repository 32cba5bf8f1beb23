"""Keep the bootstrap's place on PYTHONPATH when a launcher puts its own in front.

``opentelemetry-instrument python app.py`` and its like are Python programs that put a folder with a
``sitecustomize`` of their own first on PYTHONPATH, and become the program that they were given. An
interpreter runs one ``sitecustomize`` only, and few of them run the next. So a launcher below
``mlops-ext run`` is watched at the moment it starts a program: if another ``sitecustomize`` would
hide ours, ours goes first again, which runs the other one afterwards. The same is done once in
each interpreter after the other one has run, as some put themselves in front for its children too.

Imported by every interpreter below ``run``: see `mlops_ext.extensions.finder`.
"""

import os
import sys

from mlops_ext.extensions.finder import tell

TYPE_CHECKING = False  # type checkers know this name; importing typing costs milliseconds
if TYPE_CHECKING:
    from typing import Any

# Arguments of a command that may name the program it launches.
_LOOKED_AT = 16
# The end of a bootstrap's path in any installation of ours: each runs the next one.
_BOOTSTRAP = os.path.join("mlops_ext", "extensions", "bootstrap")


def stay_first(bootstrap: str) -> None:
    """Put *bootstrap* first on PYTHONPATH now, and whenever this process launches a program.

    An audit hook cannot be removed and costs a call for each event. So there is one only in a
    process that was given the name of another program to run.
    """
    put_first(bootstrap, os.environ)  # the agent that has just begun may have put itself in front
    if not any(_is_program(argument) for argument in sys.orig_argv[2:][:_LOOKED_AT]):
        return
    told: list[str] = []

    def watch(event: str, arguments: "tuple[Any, ...]") -> None:
        if event not in {"os.exec", "os.posix_spawn", "subprocess.Popen"}:
            return
        given = arguments[-1]  # the child's environment; None: this process's
        if given is None:
            put_first(bootstrap, os.environ)
        elif not told and in_front(bootstrap, given) is not None:
            told.append(event)
            tell(
                f"another sitecustomize hides ours from {arguments[0]}, which is not patched. Put"
                " mlops-ext run behind the launcher"
            )

    sys.addaudithook(watch)


def put_first(bootstrap: str, environ: "Any") -> None:
    """Put *bootstrap* first on PYTHONPATH of *environ* if another ``sitecustomize`` hides it."""
    places = in_front(bootstrap, environ)
    if places is not None:
        environ["PYTHONPATH"] = os.pathsep.join(places)


def in_front(bootstrap: str, environ: "Any") -> "list[str] | None":
    """PYTHONPATH's entries with *bootstrap* first, if another ``sitecustomize`` hides it now."""
    try:
        places = environ.get("PYTHONPATH", "").split(os.pathsep)
        before = places[: places.index(bootstrap)]
    except (AttributeError, TypeError, ValueError):  # no mapping, bytes, or not there
        return None
    hiding = [p for p in before if _has_sitecustomize(p) and not p.endswith(_BOOTSTRAP)]
    if not hiding:
        return None
    return [bootstrap, *hiding, *(p for p in places if p != bootstrap and p not in hiding)]


def _has_sitecustomize(place: str) -> bool:
    return os.path.exists(os.path.join(place, "sitecustomize.py")) or os.path.isdir(
        os.path.join(place, "sitecustomize")
    )


def _is_program(name: str) -> bool:
    """Whether *name* is an executable file, with a path or on PATH."""
    if name.startswith("-"):
        return False
    folders = [""] if os.path.dirname(name) else os.environ.get("PATH", "").split(os.pathsep)
    paths = (os.path.join(folder, name) for folder in folders)
    return any(os.path.isfile(path) and os.access(path, os.X_OK) for path in paths)
