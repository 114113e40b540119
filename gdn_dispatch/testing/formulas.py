"""The formulas of chunk metadata, as loops: what every builder is compared with.

After FLA's ``prepare_chunk_indices`` and the tables that vllm-ascend adds to it: for a block
size C, sequence s of ``len_s`` tokens has ``n_s = ceil(len_s / C)`` chunks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["ChunkFormulas", "chunk_formulas"]


@dataclass
class ChunkFormulas:
    """The four tables of one block size, as lists.

    Attributes:
        chunk_indices: Rows ``[q, i]``: chunk i of the q-th sequence that is not empty.
        chunk_offsets: ``[0] + cumsum(n_s)``.
        update_chunk_offsets: ``[0] + cumsum(n_s + 1)``.
        final_chunk_indices: ``cumsum(n_s + 1) - 1``.
    """

    chunk_indices: list[list[int]] = field(default_factory=list)
    chunk_offsets: list[int] = field(default_factory=lambda: [0])
    update_chunk_offsets: list[int] = field(default_factory=lambda: [0])
    final_chunk_indices: list[int] = field(default_factory=list)


def chunk_formulas(lengths: Iterable[int], block_size: int) -> ChunkFormulas:
    """The tables for sequences of these lengths."""
    found = ChunkFormulas()
    compact = 0
    for length in lengths:
        n = -(-length // block_size)
        found.chunk_indices += [[compact, i] for i in range(n)]
        compact += n > 0
        found.chunk_offsets.append(found.chunk_offsets[-1] + n)
        found.update_chunk_offsets.append(found.update_chunk_offsets[-1] + n + 1)
        found.final_chunk_indices.append(found.update_chunk_offsets[-1] - 1)
    return found
