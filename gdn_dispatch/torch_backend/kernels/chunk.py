r"""The gated delta rule in chunks of 32 tokens, fp32, on state views in place.

The form is that of Yang et al., "Gated Delta Networks" (arXiv 2412.06464), arranged for few
floating-point operations rather than for few kernels: neither W nor U of the WY form is built.
Per chunk and value head, with G the cumulative base-2 decay, D_ij = 2^(G_i - G_j) for i >= j, and
rows of K and Q shared by the value heads of a key head::

    A = strictly_lower(beta_i D K K^T)        P = D (scale Q) K^T
    T = (I + A)^-1 diag(beta)                 all of it without the state: phase 1
    R = V - 2^G (K S)
    [Vn; O] = [T; P T] R                      O += 2^G (scale Q S)
    S = 2^G_C S + K^T (2^(G_C - G) Vn)        phase 2, chunk by chunk

Chunks of all sequences form one flat list; phase 1 takes it ``UNIT`` chunks at a time without
regard to where sequences end, phase 2 swaps the state there. Only the last chunk of a sequence is
padded, with tokens that change nothing (k = q = v = 0, beta = 0, g = 0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from gdn_dispatch.torch_backend.capability import CHUNK
from gdn_dispatch.torch_backend.kernels.gates import (
    GATE_BLOCK_ELEMENTS,
    split_cumulative_decay,
)
from gdn_dispatch.torch_backend.kernels.inverse import unit_lower_inverse
from gdn_dispatch.torch_backend.kernels.workspace import UNIT, Workspace, workspace_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gdn_dispatch.torch_backend.kernels.jobs import Heads, SequenceJob

__all__ = ["run_chunks"]

_L2_EPS = 1e-6
_DOT_TERMS = 32


class _Chunk(NamedTuple):
    job: SequenceJob
    start: int  # first token
    tokens: int  # 1 .. CHUNK
    is_first: bool
    is_last: bool
    checkpoint: torch.Tensor | None


def run_chunks(heads: Heads, jobs: Sequence[SequenceJob], out: torch.Tensor) -> None:
    """Run every job through the chunk form.

    Args:
        heads: Inputs over all tokens.
        jobs: Sequences of at least one token; checkpoint offsets are multiples of ``CHUNK``.
        out: ``[B, T, HV, V]``; rows of the jobs' tokens are written.
    """
    H, K = heads.k.shape[2:]
    HV, V = heads.v.shape[2:]
    w = workspace_for(H, HV // H, K, V, heads.v.device)
    chunks = list(_flatten(jobs))
    block_size = max(1, GATE_BLOCK_ELEMENTS // (HV * CHUNK))
    if block_size > UNIT:
        block_size -= block_size % UNIT
    for block_start in range(0, len(chunks), block_size):
        block = chunks[block_start : block_start + block_size]
        gates = _prepare_gates(heads, block, H)
        for first in range(0, len(block), UNIT):
            unit = block[first : first + UNIT]
            _load(w, heads, unit)
            _without_state(w, gates, first, len(unit), heads)
            for i, chunk in enumerate(unit):
                _with_state(w, gates, first + i, i, chunk)
            _store(w, unit, out)


def _flatten(jobs: Sequence[SequenceJob]) -> list[_Chunk]:
    chunks = []
    for job in jobs:
        due = dict(job.checkpoints)
        for offset in range(0, job.length, CHUNK):
            tokens = min(CHUNK, job.length - offset)
            end = offset + tokens
            chunks.append(
                _Chunk(
                    job, job.start + offset, tokens, offset == 0, end == job.length, due.get(end)
                )
            )
    return chunks


def _runs(chunks: Sequence[_Chunk]) -> list[tuple[int, int, int, int]]:
    """Merge neighbours whose tokens lie one after another: (first chunk, count, batch, start)."""
    runs: list[tuple[int, int, int, int]] = []
    for i, chunk in enumerate(chunks):
        if runs and chunk.tokens == CHUNK:
            first, count, batch, start = runs[-1]
            follows = chunk.job.batch == batch and chunk.start == start + count * CHUNK
            if follows and chunks[i - 1].tokens == CHUNK:
                runs[-1] = (first, count + 1, batch, start)
                continue
        runs.append((i, 1, chunk.job.batch, chunk.start))
    return runs


class _Gates(NamedTuple):
    """Gates of a block of n chunks; the last four are lists, one view per chunk."""

    integer: torch.Tensor  # [n, HV, C] split cumulative decay
    fraction: torch.Tensor
    beta: torch.Tensor  # [n, HV, C]
    from_start: Sequence[torch.Tensor]  # [H, r, C, 1] 2^G
    to_end: Sequence[torch.Tensor]  # [H, C, r, 1] 2^(G_C - G)
    whole: Sequence[torch.Tensor]  # [H, 1, r, 1] 2^G_C


def _prepare_gates(heads: Heads, block: Sequence[_Chunk], H: int) -> _Gates:
    n, HV = len(block), heads.v.shape[2]
    g = heads.g.new_zeros(n, CHUNK, HV)
    beta = heads.beta.new_zeros(n, CHUNK, HV)
    for first, count, batch, start in _runs(block):
        tokens = (count - 1) * CHUNK + block[first + count - 1].tokens
        rows = slice(start, start + tokens)
        g[first : first + count].flatten(0, 1)[:tokens].copy_(heads.g[batch, rows])
        beta[first : first + count].flatten(0, 1)[:tokens].copy_(heads.beta[batch, rows])
    integer, fraction = split_cumulative_decay(g.transpose(1, 2).contiguous())
    from_start = torch.exp2(integer + fraction).view(n, H, -1, CHUNK)
    to_end = torch.exp2((integer[..., -1:] - integer).add_(fraction[..., -1:] - fraction)).view(
        n, H, -1, CHUNK
    )
    return _Gates(
        integer,
        fraction,
        beta.transpose(1, 2).contiguous(),
        from_start.unsqueeze(-1).unbind(0),
        to_end.transpose(2, 3).unsqueeze(-1).unbind(0),
        from_start[..., -1].view(n, H, 1, -1, 1).unbind(0),
    )


def _load(w: Workspace, heads: Heads, unit: Sequence[_Chunk]) -> None:
    """Cast and transpose the unit's q, k and v into the workspace; pad short chunks with zeros."""
    H, K = heads.k.shape[2:]
    V = heads.v.shape[3]
    keys, queries = w.keys_queries[:, :, :CHUNK], w.keys_queries[:, :, CHUNK:]
    values = w.values.view(UNIT, H, CHUNK, -1, V)
    for first, count, batch, start in _runs(unit):
        span, tokens = slice(first, first + count), unit[first].tokens
        if tokens < CHUNK:  # the short last chunk of a sequence; always a run of its own
            w.keys_queries[first].zero_()
            w.values[first].zero_()
        rows = slice(start, start + (count - 1) * CHUNK + tokens)
        keys[span, :, :tokens].copy_(heads.k[batch, rows].view(count, tokens, H, K).transpose(1, 2))
        queries[span, :, :tokens].copy_(
            heads.q[batch, rows].view(count, tokens, H, K).transpose(1, 2)
        )
        values[span, :, :tokens].copy_(
            heads.v[batch, rows].view(count, tokens, H, -1, V).transpose(1, 2)
        )


