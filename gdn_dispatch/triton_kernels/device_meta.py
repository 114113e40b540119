"""Chunk tables of lengths that only the device knows: nothing is read back, nothing waits.

The formulas are those of ``gdn_dispatch.plan.chunks``; sizes come from an upper bound, and tails
are padded as ``gdn_dispatch.plan.update`` pads them, so that a captured launch finds nothing to do
there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton

from gdn_dispatch.errors import InvalidArgumentError
from gdn_dispatch.triton_kernels.device_meta_kernel import fill_kernel, scan_kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DeviceTable", "DeviceTables", "device_chunk_tables"]

_BLOCK = 256


@dataclass(frozen=True, slots=True, eq=False)
class DeviceTable:
    """Chunks of one block size C; int32. See ``ChunkTable``, which the host builds.

    Attributes:
        chunk_size: C.
        chunk_indices: ``[capacity, 2]`` rows [q, i], -1 past the last chunk.
        chunk_offsets: ``[n+1]``. update_chunk_offsets: ``[n+1]``. final_chunk_indices: ``[n]``.
    """

    chunk_size: int
    chunk_indices: torch.Tensor
    chunk_offsets: torch.Tensor
    update_chunk_offsets: torch.Tensor
    final_chunk_indices: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class DeviceTables:
    """Tables over n sequences of at most ``max_tokens`` tokens together; int32.

    Attributes:
        chunks: By block size.
        nonempty: ``[n]`` numbers of the sequences with tokens; the rest is -1.
        cu_seqlens_nonempty: ``[n+1]`` cu_seqlens without the empty ones; repeats its last value.
        num_nonempty: ``[1]``.
        conv_tile_sequences, conv_tile_offsets: ``[capacity]``, -1 past the last tile; or None.
        max_tokens, conv_block_size: What they were made for.
    """

    chunks: dict[int, DeviceTable]
    nonempty: torch.Tensor
    cu_seqlens_nonempty: torch.Tensor
    num_nonempty: torch.Tensor
    conv_tile_sequences: torch.Tensor | None
    conv_tile_offsets: torch.Tensor | None
    max_tokens: int
    conv_block_size: int
    _scans: torch.Tensor  # [3, sizes, n+1] offsets, update offsets, final indices
    _indices: torch.Tensor  # [sizes, largest capacity, 2]
    _tiles: torch.Tensor  # [2, capacity]


def device_chunk_tables(
    cu_seqlens: torch.Tensor,
    *,
    max_tokens: int,
    chunk_sizes: Sequence[int],
    conv_block_size: int = 0,
    out: DeviceTables | None = None,
) -> DeviceTables:
    """Chunk tables of every block size, in two launches; no device tensor is read on the host.

    Args:
        cu_seqlens: ``[n+1]`` int32 or int64, contiguous: starts at 0, non-decreasing, below 2**31.
        max_tokens: Upper bound of ``cu_seqlens[-1]``. Chunks beyond it are not listed.
        chunk_sizes: Block sizes that get a table, each once.
        conv_block_size: Tokens per causal_conv1d tile, or 0 for none.
        out: Tables of an earlier call with the same n, bound and sizes, to write into.

    Raises:
        InvalidArgumentError: ``out`` was made for other sizes.
    """
    n = cu_seqlens.shape[0] - 1
    sizes = tuple(chunk_sizes)
    tables = _allocate(cu_seqlens, n, max_tokens, sizes, conv_block_size) if out is None else out
    if out is not None:
        made = (out.nonempty.shape[0], out.max_tokens, tuple(out.chunks), out.conv_block_size)
        wanted = (n, max_tokens, sizes, conv_block_size)
        if made != wanted:
            names = "(sequences, max_tokens, chunk_sizes, conv_block_size)"
            raise InvalidArgumentError("out", f"{names} = {made}", f"{wanted}")
    every = (*sizes, conv_block_size) if conv_block_size else sizes
    offsets, updates, finals = tables._scans.unbind(0)
    scan_kernel[(len(every),)](
        cu_seqlens, offsets, updates, finals,
        tables.nonempty, tables.cu_seqlens_nonempty, tables.num_nonempty,
        n, n + 1, SIZES=every, BLOCK=min(1024, max(16, triton.next_power_of_2(n))), num_warps=4,
    )  # fmt: skip
    capacity = tables._indices.shape[1]
    if capacity:
        fill_kernel[(triton.cdiv(capacity, _BLOCK), len(every))](
            tables._indices, tables._tiles[0], tables._tiles[1], offsets,
            tables.nonempty, tables.num_nonempty,
            n, n + 1, capacity, n.bit_length(), len(sizes),
            SIZES=every, BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    return tables


def _allocate(
    cu_seqlens: torch.Tensor, n: int, max_tokens: int, sizes: tuple[int, ...], conv_block_size: int
) -> DeviceTables:
    every = (*sizes, conv_block_size) if conv_block_size else sizes
    if not every or min(every) < 1:
        raise InvalidArgumentError("chunk_sizes", f"{every}", "sizes of at least 1")
    capacities = [_most_chunks(n, max_tokens, size) for size in every]

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=cu_seqlens.device)

    largest = max(capacities)
    scans, indices, tiles = (
        empty(3, len(every), n + 1),
        empty(len(sizes), largest, 2),
        empty(2, largest),
    )
    chunks = {
        size: DeviceTable(
            size, indices[i, : capacities[i]], scans[0, i], scans[1, i], scans[2, i, :n]
        )
        for i, size in enumerate(sizes)
    }
    return DeviceTables(
        chunks=chunks,
        nonempty=empty(n),
        cu_seqlens_nonempty=empty(n + 1),
        num_nonempty=empty(1),
        conv_tile_sequences=tiles[0, : capacities[-1]] if conv_block_size else None,
        conv_tile_offsets=tiles[1, : capacities[-1]] if conv_block_size else None,
        max_tokens=max_tokens,
        conv_block_size=conv_block_size,
        _scans=scans,
        _indices=indices,
        _tiles=tiles,
    )


def _most_chunks(n: int, tokens: int, size: int) -> int:
    """The most chunks n sequences of ``tokens`` tokens together can have."""
    lives = min(n, tokens)
    return lives + (tokens - lives) // size
