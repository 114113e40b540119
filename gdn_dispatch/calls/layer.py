"""A ``gdn_attention`` call: validated, bound, sent to the backend."""

from __future__ import annotations

from typing import Any

import torch

from gdn_dispatch.calls.layer_validation import (
    check_activation,
    check_conv_lines,
    check_layer,
    check_meta,
    check_out,
    check_slots,
)
from gdn_dispatch.calls.metadata import check_owner
from gdn_dispatch.calls.rule import dtype_name, refuse_result
from gdn_dispatch.calls.validation import check_flags, check_scale, describe, refuse
from gdn_dispatch.capability import CallFacts, Feature
from gdn_dispatch.selection.dispatch import bind, lookup
from gdn_dispatch.types import GDNOutput, GDNRequest

__all__ = ["run_layer_call"]


def run_layer_call(
    mixed_qkv: Any,
    a: Any,
    b: Any,
    meta: Any,
    conv_state: Any,
    ssm_state: Any,
    conv_weight: Any,
    conv_bias: Any,
    A_log: Any,
    dt_bias: Any,
    activation: Any,
    scale: Any,
    allow_neg_eigval: Any,
    state_v_first: Any,
    out: Any,
    backend: Any,
    projected_states_qkvz: Any,
    projected_states_ba: Any,
    z: Any,
    gqa_interleaved_layout: Any,
) -> torch.Tensor:
    """See ``api.gdn_attention``."""
    if not (type(allow_neg_eigval) is type(state_v_first) is type(gqa_interleaved_layout) is bool):
        check_flags(
            allow_neg_eigval=allow_neg_eigval,
            state_v_first=state_v_first,
            gqa_interleaved_layout=gqa_interleaved_layout,
        )
    T, sizes = check_layer(
        mixed_qkv, a, b, conv_state, ssm_state, conv_weight, conv_bias, A_log, dt_bias,
        state_v_first, projected_states_qkvz, projected_states_ba, z,
    )  # fmt: skip
    H, HV, K, V, W = sizes
    raw = mixed_qkv is None
    if gqa_interleaved_layout and not raw:
        refuse("gqa_interleaved_layout", True, "False unless projected_states_qkvz is given")
    x = projected_states_qkvz if raw else mixed_qkv
    device = x.device
    check_meta(meta, T, device, serving=True)
    plan, spec = meta.plan, meta.speculative is not None
    if spec:
        check_conv_lines(meta, conv_state, W)
    if plan.max_slot >= conv_state.shape[0] or plan.max_slot >= ssm_state.shape[0]:
        check_slots(plan.max_slot, conv_state, ssm_state)
    if activation != "silu":
        activation = check_activation(activation)
    scale = check_scale(scale, K)
    if out is not None:
        check_out(out, (T, HV, V), x.dtype, device)
    if torch.is_grad_enabled():
        _refuse_grad(
            projected_states_qkvz=projected_states_qkvz, mixed_qkv=mixed_qkv, a=a, b=b,
            projected_states_ba=projected_states_ba, conv_weight=conv_weight, conv_bias=conv_bias,
            A_log=A_log, dt_bias=dt_bias, out=out, conv_state=conv_state, ssm_state=ssm_state, z=z,
        )  # fmt: skip

    checkpoints = plan.checkpoints is not None
    key = (device, x.dtype, ssm_state.dtype, sizes, state_v_first, raw, spec, checkpoints)
    bound = lookup(key, backend)
    if bound is None:
        wanted = {
            Feature.STATE_V_FIRST: state_v_first,
            Feature.RAW_PROJECTIONS: raw,
            Feature.SPECULATIVE: spec,
            Feature.CHECKPOINTS: checkpoints,
        }
        features = frozenset(feature for feature, on in wanted.items() if on)
        facts = CallFacts(
            op="gdn_attention",
            device_type=device.type,
            dtype=dtype_name(x.dtype),
            state_dtype=dtype_name(ssm_state.dtype),
            head_dim_k=K,
            head_dim_v=V,
            num_heads=H,
            num_v_heads=HV,
            conv_width=W,
            features=features,
        )
        bound = bind(
            facts,
            backend,
            key=key,
            inputs=[
                ("projected_states_qkvz" if raw else "mixed_qkv", x),
                ("conv_state", conv_state),
                ("ssm_state", ssm_state),
            ],
            options=sorted(feature.name.lower() for feature in features),
        )
    if meta.backend != bound.name:
        check_owner(meta, bound)
    if out is None:
        out = torch.empty((T, HV, V), dtype=x.dtype, device=device)
    request = GDNRequest(
        mixed_qkv, a, b, projected_states_qkvz, projected_states_ba, z, gqa_interleaved_layout,
        meta, conv_state, ssm_state, conv_weight, conv_bias, A_log, dt_bias, activation, scale,
        allow_neg_eigval, state_v_first, out, H, HV, K, V, bound.provider,
    )  # fmt: skip
    result = bound.function(request)
    if type(result) is not GDNOutput:
        refuse_result(bound, "gdn_attention", result)
    return out  # type: ignore[no-any-return]


def _refuse_grad(**tensors: torch.Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            refuse(
                name,
                f"{describe(tensor)} that requires grad",
                "no gradients: the pools are updated in place",
                "call under torch.no_grad(), or use chunk_gated_delta_rule",
            )
