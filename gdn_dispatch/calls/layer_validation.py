"""What a backend may assume about a ``gdn_attention`` call; see ``validation``."""

from __future__ import annotations

from typing import Any

import torch

from gdn_dispatch.calls.validation import (
    FLOATING,
    check_device,
    check_dtype,
    check_gate_parameters,
    check_shape,
    check_tensor,
    check_writable,
    describe,
    refuse,
)
from gdn_dispatch.errors import InvalidArgumentError, MetadataError
from gdn_dispatch.meta import ChunkMeta

__all__ = ["check_activation", "check_layer", "check_meta"]

_ACTIVATIONS = {"silu": "silu", "swish": "silu", None: None}


def check_activation(activation: Any) -> str | None:
    """``"silu"`` (also as ``"swish"``, the same function) or None."""
    try:
        return _ACTIVATIONS[activation]
    except (KeyError, TypeError):
        refuse("activation", describe(activation), "'silu', 'swish' or None")


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
) -> tuple[int, tuple[int, int, int, int, int]]:
    """All tensors of the call but ``out``; returns T, and H, HV, K, V, W: all from the tensors."""
    check_tensor("ssm_state", ssm_state, 4, _STATE_LAYOUT[state_v_first])
    check_tensor("conv_state", conv_state, 3, "[slots, D, L]")
    check_tensor("conv_weight", conv_weight, 2, "[D, W]")
    _, HV, K, V = ssm_state.shape
    if state_v_first:
        K, V = V, K
    D, W = conv_weight.shape
    H = _key_heads(D, W, HV, K, V)
    if conv_state.shape[1] != D or conv_state.shape[2] < W - 1:
        like = f"[slots, D={D}, L >= W-1={W - 1}]"
        refuse("conv_state", conv_state, like, "pass a view for other layouts")

    if 0 in conv_state.stride() or 0 in ssm_state.stride():
        check_writable("conv_state", conv_state)
        check_writable("ssm_state", ssm_state)

    raw = not (qkvz is None and ba is None and z is None)
    if raw:
        _refuse_both_forms(mixed_qkv, a, b)
        x, T = _check_projections(qkvz, ba, z, H, K, HV, V)
        a, b = ba, z  # the two further tensors of activation dtype
    else:
        x, T = _check_split(mixed_qkv, a, b, D, HV)
    dtype, device = x.dtype, x.device
    if dtype not in FLOATING:
        check_dtype("projected_states_qkvz" if raw else "mixed_qkv", x, FLOATING)
    if A_log is None or dt_bias is None:
        refuse("A_log" if A_log is None else "dt_bias", None, "a tensor [HV]")
    check_gate_parameters(A_log, dt_bias, HV, dtype, device)
    if conv_bias is not None:
        check_tensor("conv_bias", conv_bias, 1, "[D]")
        check_shape("conv_bias", conv_bias, (D,), "[D]")
    same = a.dtype is dtype and b.dtype is dtype and conv_state.dtype is dtype
    near = a.device == device == b.device and conv_state.device == device == ssm_state.device
    if not (same and near and conv_weight.device == device) or conv_bias is not None:
        names = ("projected_states_ba", "z") if raw else ("a", "b")
        for name, value in ((names[0], a), (names[1], b), ("conv_state", conv_state)):
            check_dtype(name, value, (dtype,))
            check_device(name, value, device, "the call")
        for name, value in (("conv_weight", conv_weight), ("conv_bias", conv_bias)):
            if value is not None:
                check_device(name, value, device, "the call")
        check_device("ssm_state", ssm_state, device, "the call")
    if conv_weight.dtype is not dtype and conv_weight.dtype is not torch.float32:
        check_dtype("conv_weight", conv_weight, {dtype, torch.float32})
    if conv_bias is not None:
        check_dtype("conv_bias", conv_bias, {dtype, torch.float32})
    if ssm_state.dtype not in FLOATING:
        check_dtype("ssm_state", ssm_state, FLOATING)
    return T, (H, HV, K, V, W)


_STATE_LAYOUT = {False: "[slots, HV, K, V]", True: "[slots, HV, V, K]"}


