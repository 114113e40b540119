"""For one model that exists: a ``forward`` of their own for its layers."""

from __future__ import annotations

import logging
from types import MethodType
from typing import Any

import torch
from torch import nn

from gdn_dispatch.errors import IntegrationError, InvalidArgumentError
from gdn_dispatch.integrations.transformers.discovery import find_layers
from gdn_dispatch.integrations.transformers.rebinding import (
    adapted_forward,
    is_adapted,
    original_class,
)
from gdn_dispatch.integrations.transformers.registration import switched_off
from gdn_dispatch.selection.dispatch import active_registry, explain, use_backend
from gdn_dispatch.selection.refusal import refusal

__all__ = ["eject", "inject"]

_logger = logging.getLogger("gdn_dispatch")


def inject(model: nn.Module, *, backend: str | None = None) -> int:
    """Run the Gated DeltaNet layers of ``model`` through this package; its other parts stay.

    Found by what their ``forward`` calls, so layers of one's own subclass are covered too. May be
    called again, with another backend. The model can be copied, compiled, saved and offloaded as
    before; **a pickle of it holds transformers' own layers**, inject again after loading one.

    Args:
        model: A model of transformers, or anything that contains one.
        backend: ``"name"`` or ``"name/provider"``, for this model only; strict, never falls back.

    Returns:
        How many layers; 0 only where ``GDN_DISPATCH_DISABLE=transformers`` forbids it.

    Raises:
        InvalidArgumentError: ``model`` has no such layer.
        IntegrationError: A layer's ``forward`` was replaced by someone else; nothing is changed.
        GDNDispatchError: No backend, or not the one asked for, can run on the model's device.
    """
    if off := switched_off():
        _logger.warning("transformers integration not injected: %s", off)
        return 0
    layers = _layers(model)
    if not layers:
        names = ", ".join(sorted({layer.name for layer in find_layers()}))
        raise InvalidArgumentError(
            "model", f"{type(model).__name__} without a Gated DeltaNet layer",
            f"a model with layers of one of {names}",
        )  # fmt: skip
    _check_backend(backend, [layer for layer, _ in layers])
    attributes = [_attribute(layer, cls) for layer, cls in layers]
    forwards = [adapted_forward(cls, backend) for _, cls in layers]
    for (layer, _), attribute, forward in zip(layers, attributes, forwards, strict=True):
        layer.__dict__[attribute] = MethodType(forward, layer)
    return len(layers)


def eject(model: nn.Module) -> int:
    """Give the layers of ``model`` transformers' own functions back, however they lost them.

    Returns:
        How many layers ran through this package.
    """
    count = 0
    for layer, cls in _layers(model):
        attribute = "_old_forward" if "_old_forward" in layer.__dict__ else "forward"
        if not is_adapted(getattr(getattr(layer, attribute), "__func__", None)):
            continue
        count += 1
        if attribute == "forward" and type(layer) is cls:
            del layer.__dict__[attribute]
        else:
            layer.__dict__[attribute] = MethodType(cls.forward, layer)
    return count


def _layers(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Layers with the class whose ``forward`` calls the rules."""
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError("model", type(model).__name__, "a torch.nn.Module")
    found = ((layer, original_class(type(layer))) for layer in model.modules())
    return [(layer, cls) for layer, cls in found if cls is not None]


def _attribute(layer: nn.Module, cls: type[Any]) -> str:
    """Where the layer's ``forward`` is looked up: accelerate's hooks keep it one name further."""
    own = layer.__dict__
    if "_old_forward" in own:
        return "_old_forward"
    function = getattr(own.get("forward"), "__func__", None)
    if "forward" in own and function is not cls.forward and not is_adapted(function):
        raise IntegrationError(
            f"{type(layer).__name__}: forward of this layer was already replaced, by "
            f"{own['forward']!r}; expected that of its class; undo that first"
        )
    return "forward"


def _check_backend(backend: str | None, layers: list[nn.Module]) -> None:
    """Raise now what every call would raise."""
    devices = {parameter.device for layer in layers for parameter in layer.parameters()}
    if backend is not None:
        with use_backend(backend):  # knows it, on whatever device
            pass
    for device in devices - {torch.device("meta")}:
        selection = explain("chunk_gated_delta_rule", device=device, backend=backend)
        if selection.chosen is None:
            raise refusal(active_registry(), selection)
