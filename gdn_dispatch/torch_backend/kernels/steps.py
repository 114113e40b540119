"""The gated delta rule token by token, fp32, on state views in place.

For decode, speculative decode and sequences too short to fill a chunk. The state is by far the
largest operand, so a step passes over it three times and no more: decay, one product with both
the key and the query, one rank-1 update. The output needs no second product with the new state::

    S <- e^g S
    [d; o'] = [beta v; 0] + [-beta k; scale q] S
    S <- S + k d^T,     o = o' + (scale q . k) d

Everything that does not involve the state is computed for all tokens at once beforehand. States
are taken one sequence at a time: a 2 MiB state then stays in cache between its three passes, and
no product's shape depends on what else is in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from gdn_dispatch.torch_backend.kernels.gemm import fast_fp32_products
from gdn_dispatch.torch_backend.kernels.jobs import SequenceJob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gdn_dispatch.torch_backend.kernels.jobs import Heads

__all__ = ["MAX_STEPS_BEFORE_CHUNKS", "StepJob", "run_steps"]

MAX_STEPS_BEFORE_CHUNKS = 8
"""Longest sequence that takes steps rather than a chunk of its own.

On the safe side: where it was measured, steps still won at 12 tokens (1.8 ms against 2.2).
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
    """State-independent parts of n tokens."""

    decay: torch.Tensor  # [n, HV, 1, 1] e^g
    left: torch.Tensor  # [n, HV, 2, K] rows -beta k, scale q
    pair: torch.Tensor  # [n, HV, 2, V] rows beta v, 0; becomes d, o'
    d: torch.Tensor  # [n, H, r, 1, V] view of pair
    key: torch.Tensor  # [n, H, 1, K, 1]
    query_key: torch.Tensor  # [n, H, 1, 1] q . k


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
        with fast_fp32_products(out.device.type):
            first = 0
            for step_job in batch:
                _run_one(step_job, tokens, first)
                first += step_job.job.length
        H = tokens.query_key.shape[1]
        d, through_state = tokens.pair.view(rows.tokens, H, -1, 2, tokens.pair.shape[3]).unbind(3)
        rows.scatter(out, torch.addcmul(through_state, tokens.query_key, d, value=heads.scale))


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

    def scatter(self, out: torch.Tensor, values: torch.Tensor) -> None:
        """``[tokens, H, r, V]`` into the rows of ``out [B, T, HV, V]`` (contiguous)."""
        flat = out.view(-1, *values.shape[1:])
        if self.index is not None:
            flat.index_copy_(0, self.index, values.to(out.dtype))
        else:
            flat[self.start : self.start + self.tokens].copy_(values)


def _prepare(rows: _Rows, heads: Heads) -> _Tokens:
    n = rows.tokens
    H, K = heads.k.shape[2:]
    HV, V = heads.v.shape[2:]
    r = HV // H
    queries_keys = torch.stack((rows.gather(heads.k), rows.gather(heads.q)), dim=2).float()
    if heads.l2norm:
        norm = torch.linalg.vector_norm(queries_keys, dim=-1, keepdim=True)
        queries_keys.mul_(norm.square_().add_(_L2_EPS).rsqrt_())
    key, query = queries_keys.unbind(2)
    beta = rows.gather(heads.beta).reshape(n, H, r, 1)

    factors = torch.empty(n, H, r, 2, 1, dtype=torch.float32, device=heads.q.device)
    torch.neg(beta, out=factors.select(3, 0))
    factors.select(3, 1).fill_(heads.scale)
    left = queries_keys.unsqueeze(2) * factors
    pair = torch.zeros(n, H, r, 2, V, dtype=torch.float32, device=heads.q.device)
    torch.mul(rows.gather(heads.v).reshape(n, H, r, V), beta, out=pair.select(3, 0))
    return _Tokens(
        rows.gather(heads.g).exp().reshape(n, HV, 1, 1),
        left.view(n, HV, 2, K),
        pair.view(n, HV, 2, V),
        pair.narrow(3, 0, 1),
        key.view(n, H, 1, K, 1),
        (key * query).sum(-1).view(n, H, 1, 1),
    )


def _run_one(step_job: StepJob, tokens: _Tokens, first: int) -> None:
    """All tokens of one sequence; leaves d and o' of each in ``tokens.pair``."""
    job, writes = step_job
    state, ready = _working_state(job, tokens)
    H, r = tokens.d.shape[1:3]
    by_key_head = state.view(H, r, *state.shape[1:])
    for t in range(job.length):
        decay, left, pair, d, key = (x.select(0, first + t) for x in tokens[:5])
        if ready or t > 0:
            state.mul_(decay)
        elif job.read is not None:
            torch.mul(job.read, decay, out=state)
        if t == 0 and job.read is None:
            # From zero: d = beta v and o' = 0 are what pair holds already.
            torch.mul(key, d, out=by_key_head)
        else:
            torch.baddbmm(pair, left, state, out=pair)
            by_key_head.addcmul_(key, d)
        if writes and (target := writes[t]) is not None:
            target.copy_(state)
    for _, target in job.checkpoints:
        target.copy_(state)
    if job.write is not None and job.write is not state:
        job.write.copy_(state)


def _working_state(job: SequenceJob, tokens: _Tokens) -> tuple[torch.Tensor, bool]:
    """Memory for the running state, and whether it already holds the state to start from.

    The final state's own memory where that is fp32 with rows of V: a decode step on an engine's
    pool then copies nothing. The state to read may be other memory, or the same.
    """
    read, state = job.read, job.write
    if state is None or state.dtype != torch.float32 or state.stride(2) != 1:
        shape = (tokens.left.shape[1], tokens.left.shape[3], tokens.pair.shape[3])
        state = torch.empty(shape, dtype=torch.float32, device=tokens.pair.device)
    elif read is not None and read.data_ptr() == state.data_ptr():
        return state, True  # views of one slot of one pool
    if read is None or read.dtype == torch.float32:
        return state, False
    state.copy_(read)
    return state, True
