"""The layer core on the portable kernels: conv, then the rule, on the engine's pools.

A prefill group takes three launches, a decode or speculative group two. Nothing is gathered, cast,
masked or scattered around them, and nothing of the device is read on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gdn_dispatch.layer import split_projections
from gdn_dispatch.triton_kernels.capture import is_capturing
from gdn_dispatch.triton_kernels.config import LaunchShape
from gdn_dispatch.triton_kernels.conv import conv_prefill, conv_update
from gdn_dispatch.triton_kernels.prefill import chunk_rule
from gdn_dispatch.triton_kernels.rows import Rows, Slots
from gdn_dispatch.triton_kernels.rule_tensors import PrefillInputs, States
from gdn_dispatch.triton_kernels.steps import recurrent_rule
from gdn_dispatch.types import GDNOutput

if TYPE_CHECKING:
    from gdn_dispatch.meta import SequenceGroup
    from gdn_dispatch.triton_kernels.config import LaunchTable
    from gdn_dispatch.types import GDNRequest

__all__ = ["gdn_attention"]


def gdn_attention(request: GDNRequest, table: LaunchTable) -> GDNOutput:
    """Run a validated request whose metadata has chunks of ``rule_tensors.CHUNK`` tokens.

    Args:
        request: See ``gdn_dispatch.hookspecs``.
        table: Which configuration a launch gets.
    """
    if request.projected_states_qkvz is None:
        mixed_qkv, a, b = request.mixed_qkv, request.a, request.b
    else:
        mixed_qkv, a, b = split_projections(request)
    if mixed_qkv is None or a is None or b is None:  # the core has refused this
        raise TypeError("a GDNRequest holds mixed_qkv, a and b, or the projections")
    meta, out = request.meta, request.out
    slots = Slots.of(meta)
    conv = torch.empty(mixed_qkv.shape, dtype=mixed_qkv.dtype, device=mixed_qkv.device)
    if is_capturing(out.device):
        # A replayed graph may have fewer tokens than the captured step; whose they are is known on
        # the device alone.
        out.zero_()
    elif meta.plan.num_tokens < out.shape[0]:
        out[meta.plan.num_tokens :].zero_()
    if meta.prefill is not None:
        _prefill(request, mixed_qkv, a, b, conv, slots, meta.prefill, table)
    if meta.decode is not None:
        _steps(request, mixed_qkv, a, b, conv, slots, meta.decode, table, speculative=False)
    if meta.speculative is not None:
        _steps(request, mixed_qkv, a, b, conv, slots, meta.speculative, table, speculative=True)
    return GDNOutput(out)


def _prefill(
    request: GDNRequest,
    mixed_qkv: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    conv: torch.Tensor,
    slots: Slots,
    group: SequenceGroup,
    table: LaunchTable,
) -> None:
    rows, shape = Rows.of(request.meta, group), _shape(request, group)
    conv_prefill(
        mixed_qkv, conv, rows, slots, request.conv_state,
        request.conv_weight, request.conv_bias, request.activation, table.conv_prefill(shape),
    )  # fmt: skip
    T, H, K = conv.shape[0], request.num_heads, request.head_dim_k
    q, k, v = conv.split((H * K, H * K, conv.shape[1] - 2 * H * K), dim=1)
    inputs = PrefillInputs(
        q=q.view(T, H, K),
        k=k.view(T, H, K),
        v=v.view(T, request.num_v_heads, request.head_dim_v),
        g=a,
        beta=b,
        A_log=request.A_log,
        dt_bias=request.dt_bias,
        scale=request.scale,
        l2norm=True,
        beta_is_logit=True,
        allow_neg_eigval=request.allow_neg_eigval,
    )
    pool = request.ssm_state
    states = States(pool, pool, request.state_v_first, slots)
    chunk_rule(inputs, rows, states, request.out, table.prefill(shape))


def _steps(
    request: GDNRequest,
    mixed_qkv: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    conv: torch.Tensor,
    slots: Slots,
    group: SequenceGroup,
    table: LaunchTable,
    *,
    speculative: bool,
) -> None:
    rows, shape = Rows.of(request.meta, group), _shape(request, group, speculative=speculative)
    conv_update(
        mixed_qkv, conv, rows, slots, request.conv_state,
        request.conv_weight, request.conv_bias, request.activation, table.conv_update(shape),
        speculative=speculative,
    )  # fmt: skip
    recurrent_rule(
        conv, a, b, request.A_log, request.dt_bias, rows, slots, request.ssm_state, request.out,
        table.steps(shape),
        num_heads=request.num_heads,
        scale=request.scale,
        state_v_first=request.state_v_first,
        allow_neg_eigval=request.allow_neg_eigval,
        speculative=speculative,
    )  # fmt: skip


def _shape(request: GDNRequest, group: SequenceGroup, *, speculative: bool = False) -> LaunchShape:
    return LaunchShape(
        device=request.out.device,
        rows=group.sequences.shape[0],
        tokens=group.num_tokens,
        max_seqlen=group.max_seqlen,
        num_heads=request.num_heads,
        num_v_heads=request.num_v_heads,
        head_dim_k=request.head_dim_k,
        head_dim_v=request.head_dim_v,
        dtype=request.out.dtype,
        state_dtype=request.ssm_state.dtype,
        speculative=speculative,
        channels_last=request.conv_state.stride(1) == 1,
    )
