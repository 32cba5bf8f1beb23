"""The end of models and clients: each stops once, after its last request, whatever it raises."""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from kserve_ext.shutdown.drain import Drain, describe, log

_drains: weakref.WeakKeyDictionary[Any, Drain] = weakref.WeakKeyDictionary()


def care_for(repository: Any, drain: Drain) -> None:
    """Let *drain* know the models of *repository*."""
    _drains[repository] = drain

    def has_model() -> bool:
        """Whether a model is ready, or there is none to wait for."""
        models = list(repository.get_models().values())
        return not models or any(getattr(model, "ready", True) for model in models)

    drain.has_model = has_model


async def unload(repository: Any, name: str, upstream: Callable[[], Awaitable[None]]) -> None:
    """Unload model *name* by *upstream* once the requests in flight are answered.

    From the beginning it is not found any more, as after KServe's own unload. Requests of other
    models that are in flight now are waited for, too: they may be using this one.
    """
    drain, models = _drains.get(repository), repository.get_models()
    if drain is None or name not in models or not drain.settings.unload_s:
        await upstream()
        return
    model = models.pop(name)
    for copy in _copies():
        copy.pop(name, None)
    try:
        await _answered(drain)
    finally:  # nothing is awaited until it has stopped: no request finds it again
        newer = models.get(name)
        models[name] = model
    try:
        await upstream()
    finally:
        if newer is not None:  # loaded meanwhile
            models[name] = newer


async def load_anew(repository: Any, name: str, upstream: Callable[[], Awaitable[None]]) -> None:
    """Load model *name* by *upstream*; if it serves, once the requests in flight are answered.

    What loads a model anew may take its parts away first. Requests to it that come meanwhile wait.
    """
    drain = _drains.get(repository)
    while drain and name in drain.reloads:
        await drain.reloads[name].wait()
    is_served = drain is not None and name in repository.get_models()
    # KServe's own repository loads nothing: it leaves that to subclasses.
    is_own = repository.load.__module__ == "kserve.model_repository"
    if drain is None or not is_served or is_own or not drain.settings.unload_s:
        await upstream()
        return
    drain.reloads[name] = loaded = asyncio.Event()
    try:
        await _answered(drain)
        await upstream()
    finally:
        del drain.reloads[name]
        loaded.set()


async def until_loaded(drain: Drain, concerns: Callable[[str], bool]) -> None:
    """Wait until no model that *concerns* a request is being loaded."""
    for name, loaded in list(drain.reloads.items()):
        if concerns(name):
            await loaded.wait()


async def _answered(drain: Drain) -> None:
    """Wait for the requests that are in flight now, for ``unload_s`` at most."""
    limit_s = drain.settings.unload_s
    requests = {task for each in drain.endpoints for task in each.requests()}
    requests.difference_update(drain.bystanders, {asyncio.current_task()})
    late = (await asyncio.wait(requests, timeout=limit_s))[1] if requests else ()
    if late:
        log.warning("repository: %d requests in flight after %.1f s", len(late), limit_s)


def _copies() -> list[dict[str, Any]]:
    """Models as the routes know them: those of OpenAI's protocol look into a copy of their own."""
    app = getattr(sys.modules.get("kserve.model_server"), "app", None)
    endpoints = [getattr(route, "endpoint", None) for route in getattr(app, "routes", ())]
    planes = [getattr(getattr(each, "__self__", None), "dataplane", None) for each in endpoints]
    return [plane.model_registry.get_models() for plane in planes if plane is not None]


def stop_models(repository: Any) -> list[Any]:
    """Unload every model of *repository*; a model with two names is stopped once.

    Returns:
        the models.
    """
    models: dict[int, Any] = {}
    for name, model in list(repository.get_models().items()):
        if id(model) in models:
            repository.get_models().pop(name, None)
            continue
        models[id(model)] = model
        try:
            repository.unload(name)
        except Exception as error:  # noqa: BLE001  # a user's code: the others are stopped all the same
            log.error("model %s raised while it was stopped: %s", name, describe(error))
    return list(models.values())


async def close_clients(models: list[Any]) -> None:
    """Close the connections that models hold to their predictors."""
    try:
        from kserve.utils.inference_client_factory import (  # type: ignore[import-untyped]  # ships no types
            InferenceClientFactory,
        )
    except ImportError:  # KServe before 0.15: each model holds a client of its own
        clients: list[Any] = [getattr(model, "_http_client_instance", None) for model in models]
        closers: list[Any] = [c.aclose for c in clients if hasattr(c, "aclose")]
    else:
        closers = [InferenceClientFactory().close]
    for close in closers:
        try:
            await close()
        except Exception as error:  # noqa: BLE001  # the process ends anyway; the others are closed
            log.error("a client raised while it was closed: %s", describe(error))
