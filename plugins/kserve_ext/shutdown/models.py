"""The end of models and clients: each stopped once, whatever one of them raises."""

from __future__ import annotations

from typing import Any

from kserve_ext.shutdown.drain import describe, log


def has_model(repository: Any) -> bool:
    """Whether a model of *repository* is ready, or there is none to wait for."""
    models = repository.get_models().values()
    return not models or any(getattr(model, "ready", True) for model in models)


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
