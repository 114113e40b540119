"""For every model made from now on: transformers' own registry of layer classes."""

from __future__ import annotations

import logging
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gdn_dispatch.config import DISABLE_VARIABLE
from gdn_dispatch.errors import IntegrationError
from gdn_dispatch.integrations.transformers.discovery import (
    LayerClass,
    find_layers,
    load_class,
    transformers_version,
)
from gdn_dispatch.integrations.transformers.rebinding import adapted_class
from gdn_dispatch.selection.dispatch import active_config

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ModelStatus",
    "Status",
    "disable",
    "enable",
    "enabled",
    "status",
    "supported_models",
    "switched_off",
]

_logger = logging.getLogger("gdn_dispatch")
_lock = threading.RLock()
_ours: dict[str, type[Any]] = {}
"""What this module has registered, by the name it is registered under."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One layer class of the installed transformers.

    Attributes:
        model: The model's directory in transformers, such as ``qwen3_next``.
        layer: The class.
        enabled: Whether models made from now on run it through this package.
        why: The reason where they do not.
    """

    model: str
    layer: str
    enabled: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """What ``enable`` has brought about.

    Attributes:
        enabled: Whether any layer class is registered.
        transformers: Its version, or empty.
        models: Layer classes found, by model.
        why: The reason where nothing is registered.
    """

    enabled: bool
    transformers: str
    models: tuple[ModelStatus, ...]
    why: str = ""


def supported_models() -> tuple[str, ...]:
    """Models of the installed transformers that are covered, such as ``qwen3_next``.

    Raises:
        IntegrationError: transformers is missing or too old.
    """
    return tuple(sorted({layer.model for layer in find_layers()}))


def switched_off() -> str:
    """Why the integration must not be switched on, or empty."""
    if "transformers" in active_config().disabled_integrations:
        return f"switched off by {DISABLE_VARIABLE}"
    return ""


def enable() -> Status:
    """Make models built by ``from_pretrained`` or ``from_config`` run through this package.

    Models that exist are left alone (``inject`` is for them), and so is a class called directly,
    without a ``from_...``. Calling it again changes nothing. A layer class that cannot be adapted
    is left out, with a warning and its reason in the status. ``GDN_DISPATCH_DISABLE=transformers``
    turns this into a call that does nothing and says so.

    Raises:
        IntegrationError: transformers is missing or too old, or someone else has registered a
            class for one of these layers; nothing is registered then.
    """
    if off := switched_off():
        _logger.info("transformers integration not enabled: %s", off)
        return status()
    with _lock:
        registry = _registry()
        wanted: dict[str, type[Any]] = {}
        failures: list[str] = []
        for layer in find_layers():
            try:
                wanted[layer.name] = adapted_class(load_class(layer))
            except IntegrationError as error:
                failures.append(str(error))
        if not wanted:
            raise IntegrationError("\n".join(failures))
        for failure in failures:
            _logger.warning("transformers integration leaves out a layer: %s", failure)
        present = registry.get_patch_mapping()
        if conflicts := [text for name in wanted if (text := _conflict(name, present))]:
            raise IntegrationError("\n".join(conflicts))
        missing = {name: cls for name, cls in wanted.items() if name not in present}
        registry.register_patch_mapping(missing)
        _ours.update(missing)
    return status()


def disable() -> Status:
    """Take back what ``enable`` registered, and nothing else.

    Models built meanwhile keep running through this package; ``eject`` is for them.
    """
    with _lock:
        if _ours:
            registry = _registry()
            present = registry.get_patch_mapping()
            # someone may have cleared the registry, or put another class there since
            registry.unregister_patch_mapping([n for n, c in _ours.items() if present.get(n) is c])
            _ours.clear()
    return status()


@contextmanager
def enabled() -> Iterator[Status]:
    """``enable`` for the models built inside; afterwards everything is as it was before."""
    with _lock:
        before = status().enabled
        state = enable()
    try:
        yield state
    finally:
        if not before:
            disable()


def status() -> Status:
    """What is registered and what is not; imports no model, raises nothing."""
    try:
        version = transformers_version()
        layers = find_layers()
        registry = _registry()
    except IntegrationError as error:
        return Status(False, "", (), str(error))
    present = registry.get_patch_mapping()
    models = tuple(_model_status(layer, present) for layer in layers)
    active = any(model.enabled for model in models)
    return Status(active, version, models, "" if active else switched_off() or "not enabled")


def _model_status(layer: LayerClass, present: dict[str, type[Any]]) -> ModelStatus:
    registered = layer.name in _ours and present.get(layer.name) is _ours[layer.name]
    why = "" if registered else switched_off() or _conflict(layer.name, present) or "not enabled"
    return ModelStatus(layer.model, layer.name, registered, why)


def _conflict(name: str, present: dict[str, type[Any]]) -> str:
    """Who else has registered a class for ``name``, exactly or by a pattern; or empty."""
    if name in present:
        if present[name] is _ours.get(name):
            return ""
        key = name
    else:
        # ours would silently take precedence over a pattern of theirs
        matches = (key for key in present if key not in _ours and _matches(key, name))
        key = next(matches, "")
    if not key:
        return ""
    theirs = f"{present[key].__module__}.{present[key].__qualname__}"
    return (
        f"{name}: {theirs} is already registered for it in transformers.monkey_patching (as "
        f"{key!r}) and is not replaced; unregister_patch_mapping([{key!r}]) first, or use inject()"
    )


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:  # transformers takes it for a plain name then
        return False


def _registry() -> Any:
    try:
        from transformers import monkey_patching
    except ImportError as error:
        raise IntegrationError(
            f"transformers {transformers_version()}: no transformers.monkey_patching to register "
            f"with ({error}); pip install -U 'transformers>=5.15'"
        ) from error
    return monkey_patching
