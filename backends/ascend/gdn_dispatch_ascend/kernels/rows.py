"""Rows of a dense batch: B sequences of T tokens, without a plan or metadata."""

from __future__ import annotations

import torch

from gdn_dispatch.triton_kernels.rows import Chunks, Rows
from gdn_dispatch_ascend.meta import CHUNK_SIZE

__all__ = ["dense_rows"]


def dense_rows(batch: int, tokens: int, device: torch.device) -> Rows:
    """Rows of ``batch`` sequences of ``tokens`` tokens, one after the other.

    Computed on the device, without a copy; nothing of it depends on data. Not kept: tensors made
    while a graph is captured belong to that graph.
    """
    per_row = -(-tokens // CHUNK_SIZE)
    bounds = torch.arange(batch + 1, dtype=torch.int32, device=device)
    cu_seqlens = bounds * tokens
    numbers = torch.arange(batch * per_row, dtype=torch.int32, device=device)
    indices = torch.stack((numbers // max(per_row, 1), numbers % max(per_row, 1)), dim=1)
    chunks = Chunks(
        size=CHUNK_SIZE,
        indices=indices,
        offsets=bounds * per_row,
        nonempty=bounds[:-1] if tokens else bounds[:0],
        count=batch * per_row,
    )
    return Rows(
        num_seqs=batch,
        sequences=None,
        starts=cu_seqlens[:-1],
        cu_seqlens=cu_seqlens,
        max_seqlen=tokens if batch else 0,
        chunks=chunks,
    )
