"""The sizes of a model's layers, read from its ``config.json`` as transformers writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gdn_dispatch.errors import InvalidArgumentError
from gdn_dispatch.plan.block_pages import AttentionShape, StateShape

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MODEL_TYPES", "Model", "read_model"]

_QWEN3_5: Final = ("qwen3_5_text", "qwen3_5_moe_text")
MODEL_TYPES: Final = ("qwen3_next", *_QWEN3_5, "olmo_hybrid")
"""``model_type`` of the configs understood, at the top or in a ``text_config``."""

_ARGUMENT: Final = "model_config"


@dataclass(frozen=True, slots=True)
class Model:
    """What pages of a model depend on.

    Attributes:
        model_type: One of ``MODEL_TYPES``.
        state: A Gated DeltaNet layer.
        attention: An attention layer.
        state_dtype_from: Where the dtype of the recurrent state comes from, in words.
    """

    model_type: str
    state: StateShape
    attention: AttentionShape
    state_dtype_from: str


def read_model(
    config: Mapping[str, Any],
    *,
    dtype: str | None = None,
    state_dtype: str | None = None,
    kv_dtype: str | None = None,
) -> Model:
    """Read the fields of a config; each dtype may be given in place of the config's.

    As in vLLM, convolution and cache have the model's dtype, and so has the recurrent state but for
    Qwen3.5, whose ``mamba_ssm_dtype`` counts. Defaults of transformers are not known here: a field
    that is missing is refused.

    Args:
        config: The whole config; Qwen3.5 nests the language model in ``text_config``.
        dtype: Of the model (vLLM's ``--dtype``).
        state_dtype: Of the recurrent state (``--mamba-ssm-cache-dtype``).
        kv_dtype: Of keys and values (``--kv-cache-dtype``).

    Raises:
        InvalidArgumentError: Not a model with Gated DeltaNet layers, or a field is missing.
    """
    nested = config.get("text_config")
    text: Mapping[str, Any] = nested if isinstance(nested, dict) else config
    model_type = text.get("model_type")
    if model_type not in MODEL_TYPES:
        where = "text_config.model_type" if text is nested else "model_type"
        raise InvalidArgumentError(
            _ARGUMENT, f"{where} {model_type!r}", f"one of {', '.join(MODEL_TYPES)}",
            hint="only models with Gated DeltaNet layers have this question",
        )  # fmt: skip
    _check_layers(text, model_type)

    model_dtype = dtype or _dtype(text) or _dtype(config)
    if model_dtype is None:
        raise _missing("dtype", "pass --dtype")
    source = "asked for"
    if state_dtype is None:
        state_dtype, source = model_dtype, "the model's"
        if model_type in _QWEN3_5 and text.get("mamba_ssm_dtype") is not None:
            state_dtype, source = str(text["mamba_ssm_dtype"]), "mamba_ssm_dtype"

    heads = _field(text, "num_attention_heads")
    if model_type == "olmo_hybrid":  # it has no head_dim, and its num_key_value_heads may be null
        head_dim = text.get("head_dim") or _field(text, "hidden_size") // max(heads, 1)
        kv_heads = text.get("num_key_value_heads") or heads
    else:
        head_dim, kv_heads = _field(text, "head_dim"), _field(text, "num_key_value_heads")
    state = StateShape(
        num_heads=_field(text, "linear_num_key_heads"),
        num_v_heads=_field(text, "linear_num_value_heads"),
        head_dim_k=_field(text, "linear_key_head_dim"),
        head_dim_v=_field(text, "linear_value_head_dim"),
        conv_width=_field(text, "linear_conv_kernel_dim"),
        conv_dtype=model_dtype,
        state_dtype=state_dtype,
    )
    attention = AttentionShape(kv_heads, head_dim, kv_dtype or model_dtype)
    return Model(model_type, state, attention, source)


def _check_layers(text: Mapping[str, Any], model_type: str) -> None:
    layers = text.get("layer_types")
    if not isinstance(layers, list):
        return
    for kind, what in (("linear_attention", "Gated DeltaNet"), ("full_attention", "attention")):
        if kind not in layers:
            raise InvalidArgumentError(
                _ARGUMENT, f"{model_type} without a layer of type {kind}", f"{what} layers, too",
                hint="pages are aligned only where a model has both",
            )  # fmt: skip


def _dtype(config: Mapping[str, Any]) -> str | None:
    found = config.get("dtype") or config.get("torch_dtype")
    return str(found).removeprefix("torch.") if found else None


def _field(text: Mapping[str, Any], name: str) -> int:
    value = text.get(name)
    if value is None:
        raise _missing(name, "add it, with the default of the model's class in transformers")
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgumentError(_ARGUMENT, f"{name} {value!r}", "an int")
    return value


def _missing(name: str, way_out: str) -> InvalidArgumentError:
    return InvalidArgumentError(_ARGUMENT, f"no {name}", "the field", hint=way_out)
