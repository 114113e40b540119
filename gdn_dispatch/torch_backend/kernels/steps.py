"""The gated delta rule token by token, fp32, on state views in place.

For decode, speculative decode and sequences too short to fill a chunk. The state is by far the
largest operand, so a step passes over it three times and no more: decay, one product with both
the key and the query, one rank-1 update. The output needs no second product with the new state::

    S <- e^g S
    [m; p] = [k; q] S
    d = beta v - beta m
    S <- S + k d^T,     o = scale (p + (q . k) d)

What does not involve the state is computed for all tokens at once, before and after, and with as
few operators as possible: in a model, where other code has run since the last step, each costs
some 10 us whatever its size. States are taken one sequence at a time: a 2 MiB state then stays in
cache between its three passes, and no product's shape depends on what else is in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from gdn_dispatch.torch_backend.kernels.jobs import SequenceJob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gdn_dispatch.torch_backend.kernels.jobs import Heads

__all__ = ["MAX_STEPS_BEFORE_CHUNKS", "StepJob", "run_steps"]

MAX_STEPS_BEFORE_CHUNKS = 12
"""Longest sequence that takes steps rather than a chunk of its own.

Where it was measured, 12 steps took 1.7 ms against the chunk's 1.9, and 16 took 2.1 against 2.0.
"""

_L2_EPS = 1e-6
_TOKEN_BLOCK = 256


class StepJob(NamedTuple):
    """A ``SequenceJob`` that may also want its state after each token.

    Attributes:
        job: The sequence.
        writes: One view per token that receives the state after it (None: not wanted); empty for
            ordinary sequences, whose final state goes to ``job.write``.
    """

    job: SequenceJob
    writes: tuple[torch.Tensor | None, ...] = ()


class _Tokens(NamedTuple):
    """What the steps of n tokens take and leave; of one token, without the first dimension."""

    decay: torch.Tensor  # [n, HV, 1, 1] e^g
    key_query: torch.Tensor  # [n, HV, 2, K] rows k, q
    key: torch.Tensor  # [n, HV, K, 1] view of key_query
    beta: torch.Tensor  # [n, HV, 1]
    beta_v: torch.Tensor  # [n, HV, V]
    memory: torch.Tensor  # [n, HV, 2, V] receives rows m, p
    d: torch.Tensor  # [n, HV, V] receives d
    row: torch.Tensor  # [n, HV, 1, V] view of d


def run_steps(heads: Heads, jobs: Sequence[StepJob], out: torch.Tensor) -> None:
    """Run every job token by token.

    Args:
        heads: Inputs over all tokens.
        jobs: Sequences of at least one token.
        out: ``[B, T, HV, V]``; rows of the jobs' tokens are written.
    """
    for batch in _in_blocks(_cut(jobs, heads)):
        rows = _Rows(batch, heads)
        tokens = _prepare(rows, heads)
        steps = [_Tokens(*views) for views in zip(*(x.unbind(0) for x in tokens), strict=True)]
        first = 0
        for step_job in batch:
            end = first + step_job.job.length
            _run_one(step_job, steps[first:end])
            first = end
        key, query = tokens.key_query.unbind(2)
        result = torch.addcmul(
            tokens.memory.select(2, 1), torch.linalg.vecdot(query, key).unsqueeze(2), tokens.d
        )
        rows.scatter(out, result, heads.scale)


def _cut(jobs: Sequence[StepJob], heads: Heads) -> list[StepJob]:
    """Cut jobs of more tokens than a block into parts that hand the state on."""
    parts: list[StepJob] = []
    for step_job in jobs:
        job = step_job.job
        if job.length <= _TOKEN_BLOCK or step_job.writes:
            parts.append(step_job)
            continue
        HV, V = heads.v.shape[2:]
        carry = torch.empty(HV, heads.k.shape[3], V, dtype=torch.float32, device=heads.v.device)
        for offset in range(0, job.length, _TOKEN_BLOCK):
            length = min(_TOKEN_BLOCK, job.length - offset)
            read = carry if offset else job.read
            write = carry if offset + length < job.length else job.write
            parts.append(StepJob(SequenceJob(job.batch, job.start + offset, length, read, write)))
    return parts


def _in_blocks(jobs: Sequence[StepJob]) -> list[list[StepJob]]:
    """Group the jobs so that the prepared tokens of a block stay small."""
    blocks: list[list[StepJob]] = []
    tokens = _TOKEN_BLOCK
    for step_job in jobs:
        length = step_job.job.length
        if tokens + length > _TOKEN_BLOCK:
            blocks.append([])
            tokens = 0
        blocks[-1].append(step_job)
        tokens += length
    return blocks


class _Rows:
    """The tokens of a block of jobs, as one slice where they lie together, else as an index."""

    def __init__(self, jobs: Sequence[StepJob], heads: Heads) -> None:
        T = heads.q.shape[1]
        flat = [(j.job.batch * T + j.job.start, j.job.length) for j in jobs]
        self.start, self.tokens = flat[0][0], sum(length for _, length in flat)
        end = self.start
        together = True
        for start, length in flat:
            together = together and start == end
            end = start + length
        self.index: torch.Tensor | None = None
        if not together:
            self.index = torch.cat(
                [torch.arange(start, start + length) for start, length in flat]
            ).to(heads.q.device)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, ...]`` to ``[tokens, ...]``."""
        flat = x.flatten(0, 1) if x.shape[0] > 1 else x[0]
        if self.index is not None:
            return flat.index_select(0, self.index)
        if self.tokens == flat.shape[0]:
            return flat
        return flat[self.start : self.start + self.tokens]

    def scatter(self, out: torch.Tensor, values: torch.Tensor, scale: float) -> None:
        """``scale * values`` [tokens, HV, V] into rows of ``out`` [B, T, HV, V] (contiguous)."""
        flat = out.view(-1, *values.shape[1:])
        if self.index is not None:
            flat.index_copy_(0, self.index, values.mul_(scale).to(out.dtype))
        else:
            torch.mul(values, scale, out=flat[self.start : self.start + self.tokens])


