"""Extensions found by entry points, loaded so that a broken one harms no other.

What an extension raises, when it is imported or when a hook of it is called, becomes a
`PluginError` in `Extensions.problems`; the others go on.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from mlops_ext import hookspecs, settings
from mlops_ext.errors import MlopsExtError, PluginError, SettingsError, UnknownNameError
from mlops_ext.extensions.entry_points import all_entry_points, owner_of
from mlops_ext.hookspecs import PROJECT, DoctorCheck, Framework
from mlops_ext.patching import Patch, PatchReport
from mlops_ext.versions import in_range, installed_version

if TYPE_CHECKING:
    from mlops_ext.memory import MemoryPolicy

__all__ = ["Extensions", "Found", "Support", "extensions", "load_extensions"]

_HIDDEN = "a distribution earlier on sys.path has an extension of that name; uninstall or rename it"

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """A framework and whether the installed version is one we know.

    Attributes:
        framework: the framework.
        version: the installed version, or None.
        supported: whether *version* is in the framework's range; False if none is installed.
    """

    framework: Framework
    version: str | None
    supported: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An extension's entry point.

    Attributes:
        name: the entry point's name.
        distribution: the distribution that publishes it, or None.
        disabled: whether MLOPS_EXT_DISABLE names it.
    """

    name: str
    distribution: str | None
    disabled: bool


@dataclass(slots=True)
class Extensions:
    """The extensions of this environment.

    Attributes:
        manager: pluggy's manager, with every extension that could be loaded.
        found: every entry point that may be used, loaded or not.
        problems: what went wrong so far: at most one for each extension, by its name, and one for
            each that another hides, by its text.
    """

    manager: pluggy.PluginManager
    found: tuple[Found, ...] = ()
    problems: dict[str, PluginError] = field(default_factory=dict)

    def frameworks(self) -> list[Support]:
        """The frameworks that extensions are written for, by name; of one name the first."""
        frameworks = self._unique("mlops_ext_frameworks", Framework, "name")
        return [_support(frameworks[name]) for name in sorted(frameworks)]

    def framework(self, name: str) -> Support:
        """The framework called *name*.

        Raises:
            UnknownNameError: none is; the message suggests the nearest.
        """
        known = {support.framework.name: support for support in self.frameworks()}
        if name not in known:
            raise UnknownNameError("framework", name, known)
        return known[name]

    def patches(self, framework: str | None = None) -> list[Patch]:
        """The patches of *framework*, or of all, in the order their extensions give."""
        patches = self._unique("mlops_ext_patches", Patch, "id").values()
        return [patch for patch in patches if framework in (None, patch.framework)]

    def doctor_checks(self) -> list[DoctorCheck]:
        """The checks for ``doctor``."""
        return [check for _, check in self._collect("mlops_ext_doctor_checks", DoctorCheck)]

    def memory_policies(self) -> Mapping[str, MemoryPolicy]:
        """The memory policies by name."""
        policies: dict[str, MemoryPolicy] = {}
        for plugin, answer in self._answers("mlops_ext_memory_policies"):
            if isinstance(answer, Mapping):
                policies.update(answer)
            else:
                self._record(plugin, TypeError(f"mlops_ext_memory_policies gave {answer!r}"))
        return policies

    def memory_policy(self, name: str) -> MemoryPolicy:
        """The memory policy called *name*.

        Raises:
            UnknownNameError: none is; the message suggests the nearest.
            SettingsError: none is, because its extension refuses the settings.
        """
        policies = self.memory_policies()
        if name in policies:
            return policies[name]
        for problem in self.problems.values():
            if isinstance(problem.cause, SettingsError):
                raise problem.cause
        raise UnknownNameError("memory policy", name, policies)

    def notify_patch(self, report: PatchReport) -> None:
        """Tell every extension what became of a patch."""
        for _ in self._answers("mlops_ext_patch_applied", report=report):
            pass

    def _unique(self, hook: str, kind: type[T], key: str) -> dict[str, T]:
        """Index the answers by their field *key*: the first one counts, a second is a problem."""
        items: dict[str, tuple[str, T]] = {}
        for plugin, item in self._collect(hook, kind):
            name = getattr(item, key)
            first, taken = items.setdefault(name, (plugin, item))
            if taken != item:
                what = (
                    f"the {kind.__name__.lower()} {name!r} is that of extension {first!r} already"
                )
                self._record(plugin, ValueError(what))
        return {name: item for name, (_, item) in items.items()}

    def _collect(self, hook: str, kind: type[T]) -> Iterator[tuple[str, T]]:
        for plugin, answer in self._answers(hook):
            try:
                items = list(answer)
                for item in items:
                    if not isinstance(item, kind):
                        raise TypeError(f"{hook} gave {item!r}, expected {kind.__name__}")  # noqa: TRY301
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001  # plugin boundary: for doctor
                self._record(plugin, error)
            else:
                yield from ((plugin, item) for item in items)

    def _answers(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """Call *hook* of each extension; yield its name and answer, record what it raises."""
        caller = getattr(self.manager.hook, hook)
        for implementation in caller.get_hookimpls():
            wanted = {name: arguments[name] for name in implementation.argnames}
            try:
                answer = implementation.function(**wanted)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001  # plugin boundary: for doctor
                self._record(implementation.plugin_name, error)
                continue
            if answer is not None:
                yield implementation.plugin_name, answer

    def _record(self, plugin: str, error: BaseException) -> None:
        if plugin not in self.problems:
            owner = next((f.distribution for f in self.found if f.name == plugin), None)
            self.problems[plugin] = PluginError(plugin, owner, error)
            log.debug("extension %s is broken", plugin, exc_info=error)


def load_extensions(
    points: Iterable[importlib.metadata.EntryPoint], disabled: Iterable[str] = ()
) -> Extensions:
    """Load the extensions that *points* name, but for the *disabled* ones; ours first.

    Of two that name one framework or one patch the first counts, whatever ``sys.path`` is.
    """
    off = frozenset(disabled)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs.Hooks)
    first: dict[str, importlib.metadata.EntryPoint] = {}
    hidden = [p for p in points if first.setdefault(p.name, p).value != p.value]
    found = (Found(name=n, distribution=owner_of(p), disabled=n in off) for n, p in first.items())
    loaded = Extensions(manager, tuple(found))
    for point in hidden:
        problem = PluginError(point.name, owner_of(point), MlopsExtError(_HIDDEN))
        loaded.problems[str(problem)] = problem
    for point in sorted(first.values(), key=lambda point: owner_of(point) != "mlops-ext"):
        if point.name in off:
            continue
        try:
            module = point.load()
            manager.register(module, name=point.name)
            manager.check_pending()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # plugin boundary: for doctor
            if manager.has_plugin(point.name):
                manager.unregister(name=point.name)
            loaded._record(point.name, error)  # noqa: SLF001  # same module
    return loaded


@functools.cache
def extensions() -> Extensions:
    """The extensions of this environment, loaded once a process."""
    return load_extensions(all_entry_points(PROJECT), settings.load(settings.CoreSettings).disable)


def _support(framework: Framework) -> Support:
    version = installed_version(framework.distribution)
    known = version is not None and in_range(version, framework.supported)
    return Support(framework=framework, version=version, supported=known)