def _without_state(w: Workspace, gates: _Gates, first: int, n: int, heads: Heads) -> None:
    """Phase 1 for n chunks of the workspace: leave [T; P T] of each in ``w.solve``."""
    H = heads.k.shape[2]
    HV = heads.v.shape[2]
    r, C = HV // H, CHUNK
    span = slice(first, first + n)
    keys_queries = w.keys_queries[:n]
    if heads.l2norm:
        norm = torch.linalg.vector_norm(keys_queries, dim=-1, keepdim=True)
        factor = norm.square_().add_(_L2_EPS).rsqrt_()
        factor[:, :, C:].mul_(heads.scale)
        keys_queries.mul_(factor)
    elif heads.scale != 1.0:
        keys_queries[:, :, C:].mul_(heads.scale)

    dots = _dots(w.keys_queries.flatten(0, 1)[: n * H], w.dots[: n * H])
    dots = dots.view(n, H, 1, 2 * C, C)

    integer, fraction = gates.integer[span], gates.fraction[span]
    decay, fractions = w.pairwise[:n], w.pairwise_fraction[:n]
    torch.sub(integer.unsqueeze(-1), integer.unsqueeze(-2), out=decay)
    torch.sub(fraction.unsqueeze(-1), fraction.unsqueeze(-2), out=fractions)
    decay.add_(fractions).add_(w.future)
    for chunk_decay in w.chunk_pairwise[:n]:  # one by one: see ``gates``
        chunk_decay.exp2_()
    decay = decay.view(n, H, r, C, C)

    attention = torch.mul(decay, dots[:, :, :, C:], out=w.attention[:n])
    system = decay.mul_(dots[:, :, :, :C])
    system.mul_(gates.beta[span].view(n, H, r, C, 1)).mul_(w.strictly_lower)
    inverse = unit_lower_inverse(system.view(n * HV, C, C), w.inverse)

    # Not in place: a NaN times the upper triangle's zeros would stay in the buffer for ever.
    scaled = torch.mul(inverse, gates.beta[span].view(n * HV, 1, C), out=w.scaled[: n * HV])
    solve = w.solve.flatten(0, 1)[: n * HV]
    solve[:, :C].copy_(scaled)
    solve[:, C:].copy_(torch.bmm(attention.view(n * HV, C, C), scaled))