def _key_heads(D: int, W: int, HV: int, K: int, V: int) -> int:
    """H out of D = 2*H*K + HV*V."""
    if not (HV and K and V):
        refuse("ssm_state", f"HV={HV}, K={K}, V={V}", "sizes of at least 1")
    if not (D and W):
        refuse("conv_weight", f"D={D}, W={W}", "sizes of at least 1")
    H, rest = divmod(D - HV * V, 2 * K)
    if H <= 0 or rest:
        refuse(
            "conv_weight",
            f"D={D}",
            f"D = 2*H*K + HV*V channels with HV={HV}, K={K}, V={V} of ssm_state",
            "is state_v_first right?",
        )
    if HV % H:
        refuse("conv_weight", f"D={D}", f"HV={HV} a multiple of H={H} = (D - HV*V) / (2*K)")
    return H


def _refuse_both_forms(mixed_qkv: Any, a: Any, b: Any) -> None:
    for name, value in (("mixed_qkv", mixed_qkv), ("a", a), ("b", b)):
        if value is not None:
            refuse(name, value, "None beside the raw projections", "pass one form of the inputs")


def _check_split(mixed_qkv: Any, a: Any, b: Any, D: int, HV: int) -> tuple[torch.Tensor, int]:
    if mixed_qkv is None:
        forms = "a tensor [T, D], with a and b; or projected_states_qkvz, projected_states_ba and z"
        refuse("mixed_qkv", None, forms)
    check_tensor("mixed_qkv", mixed_qkv, 2, "[T, D]")
    check_tensor("a", a, 2, "[T, HV]")
    check_tensor("b", b, 2, "[T, HV]")
    T = mixed_qkv.shape[0]
    gates = (T, HV)
    if mixed_qkv.shape[1] != D or a.shape != gates or b.shape != gates:
        check_shape("mixed_qkv", mixed_qkv, (T, D), "[T, D]")
        check_shape("a", a, gates, "[T, HV]")
        check_shape("b", b, gates, "[T, HV]")
    return mixed_qkv, T


def _check_projections(
    qkvz: Any, ba: Any, z: Any, H: int, K: int, HV: int, V: int
) -> tuple[torch.Tensor, int]:
    check_tensor("projected_states_qkvz", qkvz, 2, "[T, 2*H*K + 2*HV*V]")
    check_tensor("projected_states_ba", ba, 2, "[T, 2*HV]")
    check_tensor("z", z, 3, "[T, HV, V]")
    T = qkvz.shape[0]
    check_shape("projected_states_qkvz", qkvz, (T, 2 * H * K + 2 * HV * V), "[T, 2*H*K + 2*HV*V]")
    check_shape("projected_states_ba", ba, (T, 2 * HV), "[T, 2*HV]")
    check_shape("z", z, (T, HV, V), "[T, HV, V]")
    check_writable("z", z)
    return qkvz, T


def check_out(
    out: Any, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    """The caller's output tensor."""
    check_tensor("out", out, 3, "[T, HV, V]")
    if out.shape != shape:
        check_shape("out", out, shape, "[T, HV, V]")
    if out.dtype is not dtype:
        check_dtype("out", out, (dtype,))
    if out.device != device:
        check_device("out", out, device, "the call")
    if not out.is_contiguous():
        refuse("out", f"strides {out.stride()}", "a contiguous tensor")


def check_meta(meta: Any, tokens: int, device: torch.device, *, serving: bool) -> None:
    """Metadata of this step: on this device, for this many tokens, with slots or without."""
    if not isinstance(meta, ChunkMeta):
        raise MetadataError(
            "meta",
            describe(meta),
            "a ChunkMeta",
            hint="build it once per step: build_chunk_meta(plan_batch(...), device)",
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
            hint="another step's metadata? rows past the last sequence need total_tokens=T",
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


def check_slots(largest: int, conv_state: torch.Tensor, ssm_state: torch.Tensor) -> None:
    """Slots known on the host, up to ``largest``, lie inside both pools."""
    for name, pool in (("conv_state", conv_state), ("ssm_state", ssm_state)):
        if largest >= pool.shape[0]:
            raise InvalidArgumentError(
                "state_indices", f"slot {largest}", f"slots below {pool.shape[0]}, those of {name}"
            )
