"""What a backend may assume about a ``gdn_attention`` call; see ``validation``."""

from __future__ import annotations

from typing import Any

import torch

from gdn_dispatch.errors import InvalidArgumentError, MetadataError
from gdn_dispatch.meta import ChunkMeta
from gdn_dispatch.validation import (
    FLOATING,
    LayerShape,
    check_device,
    check_dtype,
    check_gate_parameters,
    check_shape,
    check_tensor,
    describe,
    refuse,
)

__all__ = ["check_activation", "check_layer", "check_meta"]

_ACTIVATIONS = {"silu": "silu", "swish": "silu", None: None}


def check_activation(activation: Any) -> str | None:
    """``"silu"`` (also as ``"swish"``, the same function) or None."""
    try:
        return _ACTIVATIONS[activation]
    except (KeyError, TypeError):
        refuse("activation", activation, "'silu', 'swish' or None")


def check_layer(
    mixed_qkv: Any,
    a: Any,
    b: Any,
    conv_state: Any,
    ssm_state: Any,
    conv_weight: Any,
    conv_bias: Any,
    A_log: Any,
    dt_bias: Any,
    state_v_first: bool,
    qkvz: Any,
    ba: Any,
    z: Any,
) -> LayerShape:
    """All tensors of the call but ``out``; returns the sizes, which come from the tensors alone."""
    layout = "[slots, HV, V, K]" if state_v_first else "[slots, HV, K, V]"
    check_tensor("ssm_state", ssm_state, 4, layout)
    check_tensor("conv_state", conv_state, 3, "[slots, D, L]")
    check_tensor("conv_weight", conv_weight, 2, "[D, W]")
    HV, K, V = ssm_state.shape[1:]
    if state_v_first:
        K, V = V, K
    D, W = conv_weight.shape
    if not (HV and K and V and D and W):
        refuse(
            "ssm_state" if not (HV and K and V) else "conv_weight",
            "a size of 0",
            "sizes of at least 1",
        )
    key_channels = D - HV * V
    if key_channels <= 0 or key_channels % (2 * K):
        refuse(
            "conv_weight",
            conv_weight,
            f"D = 2*H*K + HV*V channels with HV={HV}, K={K}, V={V} of ssm_state",
            "is state_v_first right?",
        )
    H = key_channels // (2 * K)
    if HV % H:
        refuse("conv_weight", conv_weight, f"HV={HV} a multiple of H={H} = (D - HV*V) / (2*K)")
    if conv_state.shape[1] != D or conv_state.shape[2] < W - 1:
        refuse(
            "conv_state",
            conv_state,
            f"[slots, D={D}, L >= W-1={W - 1}]",
            "pass a view for other layouts",
        )

    if qkvz is None and ba is None and z is None:
        x, T = _check_split(mixed_qkv, a, b, D, HV)
    else:
        x, T = _check_projections(mixed_qkv, a, b, qkvz, ba, z, H, K, HV, V)
    dtype, device = x.dtype, x.device
    if dtype not in FLOATING:
        check_dtype("projected_states_qkvz" if mixed_qkv is None else "mixed_qkv", x, FLOATING)
    same_dtype = [
        ("a", a),
        ("b", b),
        ("projected_states_ba", ba),
        ("z", z),
        ("conv_state", conv_state),
    ]
    for name, value in same_dtype:
        if value is not None and value.dtype is not dtype:
            check_dtype(name, value, (dtype,))
    for name, value in (("conv_weight", conv_weight), ("conv_bias", conv_bias)):
        if value is not None and value.dtype is not dtype and value.dtype is not torch.float32:
            check_dtype(name, value, {dtype, torch.float32})
    if ssm_state.dtype not in FLOATING:
        check_dtype("ssm_state", ssm_state, FLOATING)
    if conv_bias is not None:
        check_tensor("conv_bias", conv_bias, 1, "[D]")
        check_shape("conv_bias", conv_bias, (D,), "[D]")
    for name, value in (("A_log", A_log), ("dt_bias", dt_bias)):
        if value is None:
            refuse(name, value, "a tensor [HV]")
    check_gate_parameters(A_log, dt_bias, HV, dtype, device)
    for name, value in (
        *same_dtype,
        ("ssm_state", ssm_state),
        ("conv_weight", conv_weight),
        ("conv_bias", conv_bias),
    ):
        if value is not None and value.device != device:
            check_device(name, value, device, "the call")
    return LayerShape(T, H, HV, K, V, W)


