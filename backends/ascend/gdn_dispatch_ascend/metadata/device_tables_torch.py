"""The same tables by tensor operations, for a device without Triton: all of them, never half.

No operation has an output whose size depends on values, so none waits for the device.
``bucketize(j, ends, right=True)`` is the number of sequences that end at or before j: the sequence
that chunk j belongs to, which never is an empty one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gdn_dispatch_ascend.metadata.tables import CHUNK_SIZE, LARGE_BLOCK_SIZE, cumsum_block_size

if TYPE_CHECKING:
    from gdn_dispatch_ascend.metadata.tables import AscendTables

__all__ = ["fill"]


def fill(tables: AscendTables, scratch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """Write the tables of ``tables.cu_seqlens``; see ``DeviceTablePool.fill``."""
    large_offsets, cumsum_offsets, numbers = scratch
    cu = tables.cu_seqlens.to(torch.int32)
    n = cu.shape[0] - 1
    lengths = cu[1:] - cu[:-1]
    sequences = torch.arange(n, dtype=torch.int32, device=cu.device)

    torch.gt(lengths, 0, out=tables.keep_meta)
    lives = tables.keep_meta.to(torch.int32)
    ends = lives.cumsum(0, dtype=torch.int32)
    numbers = numbers[:n].copy_(ends - lives)
    _fill_nonempty(tables, cu, ends)

    updates = tables.update_chunk_offsets_chunk64
    for size, offsets, indices in (
        (CHUNK_SIZE, tables.chunk_offsets_chunk64, tables.chunk_indices_chunk64),
        (LARGE_BLOCK_SIZE, large_offsets, tables.chunk_indices_large_block),
        (cumsum_block_size(tables.num_v_heads), cumsum_offsets, tables.block_indices_cumsum),
    ):
        # -(len // -C) is the ceiling; len + C - 1 could leave int32
        counts = torch.div(lengths, -size, rounding_mode="floor").neg()
        offsets[:1].zero_()
        offsets[1:].copy_(counts.cumsum(0, dtype=torch.int32))
        _fill_indices(indices, offsets, numbers)
    updates[:1].zero_()
    torch.add(tables.chunk_offsets_chunk64[1:], sequences + 1, out=updates[1:])
    torch.sub(updates[1:], 1, out=tables.final_chunk_indices_chunk64)


def _fill_indices(indices: torch.Tensor, offsets: torch.Tensor, numbers: torch.Tensor) -> None:
    j = torch.arange(indices.shape[0], dtype=torch.int32, device=indices.device)
    if numbers.shape[0] == 0:
        indices.fill_(-1)
        return
    s = torch.bucketize(j, offsets[1:], right=True, out_int32=True).clamp(max=numbers.shape[0] - 1)
    rows = torch.stack([numbers[s], j - offsets[s]], 1)
    indices.copy_(rows.where((j < offsets[-1])[:, None], -1))


def _fill_nonempty(tables: AscendTables, cu: torch.Tensor, ends: torch.Tensor) -> None:
    """``ends[s]`` sequences with tokens up to s: the k-th of them is the first s with k of them."""
    kern, n = tables.cu_seqlens_kern, ends.shape[0]
    kern[:1].zero_()
    if n == 0:
        return
    k = torch.arange(1, n + 1, dtype=torch.int32, device=cu.device)
    s = torch.bucketize(k, ends, right=False, out_int32=True).clamp(max=n - 1)
    kern[1:].copy_(cu[1:][s])
    tables.nonempty.copy_(s.where(k <= ends[-1], -1))
