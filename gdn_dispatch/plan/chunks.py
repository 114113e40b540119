"""Which chunk belongs to which sequence, for any block size, as int32 arrays.

For sequences of ``len_s`` tokens and a block size C, with ``n_s = ceil(len_s / C)``:

=====================  ===================================================  ============
chunk_indices          [q, i], i < n_s, q numbering the non-empty sequences [sum n_s, 2]
chunk_offsets          [0] + cumsum(n_s)                                    [N+1]
update_chunk_offsets   [0] + cumsum(n_s + 1)                                [N+1]
final_chunk_indices    cumsum(n_s + 1) - 1                                  [N]
conv_tile_sequences    s, n_s times, for every s (not compact)              [sum n_s]
conv_tile_offsets      0..n_s-1, for every s                                [sum n_s]
=====================  ===================================================  ============

``ChunkTables`` and ``ConvTiles`` write into slices of the step's flat buffer; several block sizes
cost about as many numpy calls as one, which is what counts for short steps. The functions of the
same names as the fields are for one block size, with ``out=`` or without.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gdn_dispatch.plan.arrays import Int32Array

__all__ = [
    "ChunkTables",
    "ConvTiles",
    "chunk_indices",
    "chunk_offsets",
    "conv_tiles",
    "final_chunk_indices",
    "first_numbers",
    "update_chunk_offsets",
]

# Up to here, a call per sequence beats the fixed number of calls of the vectorised form.
_FEW = 4

# From here on, memory traffic counts for more than calls.
_MANY = 1 << 14


class _Table:
    """A constant array 0, 1, 2, ..., kept and grown on demand.

    Args:
        dtype: Of the elements; unsigned ones wrap.
        columns: 1, or 2 for rows [0, i], flattened.
    """

    def __init__(self, dtype: npt.DTypeLike, columns: int = 1) -> None:
        self._dtype, self._columns = dtype, columns
        self._array: npt.NDArray[np.int32] = np.empty(0, dtype)

    def __call__(self, n: int) -> npt.NDArray[np.int32]:
        """The first ``n`` rows, flat."""
        array = self._array
        if array.size < n * self._columns:
            rows = np.zeros((max(1 << 12, 1 << (n - 1).bit_length()), self._columns), self._dtype)
            rows[:, -1] = np.arange(rows.shape[0]).astype(self._dtype)
            array = rows.reshape(-1)
            array.setflags(write=False)
            self._array = array  # atomic: a race between threads costs a second table, no more
        return array[: n * self._columns]


first_numbers = _Table(np.int32)
"""``first_numbers(n)`` is 0 .. n-1, int32, read-only."""
_numbers_16 = _Table(np.uint16)
_rows = _Table(np.int32, columns=2)


@lru_cache(maxsize=64)
def _negative_column(block_sizes: tuple[int, ...]) -> Int32Array:
    return -np.array(block_sizes, np.int32)[:, None]


class ChunkTables:
    """Chunks of B block sizes over N sequences.

    Attributes:
        block_sizes: The B sizes. num_seqs: N.
        num_chunks: Chunks of each size.
        counts: ``[B, N]`` int32, n_s. offsets: ``[B, N+1]`` int32, [0] + cumsum(n_s).
        nonempty: Numbers of the sequences with tokens, or None: all have some.
    """

    __slots__ = ("block_sizes", "counts", "nonempty", "num_chunks", "num_seqs", "offsets")

    def __init__(self, seq_lens: Int32Array, block_sizes: tuple[int, ...]) -> None:
        self.block_sizes = block_sizes
        self.num_seqs = seq_lens.size
        self.nonempty: Int32Array | None = None
        self.num_chunks: list[int]
        if self.num_seqs == 1:
            length = int(seq_lens[0])
            self.num_chunks = [-(-length // size) for size in block_sizes]
            self.offsets = np.array([(0, n) for n in self.num_chunks], np.int32)
            self.counts: Int32Array = self.offsets[:, 1:]
            if length == 0:
                self.nonempty = np.empty(0, np.int32)
            return
        # -(len // -C) is the ceiling; len + C - 1 would leave int32 for lengths near its end.
        self.counts = seq_lens // _negative_column(block_sizes)
        np.negative(self.counts, out=self.counts)
        self.offsets = np.zeros((len(block_sizes), self.num_seqs + 1), np.int32)
        np.cumsum(self.counts, axis=1, out=self.offsets[:, 1:])
        self.num_chunks = self.offsets[:, -1].tolist()
        if np.count_nonzero(seq_lens) < self.num_seqs:
            self.nonempty = np.flatnonzero(seq_lens).astype(np.int32)

    def write_indices(self, flat: Int32Array, starts: Sequence[int]) -> None:
        """Write ``chunk_indices`` of every size.

        Args:
            flat: Buffer, from the first row of the first size to (at least) the last of the last.
            starts: Row number in ``flat`` at which each size begins, ascending and not overlapping.
                Rows between two sizes get values without meaning.
        """
        if self.num_seqs == 1:
            for start, n in zip(starts, self.num_chunks, strict=True):
                flat[2 * start : 2 * (start + n)] = _rows(n)
            return
        total = starts[-1] + self.num_chunks[-1]
        if total == 0:
            return
        # A row [q, i] is one opaque 8-byte item: repeated in one pass, with i still lacking its
        # place in the buffer, which adding the table of all rows gives. The gap between two sizes
        # is one sequence more.
        repeats = np.empty((len(starts), self.num_seqs + 1), np.intp)
        repeats[:, :-1] = self.counts
        ends = [start + n for start, n in zip(starts, self.num_chunks, strict=True)]
        for row, (end, following) in enumerate(zip(ends, (*starts[1:], total), strict=True)):
            repeats[row, -1] = following - end
        first = np.empty((*repeats.shape, 2), np.int32)
        first[:, :, 0] = self._compact_numbers()
        np.subtract(
            [[-start] for start in starts], self.offsets, out=first[:, :, 1], dtype=np.int32
        )
        rows = first.view(np.int64).reshape(-1).repeat(repeats.reshape(-1))
        np.add(rows.view(np.int32), _rows(total), out=flat[: 2 * total])

    def write_offsets(self, out: Int32Array) -> None:
        """Write ``chunk_offsets`` to ``out`` ``[B, N+1]``."""
        out[...] = self.offsets

    def write_update_offsets(self, out: Int32Array) -> None:
        """Write ``update_chunk_offsets`` to ``out`` ``[B, N+1]``."""
        np.add(self.offsets, first_numbers(self.num_seqs + 1), out=out)

    def write_final_indices(self, out: Int32Array) -> None:
        """Write ``final_chunk_indices`` to ``out`` ``[B, N]``."""
        np.add(self.offsets[:, 1:], first_numbers(self.num_seqs), out=out)

    def _compact_numbers(self) -> Int32Array:
        """``[N+1]``: for every non-empty sequence the number of non-empty ones before it."""
        if self.nonempty is None:
            return first_numbers(self.num_seqs + 1)
        numbers = np.zeros(self.num_seqs + 1, np.int32)
        numbers[self.nonempty] = first_numbers(self.nonempty.size)
        return numbers


class ConvTiles:
    """Tiles of ``block_size`` tokens over N sequences, for causal_conv1d.

    Attributes:
        num_tiles: How many.
    """

    __slots__ = ("_counts", "_ends", "_few", "num_tiles")

    def __init__(self, seq_lens: Int32Array, block_size: int) -> None:
        self._few: list[int] | None = None
        if seq_lens.size <= _FEW:
            self._few = [-(-length // block_size) for length in seq_lens.tolist()]
            self.num_tiles = sum(self._few)
            return
        self._counts = np.floor_divide(seq_lens, -block_size, dtype=np.int64)
        np.negative(self._counts, out=self._counts)
        self._ends = self._counts.cumsum()
        self.num_tiles = int(self._ends[-1])

    def write(self, sequences: Int32Array, offsets: Int32Array) -> None:
        """Write ``conv_tile_sequences`` and ``conv_tile_offsets``, ``[num_tiles]`` each."""
        if self._few is not None:
            at = 0
            for s, n in enumerate(self._few):
                sequences[at : at + n] = s
                offsets[at : at + n] = first_numbers(n)
                at += n
            return
        counts = self._counts
        first = self._ends - counts
        if self.num_tiles > _MANY and counts.size <= 1 << 16 and counts.max() <= 1 << 16:
            # Both results fit 16 bits, and what is computed modulo 2**16 on the way comes out
            # right: half the memory traffic of the form below.
            sequences[:] = _numbers_16(counts.size).repeat(counts)
            tiles = first.astype(np.uint16).repeat(counts)
            np.subtract(_numbers_16(tiles.size), tiles, out=tiles)
            offsets[:] = tiles
        else:
            sequences[:] = first_numbers(counts.size).repeat(counts)
            shifts = first.astype(np.int32).repeat(counts)
            np.subtract(first_numbers(offsets.size), shifts, out=offsets)


def chunk_indices(
    seq_lens: Int32Array, block_size: int, out: Int32Array | None = None
) -> Int32Array:
    """``chunk_indices`` of one block size, ``[NT, 2]``."""
    tables = ChunkTables(seq_lens, (block_size,))
    if out is None:
        out = np.empty((tables.num_chunks[0], 2), np.int32)
    tables.write_indices(out.reshape(-1), (0,))
    return out


def chunk_offsets(
    seq_lens: Int32Array, block_size: int, out: Int32Array | None = None
) -> Int32Array:
    """``chunk_offsets`` of one block size, ``[N+1]``."""
    out = np.empty(seq_lens.size + 1, np.int32) if out is None else out
    ChunkTables(seq_lens, (block_size,)).write_offsets(out[None])
    return out


def update_chunk_offsets(
    seq_lens: Int32Array, block_size: int, out: Int32Array | None = None
) -> Int32Array:
    """``update_chunk_offsets`` of one block size, ``[N+1]``."""
    out = np.empty(seq_lens.size + 1, np.int32) if out is None else out
    ChunkTables(seq_lens, (block_size,)).write_update_offsets(out[None])
    return out


def final_chunk_indices(
    seq_lens: Int32Array, block_size: int, out: Int32Array | None = None
) -> Int32Array:
    """``final_chunk_indices`` of one block size, ``[N]``."""
    out = np.empty(seq_lens.size, np.int32) if out is None else out
    ChunkTables(seq_lens, (block_size,)).write_final_indices(out[None])
    return out


def conv_tiles(seq_lens: Int32Array, block_size: int) -> tuple[Int32Array, Int32Array]:
    """``conv_tile_sequences`` and ``conv_tile_offsets`` of one block size, ``[num_tiles]``."""
    tiles = ConvTiles(seq_lens, block_size)
    both = np.empty((2, tiles.num_tiles), np.int32)
    tiles.write(both[0], both[1])
    return both[0], both[1]