def _check_split(mixed_qkv: Any, a: Any, b: Any, D: int, HV: int) -> tuple[torch.Tensor, int]:
    if mixed_qkv is None:
        refuse(
            "mixed_qkv",
            None,
            "a tensor [T, D], with a and b; or projected_states_qkvz, projected_states_ba and z",
        )
    check_tensor("mixed_qkv", mixed_qkv, 2, "[T, D]")
    check_tensor("a", a, 2, "[T, HV]")
    check_tensor("b", b, 2, "[T, HV]")
    T = mixed_qkv.shape[0]
    check_shape("mixed_qkv", mixed_qkv, (T, D), "[T, D]")
    check_shape("a", a, (T, HV), "[T, HV]")
    check_shape("b", b, (T, HV), "[T, HV]")
    return mixed_qkv, T


def _check_projections(
    mixed_qkv: Any, a: Any, b: Any, qkvz: Any, ba: Any, z: Any, H: int, K: int, HV: int, V: int
) -> tuple[torch.Tensor, int]:
    for name, value in (("mixed_qkv", mixed_qkv), ("a", a), ("b", b)):
        if value is not None:
            refuse(name, value, "None beside the raw projections", "pass one form of the inputs")
    check_tensor("projected_states_qkvz", qkvz, 2, "[T, 2*H*K + 2*HV*V]")
    check_tensor("projected_states_ba", ba, 2, "[T, 2*HV]")
    check_tensor("z", z, 3, "[T, HV, V]")
    T = qkvz.shape[0]
    check_shape("projected_states_qkvz", qkvz, (T, 2 * H * K + 2 * HV * V), "[T, 2*H*K + 2*HV*V]")
    check_shape("projected_states_ba", ba, (T, 2 * HV), "[T, 2*HV]")
    check_shape("z", z, (T, HV, V), "[T, HV, V]")
    return qkvz, T


def check_out(out: Any, shape: LayerShape, dtype: torch.dtype, device: torch.device) -> None:
    """The caller's output tensor."""
    check_tensor("out", out, 3, "[T, HV, V]")
    check_shape("out", out, (shape.T, shape.HV, shape.V), "[T, HV, V]")
    check_dtype("out", out, (dtype,))
    check_device("out", out, device, "the call")
    if out.stride(2) != 1 or out.stride(0) != out.shape[1] * out.stride(1):
        if out.is_contiguous():
            return
        refuse("out", f"strides {out.stride()}", "a contiguous tensor")


def check_meta(meta: Any, tokens: int, device: torch.device, *, serving: bool) -> None:
    """Metadata of this step: on this device, for this many tokens, with slots or without."""
    if not isinstance(meta, ChunkMeta):
        raise MetadataError(
            "meta",
            describe(meta),
            "a ChunkMeta",
            hint="build it once per step: build_chunk_meta(plan_batch(query_start_loc, ...), device)",
        )
    if meta.device != device:
        raise MetadataError("meta.device", str(meta.device), f"the tensors' device, {device}")
    if meta.serving != serving:
        if serving:
            raise MetadataError(
                "meta.state_indices",
                "None",
                "slots of the state pools",
                hint="give state_indices to plan_batch or to build_chunk_meta",
            )
        raise MetadataError(
            "meta.state_indices",
            "slots of state pools",
            "metadata without slots",
            hint="the recurrence alone takes initial_state; gdn_attention takes pools",
        )
    plan = meta.plan
    if plan.total_tokens != tokens:
        raise MetadataError(
            "meta.plan.total_tokens",
            f"{plan.total_tokens}",
            f"{tokens}, the rows of the tensors",
            hint="is this the metadata of another step? rows past the last sequence need total_tokens=T",
        )


def check_conv_lines(meta: ChunkMeta, conv_state: torch.Tensor, W: int) -> None:
    """Speculative rows keep W-2+S columns of conv history."""
    if meta.speculative is None or meta.state_indices is None:
        return
    needed = W - 2 + meta.state_indices.shape[1]
    if conv_state.shape[2] < needed:
        raise InvalidArgumentError(
            "conv_state",
            describe(conv_state),
            f"[slots, D, L >= {needed}] for speculative rows",
            hint="L = W-1 plus the number of draft tokens",
        )


def check_slots(meta: ChunkMeta, conv_state: torch.Tensor, ssm_state: torch.Tensor) -> None:
    """Slots known on the host lie inside both pools."""
    largest = meta.plan.max_slot
    for name, pool in (("conv_state", conv_state), ("ssm_state", ssm_state)):
        if largest >= pool.shape[0]:
            raise InvalidArgumentError(
                "state_indices", f"slot {largest}", f"slots below {pool.shape[0]}, those of {name}"
            )
