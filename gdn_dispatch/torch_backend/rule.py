"""The recurrence alone: a ``RuleRequest`` becomes jobs for the kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch

from gdn_dispatch.torch_backend.kernels.chunk import run_chunks
from gdn_dispatch.torch_backend.kernels.differentiable import differentiable_gated_delta_rule
from gdn_dispatch.torch_backend.kernels.gates import decay_from_gate, write_strength
from gdn_dispatch.torch_backend.kernels.jobs import Heads, SequenceJob
from gdn_dispatch.torch_backend.kernels.memory import empty_output, empty_result
from gdn_dispatch.torch_backend.kernels.steps import MAX_STEPS_BEFORE_CHUNKS, StepJob, run_steps
from gdn_dispatch.torch_backend.reference import reference_gated_delta_rule
from gdn_dispatch.types import GDNOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gdn_dispatch.types import RuleRequest

    _Sequence = Callable[
        [RuleRequest, int, slice, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]
    ]

__all__ = ["gated_delta_rule", "run_jobs"]


def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """Run a validated request: fp64 by the oracle, gradients out of place, else in place."""
    if request.q.dtype == torch.float64:
        return _by_sequence(request, _oracle)
    if torch.is_grad_enabled() and _requires_grad(request):
        return _by_sequence(request, _differentiable)
    return _fast(request)


def run_jobs(heads: Heads, jobs: list[SequenceJob], out: torch.Tensor, *, recurrent: bool) -> None:
    """Send every job to the kernel its own length calls for, whatever else is in the batch."""
    longest_step = (
        max((j.length for j in jobs), default=0) if recurrent else MAX_STEPS_BEFORE_CHUNKS
    )
    steps = [StepJob(job) for job in jobs if job.length <= longest_step]
    chunks = [job for job in jobs if job.length > longest_step]
    if steps:
        run_steps(heads, steps, out)
    if chunks:
        run_chunks(heads, chunks, out)


def _spans(request: RuleRequest) -> Iterator[tuple[int, int, int]]:
    """(batch row, first token, length) of every sequence."""
    if request.meta is None:
        B, T = request.q.shape[:2]
        yield from ((b, 0, T) for b in range(B))
    else:
        plan = request.meta.plan
        for start, length in zip(
            plan.query_start_loc.tolist(), plan.seq_lens.tolist(), strict=False
        ):
            yield 0, start, length


def _fast(request: RuleRequest) -> GDNOutput:
    q, v, state = request.q, request.v, request.initial_state
    HV, V = v.shape[2:]
    K = q.shape[3]
    spans = list(_spans(request))
    # A state with V first is the same matrix seen through a transpose.
    reads = None if state is None else state.transpose(2, 3) if request.state_v_first else state
    final = writes = None
    if request.output_final_state:
        if request.donate_initial_state and _can_hold_final_state(state):
            final = state
        else:
            shape = (len(spans), HV, V, K) if request.state_v_first else (len(spans), HV, K, V)
            final = empty_result(shape, torch.float32, v.device)
        writes = final.transpose(2, 3) if request.state_v_first else final

    out = empty_output(v)
    jobs = []
    for n, (batch, start, length) in enumerate(spans):
        read = None if reads is None else reads[n]
        write = None if writes is None else writes[n]
        if length:
            jobs.append(SequenceJob(batch, start, length, read, write))
        elif write is not None:
            write.zero_() if read is None else write.copy_(read)  # nothing, onto itself
    if request.meta is not None:
        out[:, request.meta.plan.num_tokens :].zero_()
    if jobs:
        run_jobs(_heads(request), jobs, out, recurrent=request.recurrent)
    return GDNOutput(out, final)


def _can_hold_final_state(state: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    return state is not None and state.dtype == torch.float32 and state.is_contiguous()


def _heads(request: RuleRequest) -> Heads:
    if request.A_log is None:
        g = request.g.float()
    else:
        g = decay_from_gate(request.g, request.A_log, request.dt_bias)
    beta = write_strength(
        request.beta,
        is_logit=request.use_beta_sigmoid_in_kernel,
        allow_neg_eigval=request.allow_neg_eigval,
    )
    return Heads(
        request.q, request.k, request.v, g, beta, request.scale, request.use_qk_l2norm_in_kernel
    )


def _requires_grad(request: RuleRequest) -> bool:
    tensors = (request.q, request.k, request.v, request.g, request.beta, request.initial_state)
    gates = (request.A_log, request.dt_bias)
    return any(x is not None and x.requires_grad for x in (*tensors, *gates))


def _by_sequence(request: RuleRequest, run: _Sequence) -> GDNOutput:
    """One call of ``run`` a sequence, results put together out of place."""
    state = request.initial_state
    if state is not None and request.state_v_first:
        state = state.transpose(2, 3)
    outputs, states = [], []
    for n, (batch, start, length) in enumerate(_spans(request)):
        initial = None if state is None else state[n]
        output, final = run(request, batch, slice(start, start + length), initial)
        outputs.append(output)
        states.append(final)
    v = request.v
    flat = torch.cat(outputs) if outputs else v.new_empty(0, *v.shape[2:])
    rows = v.shape[0] * v.shape[1]
    if flat.shape[0] < rows:
        flat = torch.cat([flat, flat.new_zeros(rows - flat.shape[0], *v.shape[2:])])
    final_state = None
    if request.output_final_state:
        K, V = request.k.shape[3], v.shape[3]
        final_state = torch.stack(states) if states else flat.new_empty(0, v.shape[2], K, V)
        if request.state_v_first:
            final_state = final_state.transpose(2, 3).contiguous()
    return GDNOutput(flat.to(v.dtype).view(v.shape), final_state)


def _differentiable(
    request: RuleRequest, batch: int, rows: slice, initial: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    heads = _heads(request)
    q, k, v, g, beta = (x[batch, rows] for x in heads[:5])
    return differentiable_gated_delta_rule(
        q,
        k,
        v,
        g,
        beta,
        scale=heads.scale,
        initial_state=initial,
        l2norm=heads.l2norm,
    )


def _oracle(
    request: RuleRequest, batch: int, rows: slice, initial: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    g, beta = request.g[batch, rows].double(), request.beta[batch, rows].double()
    if request.A_log is not None:
        bias = 0.0 if request.dt_bias is None else request.dt_bias.double()
        g = -request.A_log.double().exp() * torch.nn.functional.softplus(g + bias)
    if request.use_beta_sigmoid_in_kernel:
        beta = beta.sigmoid()
    if request.allow_neg_eigval:
        beta = beta * 2
    return reference_gated_delta_rule(
        request.q[batch, rows],
        request.k[batch, rows],
        request.v[batch, rows],
        g,
        beta,
        scale=request.scale,
        initial_state=initial,
        use_qk_l2norm=request.use_qk_l2norm_in_kernel,
    )