def _dots(keys_queries: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``[k; q] k^T`` of n chunks, ``_DOT_TERMS`` terms of each sum at a time.

    Keys that resemble each other give sums of positive terms near one; what one long sum rounds
    away, the inverse carries to every later token. Short sums keep twice as much of it.
    """
    first, *rest = keys_queries.split(_DOT_TERMS, dim=2)
    torch.bmm(first, first[:, :CHUNK].transpose(1, 2), out=out)
    for part in rest:
        out.baddbmm_(part, part[:, :CHUNK].transpose(1, 2))
    return out


def _with_state(w: Workspace, gates: _Gates, j: int, i: int, chunk: _Chunk) -> None:
    """Phase 2 for chunk i of the unit, j of the gate block: the output, and the state after it."""
    job = chunk.job
    starts_from_zero = chunk.is_first and job.read is None
    if chunk.is_first and job.read is not None:
        w.state_by_value_head.copy_(job.read.view(w.state_by_value_head.shape))
    if starts_from_zero:
        w.residual_by_head.copy_(w.chunk_values[i])
    else:
        torch.bmm(w.chunk_keys_queries[i], w.state_matrix, out=w.products)
        torch.addcmul(
            w.chunk_values[i],
            w.key_products,
            gates.from_start[j],
            value=-1,
            out=w.residual_by_head,
        )
    torch.bmm(w.chunk_solve[i], w.residual, out=w.solved)
    if starts_from_zero:
        w.chunk_output[i].copy_(w.intra_output)
    else:
        torch.addcmul(w.intra_output, w.query_products, gates.from_start[j], out=w.chunk_output[i])
    if chunk.is_last and job.write is None and chunk.checkpoint is None:
        return
    torch.mul(w.new_values, gates.to_end[j], out=w.update)
    if starts_from_zero:
        torch.bmm(w.chunk_keys_t[i], w.update_matrix, out=w.state_matrix)
    else:
        w.state.mul_(gates.whole[j])
        w.state_matrix.baddbmm_(w.chunk_keys_t[i], w.update_matrix)
    for target in (chunk.checkpoint, job.write if chunk.is_last else None):
        if target is not None:
            target.view(w.state_by_value_head.shape).copy_(w.state_by_value_head)


def _store(w: Workspace, unit: Sequence[_Chunk], out: torch.Tensor) -> None:
    """Cast and transpose the unit's output into the caller's rows."""
    HV, V = out.shape[2:]
    for first, count, batch, start in _runs(unit):
        tokens = unit[first].tokens
        rows = out[batch, start : start + (count - 1) * CHUNK + tokens]
        rows.view(count, tokens, HV, V).copy_(
            w.output[first : first + count, :, :tokens].transpose(1, 2)
        )
