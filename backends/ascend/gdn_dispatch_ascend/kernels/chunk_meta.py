"""Chunk tables of lengths that only the device knows: nothing is read back, nothing waits.

The formulas are those of ``gdn_dispatch.plan.chunks``; sizes come from an upper bound, and tails
are padded as ``gdn_dispatch.plan.update`` pads them, so that a captured launch finds nothing to do
there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
import triton

from gdn_dispatch.errors import InvalidArgumentError
from gdn_dispatch_ascend.kernels.chunk_meta_kernel import fill_kernel, scan_kernel
from gdn_dispatch_ascend.kernels.tiling import grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gdn_dispatch_ascend.kernels.tiling import Cores

__all__ = ["DeviceTable", "DeviceTables", "chunk_tables"]

_BLOCK: Final = 64
_MOST: Final = 1 << 24
"""Tokens, chunks and sequences are counted in fp32."""


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
        max_tokens: What they were made for.
    """

    chunks: dict[int, DeviceTable]
    nonempty: torch.Tensor
    cu_seqlens_nonempty: torch.Tensor
    num_nonempty: torch.Tensor
    max_tokens: int
    _sizes: torch.Tensor  # [sizes]
    _scans: torch.Tensor  # [3, sizes, n+1] offsets, update offsets, final indices
    _lives: torch.Tensor  # [n+1]
    _indices: torch.Tensor  # [sizes, largest capacity, 2]

    @classmethod
    def allocate(
        cls, num_seqs: int, max_tokens: int, chunk_sizes: Sequence[int], device: torch.device
    ) -> DeviceTables:
        """Empty tables, to be given to ``chunk_tables`` every step."""
        sizes, n = tuple(chunk_sizes), num_seqs
        if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise InvalidArgumentError("chunk_sizes", f"{sizes}", "sizes of at least 1, each once")
        if not 0 <= max_tokens < _MOST or not 0 <= n < _MOST:
            got = f"{max_tokens} tokens, {n} sequences"
            raise InvalidArgumentError("max_tokens", got, f"fewer than {_MOST} of both")
        capacities = [_most_chunks(n, max_tokens, size) for size in sizes]

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.int32, device=device)

        scans, indices = empty(3, len(sizes), n + 1), empty(len(sizes), max(capacities), 2)
        return cls(
            chunks={
                size: DeviceTable(
                    size, indices[i, : capacities[i]], scans[0, i], scans[1, i], scans[2, i, :n]
                )
                for i, size in enumerate(sizes)
            },
            nonempty=empty(n),
            cu_seqlens_nonempty=empty(n + 1),
            num_nonempty=empty(1),
            max_tokens=max_tokens,
            _sizes=torch.tensor(sizes, dtype=torch.int32, device=device),
            _scans=scans,
            _lives=empty(n + 1),
            _indices=indices,
        )


def chunk_tables(cu_seqlens: torch.Tensor, tables: DeviceTables, cores: Cores) -> None:
    """Write the tables of a step, in two launches; no device tensor is read on the host.

    Args:
        cu_seqlens: ``[n+1]`` int32 or int64, contiguous: starts at 0, non-decreasing; its last
            value, at most ``tables.max_tokens``, is not checked, and chunks beyond are not listed.
        tables: Of n sequences; written in full.
        cores: Of the device.

    Raises:
        InvalidArgumentError: ``tables`` was made for another number of sequences.
    """
    n, made = cu_seqlens.shape[0] - 1, tables.nonempty.shape[0]
    if n != made:
        raise InvalidArgumentError("tables", f"of {made} sequences", f"of {n}, as cu_seqlens")
    sizes, capacity = tables._sizes.shape[0], tables._indices.shape[1]
    offsets, updates, finals = tables._scans.unbind(0)
    scan_kernel[grid(sizes, cores.vector)](
        cu_seqlens, tables._sizes, offsets, updates, finals, tables._lives,
        n, n + 1, sizes, BLOCK=_BLOCK,
    )  # fmt: skip
    tasks = sizes * triton.cdiv(capacity, _BLOCK)
    fill_kernel[grid(tasks, cores.vector)](
        cu_seqlens, tables._indices, tables.nonempty, tables.cu_seqlens_nonempty,
        tables.num_nonempty, offsets, tables._lives,
        n, n + 1, capacity, sizes, ROWS=_BLOCK, BLOCK=_BLOCK,
    )  # fmt: skip


def _most_chunks(n: int, tokens: int, size: int) -> int:
    """The most chunks n sequences of ``tokens`` tokens together can have."""
    lives = min(n, tokens)
    return lives + (tokens - lives) // size
