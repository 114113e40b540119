"""The recurrence alone on the portable kernels: dense or packed, in chunks or token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gdn_dispatch.triton_kernels.config import LaunchShape
from gdn_dispatch.triton_kernels.dense import dense_rows
from gdn_dispatch.triton_kernels.prefill import chunk_rule
from gdn_dispatch.triton_kernels.rows import Rows
from gdn_dispatch.triton_kernels.rule_tensors import (
    PrefillInputs,
    States,
    final_state,
    flat_tokens,
)
from gdn_dispatch.triton_kernels.steps import recurrent_sequences
from gdn_dispatch.types import GDNOutput

if TYPE_CHECKING:
    from gdn_dispatch.triton_kernels.config import LaunchTable
    from gdn_dispatch.types import RuleRequest

__all__ = ["gated_delta_rule"]


def gated_delta_rule(request: RuleRequest, table: LaunchTable) -> GDNOutput:
    """Run a validated request; metadata, where there is some, has chunks of ``rule_tensors.CHUNK``.

    Tokens are addressed by one stride. q, k and v whose last stride is not 1, or whose batch rows
    do not follow each other at the stride of tokens times T, are copied first.

    Args:
        request: See ``gdn_dispatch.hookspecs``.
        table: Which configuration a launch gets.
    """
    B, T, H, K = request.q.shape
    HV, V = request.v.shape[2:]
    meta, device = request.meta, request.v.device
    q, k, v = (flat_tokens(x) for x in (request.q, request.k, request.v))
    g, beta = (x.flatten(0, 1) for x in (request.g, request.beta))
    out = torch.empty(B, T, HV, V, dtype=request.v.dtype, device=device)
    if meta is None:
        rows, lived = dense_rows(B, T, device, chunked=not request.recurrent), B * T
    elif meta.prefill is None:  # no sequences
        rows, lived = dense_rows(0, 0, device, chunked=not request.recurrent), 0
    else:
        rows, lived = Rows.of(meta, meta.prefill), meta.plan.num_tokens
    flat = out.flatten(0, 1)
    if lived < B * T:
        flat[lived:].zero_()
    initial, final = request.initial_state, final_state(request, rows.num_seqs)
    shape = LaunchShape(
        device=device,
        rows=rows.num_seqs,
        tokens=lived,
        max_seqlen=rows.max_seqlen,
        num_heads=H,
        num_v_heads=HV,
        head_dim_k=K,
        head_dim_v=V,
        dtype=request.v.dtype,
        state_dtype=torch.float32 if initial is None else initial.dtype,
    )
    if request.recurrent:
        recurrent_sequences(
            q, k, v, g, beta, rows, flat, table.steps(shape),
            scale=request.scale,
            initial_state=initial,
            final_state=final,
            state_v_first=request.state_v_first,
            A_log=request.A_log,
            dt_bias=request.dt_bias,
            use_qk_l2norm=request.use_qk_l2norm_in_kernel,
            beta_is_logit=request.use_beta_sigmoid_in_kernel,
            allow_neg_eigval=request.allow_neg_eigval,
        )  # fmt: skip
    else:
        inputs = PrefillInputs(
            q, k, v, g, beta,
            A_log=request.A_log,
            dt_bias=request.dt_bias,
            scale=request.scale,
            l2norm=request.use_qk_l2norm_in_kernel,
            beta_is_logit=request.use_beta_sigmoid_in_kernel,
            allow_neg_eigval=request.allow_neg_eigval,
        )  # fmt: skip
        states = States(initial, final, request.state_v_first)
        chunk_rule(inputs, rows, states, flat, table.prefill(shape))
    return GDNOutput(out, final)
