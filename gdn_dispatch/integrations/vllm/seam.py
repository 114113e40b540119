"""What of vLLM is relied on, as data, and the check that it is still so.

vLLM promises none of these names. Each is looked up before anything is registered: a method of
another name would never be called, and arguments in another order would be wrong numbers.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMON", "LAYERS", "Fields", "Function", "Value", "mismatches"]

_GDN = "vllm.v1.attention.backends.gdn_attn"
_LAYERS = "vllm.model_executor.layers.mamba.gdn"


@dataclass(frozen=True, slots=True)
class Function:
    """A function or method, with its parameters in order.

    Attributes:
        path: ``module:name`` or ``module:Class.name``.
        parameters: Every name, ``self`` and ``cls`` left out.
    """

    path: str
    parameters: tuple[str, ...]

    def mismatch(self, found: Any) -> str:
        """What is different about ``found``, or empty."""
        try:
            names = [name for name in inspect.signature(found).parameters if name != "self"]
        except (TypeError, ValueError):
            return f"{self.path} is {type(found).__name__}, a function is expected"
        if tuple(names) != self.parameters:
            got, expected = ", ".join(names), ", ".join(self.parameters)
            return f"{self.path} takes ({got}), expected ({expected})"
        return ""


@dataclass(frozen=True, slots=True)
class Fields:
    """A dataclass that has these fields, among others.

    Attributes:
        path: ``module:Class``.
        names: Fields that are read.
    """

    path: str
    names: tuple[str, ...]

    def mismatch(self, found: Any) -> str:
        """What is missing in ``found``, or empty."""
        if not dataclasses.is_dataclass(found):
            return f"{self.path} is no dataclass"
        missing = set(self.names) - {field.name for field in dataclasses.fields(found)}
        return f"{self.path} has no {', '.join(sorted(missing))}" if missing else ""


@dataclass(frozen=True, slots=True)
class Value:
    """A module's constant.

    Attributes:
        path: ``module:name``.
        type: Its type.
        value: What it must be; None: anything of that type.
    """

    path: str
    type: type[Any]
    value: Any = None

    def mismatch(self, found: Any) -> str:
        """What is different about ``found``, or empty."""
        if not isinstance(found, self.type) or (self.value is not None and found != self.value):
            wanted = self.type.__name__ if self.value is None else repr(self.value)
            return f"{self.path} is {found!r}, expected {wanted}"
        return ""


COMMON: tuple[Function | Fields | Value, ...] = (
    # where replacements are registered
    Value("vllm.model_executor.custom_op:op_registry_oot", dict),
    Function(
        "vllm.model_executor.custom_op:PluggableLayer.register_oot",
        ("_decorated_layer_cls", "name"),
    ),
    Function("vllm.forward_context:get_forward_context", ()),
    Function("vllm.model_executor.layers.mamba.mamba_utils:is_conv_state_dim_first", ()),
    # the metadata
    Function(f"{_GDN}:GDNAttentionBackend.get_builder_cls", ()),
    Function(
        f"{_GDN}:GDNAttentionMetadataBuilder.__init__",
        ("kv_cache_spec", "layer_names", "vllm_config", "device"),
    ),
    Function(
        f"{_GDN}:GDNAttentionMetadataBuilder.build",
        (
            "common_prefix_len",
            "common_attn_metadata",
            "num_accepted_tokens",
            "num_decode_draft_tokens_cpu",
            "fast_build",
        ),
    ),
    Function(
        f"{_GDN}:GDNAttentionMetadataBuilder.build_for_cudagraph_capture",
        ("common_attn_metadata",),
    ),
    Function(
        f"{_GDN}:GDNAttentionMetadataBuilder._build_chunk_metadata",
        ("prefill_query_start_loc", "prefill_query_start_loc_cpu", "device"),
    ),
    Fields(
        f"{_GDN}:GDNAttentionMetadata",
        (
            "num_prefills",
            "num_spec_decodes",
            "checkpoint",
            "non_spec_state_indices_tensor",
            "spec_state_indices_tensor",
            "num_accepted_tokens",
        ),
    ),
    Fields(
        "vllm.v1.attention.backend:CommonAttentionMetadata",
        (
            "query_start_loc",
            "query_start_loc_cpu",
            "seq_lens",
            "seq_lens_cpu_upper_bound",
            "num_reqs",
            "num_actual_tokens",
            "block_table_tensor",
        ),
    ),
    Function(
        "vllm.v1.attention.backends.utils:mamba_get_block_table_tensor",
        ("block_table", "seq_lens", "kv_cache_spec", "mamba_cache_mode"),
    ),
    Value("vllm.v1.attention.backends.utils:NULL_BLOCK_ID", int, 0),
)
"""What every layer needs."""


def _layer(module: str, name: str, *parameters: str) -> tuple[Function, ...]:
    path = f"{_LAYERS}.{module}:{name}"
    return (
        Function(f"{path}.__init__", parameters),
        Function(f"{path}._forward_core", ("mixed_qkv", "b", "a", "core_attn_out")),
        Function(f"{path}.get_attn_backend", ()),
        Function(f"{path}.get_kv_cache_spec", ("vllm_config",)),
        Function(f"{path}.get_state_shape", ()),
        Function(f"{path}.get_state_dtype", ()),
    )


_QWEN = "QwenGatedDeltaNetAttention"
_OLMO = "OlmoHybridGatedDeltaNetAttention"

LAYERS: dict[str, tuple[Function, ...]] = {
    _QWEN: (
        *_layer(
            "qwen_gdn_linear_attn",
            _QWEN,
            "config",
            "vllm_config",
            "prefix",
            "gqa_interleaved_layout",
            "reduce_results",
        ),
        Function(f"{_LAYERS}.qwen_gdn_linear_attn:{_QWEN}.forward_cuda", ("hidden_states",)),
    ),
    _OLMO: _layer("olmo_gdn_linear_attn", _OLMO, "config", "vllm_config", "prefix"),
}
"""What each layer needs besides, by the name of its class: vLLM looks replacements up by that."""


def mismatches(seam: Sequence[Function | Fields | Value]) -> tuple[str, ...]:
    """What of ``seam`` is missing or different in the installed vLLM; empty where all is well."""
    found = []
    for part in seam:
        module_name, _, attribute = part.path.partition(":")
        try:
            target = importlib.import_module(module_name)
        except (ImportError, OSError, RuntimeError) as error:
            found.append(f"{module_name} cannot be imported ({error})")
            continue
        for word in attribute.split("."):
            target = getattr(target, word, None)  # type: ignore[assignment]
        if target is None:
            found.append(f"{part.path} is missing")
        elif text := part.mismatch(target):
            found.append(text)
    return tuple(dict.fromkeys(found))