def _prepare(rows: _Rows, heads: Heads) -> _Tokens:
    n = rows.tokens
    H, K = heads.k.shape[2:]
    HV, V = heads.v.shape[2:]
    key_query = torch.stack((rows.gather(heads.k), rows.gather(heads.q)), dim=2).float()
    if heads.l2norm:
        norm = torch.linalg.vector_norm(key_query, dim=-1, keepdim=True)
        key_query.mul_(norm.square_().add_(_L2_EPS).rsqrt_())
    if H != HV:
        shared = key_query.unsqueeze(2).expand(n, H, HV // H, 2, K)
        key_query = shared.reshape(n, HV, 2, K)
    beta = rows.gather(heads.beta).reshape(n, HV, 1)
    memory = torch.empty(n, HV, 2, V, dtype=torch.float32, device=heads.q.device)
    d = torch.empty(n, HV, V, dtype=torch.float32, device=heads.q.device)
    return _Tokens(
        rows.gather(heads.g).exp().reshape(n, HV, 1, 1),
        key_query,
        key_query.select(2, 0).unsqueeze(3),
        beta,
        rows.gather(heads.v) * beta,
        memory,
        d,
        d.unsqueeze(2),
    )


def _run_one(step_job: StepJob, steps: Sequence[_Tokens]) -> None:
    """All tokens of one sequence, a view each; leaves m, p and d of each."""
    job, writes = step_job
    state, ready = _working_state(job, steps[0])
    for t, (decay, key_query, key, beta, beta_v, memory, d, row) in enumerate(steps):
        if ready or t > 0:
            state.mul_(decay)
        elif job.read is not None:
            torch.mul(job.read, decay, out=state)
        if t == 0 and job.read is None:
            memory.zero_()
            d.copy_(beta_v)
            torch.mul(key, row, out=state)
        else:
            torch.bmm(key_query, state, out=memory)
            torch.addcmul(beta_v, memory.select(1, 0), beta, value=-1, out=d)
            state.addcmul_(key, row)
        if writes and (target := writes[t]) is not None:
            target.copy_(state)
    for _, target in job.checkpoints:
        target.copy_(state)
    if job.write is not None and job.write is not state:
        job.write.copy_(state)


def _working_state(job: SequenceJob, step: _Tokens) -> tuple[torch.Tensor, bool]:
    """Memory for the running state, and whether it already holds the state to start from.

    The final state's own memory where that is fp32 with rows of V: a decode step on an engine's
    pool then copies nothing. The state to read may be other memory, or the same.
    """
    read, state = job.read, job.write
    if state is None or state.dtype != torch.float32 or state.stride(2) != 1:
        shape = (*step.key.shape[:2], step.d.shape[1])
        state = torch.empty(shape, dtype=torch.float32, device=step.d.device)
    elif read is not None and read.data_ptr() == state.data_ptr():
        return state, True  # views of one slot of one pool
    if read is None or read.dtype == torch.float32:
        return state, False
    state.copy_(read)
    return state, True
