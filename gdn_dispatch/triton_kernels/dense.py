"""Rows of a dense batch: B sequences of T tokens, without a plan or metadata."""

from __future__ import annotations

import torch

from gdn_dispatch.triton_kernels.rows import Chunks, Rows
from gdn_dispatch.triton_kernels.rule_tensors import CHUNK

__all__ = ["dense_rows"]


def dense_rows(batch: int, tokens: int, device: torch.device, *, chunked: bool) -> Rows:
    """Rows of ``batch`` sequences of ``tokens`` tokens, one after the other.

    Computed on the device, without a copy; nothing of it depends on data. Not kept: tensors made
    while a graph is captured belong to that graph.

    Args:
        batch: B.
        tokens: T.
        device: Where.
        chunked: With the tables of chunks, which the token-by-token form does not read.
    """
    cu_seqlens = _steps(batch + 1, tokens, device)
    return Rows(
        num_seqs=batch,
        sequences=None,
        starts=cu_seqlens[:-1],
        cu_seqlens=cu_seqlens,
        max_seqlen=tokens if batch else 0,
        chunks=_chunks(batch, tokens, device) if chunked else None,
    )


def _chunks(batch: int, tokens: int, device: torch.device) -> Chunks:
    per_row = -(-tokens // CHUNK)
    numbers = _steps(batch, 1, device)
    indices = torch.empty(batch, per_row, 2, dtype=torch.int32, device=device)
    indices[..., 0] = numbers[:, None]
    indices[..., 1] = _steps(per_row, 1, device)
    return Chunks(
        size=CHUNK,
        indices=indices.flatten(0, 1),
        offsets=_steps(batch + 1, per_row, device),
        nonempty=numbers if tokens else numbers[:0],
        count=batch * per_row,
    )


def _steps(count: int, step: int, device: torch.device) -> torch.Tensor:
    """``0, step, 2 * step, ...``: one launch."""
    if step == 0:
        return torch.zeros(count, dtype=torch.int32, device=device)
    return torch.arange(0, count * step, step, dtype=torch.int32, device=device)
