"""A ``RuleRequest`` as one call of ``gdn_rule``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeGuard

import torch

from gdn_dispatch.torch_backend.kernels.memory import empty_output, empty_result
from gdn_dispatch.types import GDNOutput
from gdn_dispatch_cpu.kernels.failures import refuse
from gdn_dispatch_cpu.kernels.library import (
    ABSENT,
    ABSENT_STATES,
    DTYPES,
    RULE_CALL,
    load_library,
)
from gdn_dispatch_cpu.kernels.options import BEST, Options

if TYPE_CHECKING:
    from gdn_dispatch.types import RuleRequest

__all__ = ["gated_delta_rule"]

_FLOAT32: Final = DTYPES[torch.float32]
_Members = tuple[int, int, int, int, int, int, int]


def gated_delta_rule(request: RuleRequest, options: Options = BEST) -> GDNOutput:
    """Run a validated request that needs no gradients."""
    q, k, v, g, beta = request.q, request.k, request.v, request.g, request.beta
    B, T, H, K = q.shape
    _, _, HV, V = v.shape
    r = HV // H
    meta, v_first = request.meta, request.state_v_first
    if meta is None:
        N, starts = B, 0
    else:
        N, starts = meta.plan.num_seqs, meta.plan.query_start_loc.__array_interface__["data"][0]

    state, final = request.initial_state, None
    source, target = _states(state, v_first), ABSENT_STATES
    if request.output_final_state:
        if request.donate_initial_state and _can_hold_final_state(state):
            final, target = state, source
        else:
            shape = (N, HV, V, K) if v_first else (N, HV, K, V)
            final = empty_result(shape, torch.float32, v.device)
            target = _states(final, v_first)
    out = empty_output(v)

    # A quarter of a decode step is spent here, so nothing is asked twice: q, k, v and the output
    # share a dtype, and g and beta have that one or fp32.
    dtype = q.dtype
    kind = DTYPES[dtype]
    qb, qt, qh, qc = q.stride()
    kb, kt, kh, kc = k.stride()
    vb, vt, vh, vc = v.stride()
    A_log = dt_bias = ABSENT
    if request.A_log is not None:
        A_log = _per_head(request.A_log, r)
        if request.dt_bias is not None:
            dt_bias = _per_head(request.dt_bias, r)
    gb, gt, gh = g.stride()
    bb, bt, bh = beta.stride()
    call = RULE_CALL.pack(
        H, HV, K, V, request.use_qk_l2norm_in_kernel, request.use_beta_sigmoid_in_kernel,
        request.allow_neg_eigval, request.recurrent, options.exact, options.path, options.threads,
        request.scale,
        q.data_ptr(), kind, qb, qt, qh, 0, qc,
        k.data_ptr(), kind, kb, kt, kh, 0, kc,
        v.data_ptr(), kind, vb, vt, vh * r, vh, vc,
        g.data_ptr(), kind if g.dtype is dtype else _FLOAT32, gb, gt, gh * r, gh, 0,
        beta.data_ptr(), kind if beta.dtype is dtype else _FLOAT32, bb, bt, bh * r, bh, 0,
        *A_log,
        *dt_bias,
        out.data_ptr(), kind, T * HV * V, HV * V, r * V, V, 1,
        N, T, starts,
        *source,
        *target,
    )  # fmt: skip
    status = load_library().rule(call)
    if status:
        refuse(status)
    if final is not None and final is not state:
        _keep_states_of_empty_sequences(request, N, T, final)
    return GDNOutput(out, final)


def _can_hold_final_state(state: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    return state is not None and state.dtype == torch.float32 and state.is_contiguous()


def _per_head(x: torch.Tensor, r: int) -> _Members:
    """A ``gdn_tensor`` of one number a value head."""
    (step,) = x.stride()
    return (x.data_ptr(), DTYPES[x.dtype], 0, 0, step * r, step, 0)


def _states(states: torch.Tensor | None, v_first: bool) -> _Members:
    if states is None:
        return ABSENT_STATES
    slot, head, k, v = states.stride()
    if v_first:
        k, v = v, k
    return (states.data_ptr(), DTYPES[states.dtype], states.shape[0], slot, head, k, v)


def _keep_states_of_empty_sequences(
    request: RuleRequest, N: int, T: int, final: torch.Tensor
) -> None:
    if request.meta is None:
        empty = range(N) if T == 0 else ()
    else:
        lens = request.meta.plan.seq_lens
        if lens.all():
            return
        empty = (lens == 0).nonzero()[0].tolist()
    for n in empty:
        if request.initial_state is None:
            final[n].zero_()
        else:
            final[n].copy_(request.initial_state[n])
