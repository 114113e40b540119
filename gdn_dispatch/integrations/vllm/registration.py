"""The plugin's entry point: what is registered with vLLM, and when it is not."""

from __future__ import annotations

import importlib
import logging
import threading
from dataclasses import dataclass
from typing import Any

from gdn_dispatch.config import DISABLE_VARIABLE
from gdn_dispatch.integrations.vllm.seam import COMMON, LAYERS, mismatches
from gdn_dispatch.integrations.vllm.versions import TESTED, vllm_version
from gdn_dispatch.selection.dispatch import active_config

__all__ = ["Status", "register", "status"]

_logger = logging.getLogger("gdn_dispatch")
_lock = threading.RLock()


_CLASSES = {
    "QwenGatedDeltaNetAttention": ("layer", "DispatchGatedDeltaNetAttention"),
    "OlmoHybridGatedDeltaNetAttention": ("olmo_layer", "DispatchOlmoHybridAttention"),
}
"""Module of this package and class that take the place of a layer; they import vLLM."""


@dataclass(frozen=True, slots=True)
class Status:
    """What ``register`` has brought about in this process.

    Attributes:
        layers: Names of vLLM's layer classes in whose place vLLM makes this package's.
        vllm: Version of vLLM, or empty.
        why: The reason where a layer is left out; empty where none is.
    """

    layers: tuple[str, ...]
    vllm: str
    why: str = ""

    @property
    def registered(self) -> bool:
        """Whether any layer is."""
        return bool(self.layers)


_status = Status((), "", "register() has not been called in this process")


def status() -> Status:
    """The outcome of the last ``register`` of this process."""
    return _status


def register() -> None:
    """Register the layers with vLLM; vLLM calls this in every process, possibly more than once.

    Does not raise: an exception here would end vLLM for models that have nothing to do with it.
    Where a layer is left out, ``status()`` keeps the reason and one line of the log tells it.
    """
    global _status
    with _lock:
        before, _status = _status, _register()
        if _status == before:
            return  # said already
        if not _status.why:
            _logger.debug("vLLM %s: %s registered", _status.vllm, ", ".join(_status.layers))
        elif "vllm" in active_config().disabled_integrations:
            _logger.info("vLLM keeps its own Gated DeltaNet layers: %s", _status.why)
        else:
            _logger.warning("vLLM keeps its own Gated DeltaNet layers: %s", _status.why)


def _register() -> Status:
    if "vllm" in active_config().disabled_integrations:
        return Status((), "", f"switched off by {DISABLE_VARIABLE}")
    version = vllm_version()
    if version is None:
        return Status((), "", "vLLM is not installed; pip install 'gdn-dispatch[vllm]'")
    if wrong := mismatches(COMMON):
        return Status((), version, _changed(version, wrong))
    layers, reasons = [], []
    for name, seam in LAYERS.items():
        if wrong := mismatches(seam):
            reasons.append(f"{name}: {_changed(version, wrong)}")
        elif reason := _register_layer(name):
            reasons.append(reason)
        else:
            layers.append(name)
    return Status(tuple(layers), version, "; ".join(reasons))


def _register_layer(name: str) -> str:
    """Why ``name`` could not be registered, or empty."""
    from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot

    module, attribute = _CLASSES[name]
    ours: type[Any] = getattr(
        importlib.import_module(f"gdn_dispatch.integrations.vllm.{module}"), attribute
    )
    present = op_registry_oot.get(name)
    if present is None:
        PluggableLayer.register_oot(ours, name=name)
        present = op_registry_oot.get(name)
    if present is ours:
        return ""
    theirs = f"{present.__module__}.{present.__qualname__}" if present else "nothing"
    return (
        f"{name}: {theirs} is registered for it and is not replaced; remove its plugin, or name "
        "the plugins to load in VLLM_PLUGINS"
    )


def _changed(version: str, wrong: tuple[str, ...]) -> str:
    return (
        f"vLLM {version} is not as expected: {', '.join(wrong)}. Tested versions: "
        f"{', '.join(TESTED)}; install one of them, or set {DISABLE_VARIABLE}=vllm"
    )
