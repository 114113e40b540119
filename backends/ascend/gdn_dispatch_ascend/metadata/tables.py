"""The tensors that Ascend's kernels know by name, over the sequences of a prefill.

With ``len_s`` the tokens of sequence s, ``n_s(C) = ceil(len_s / C)``, and ``IDX(C)`` the rows
[q, i], i < n_s(C), where q numbers the sequences that have tokens (vllm-ascend's
``GDNChunkedPrefillMetadata`` and ``prepare_*`` helpers; dtypes there vary, here all are int32):

==============================  =======================================  ================
chunk_indices_chunk64           IDX(64)                                  [sum n_s(64), 2]
chunk_offsets_chunk64           [0] + cumsum(n_s(64))                    [n+1]
update_chunk_offsets_chunk64    [0] + cumsum(n_s(64) + 1)                [n+1]
final_chunk_indices_chunk64     cumsum(n_s(64) + 1) - 1                  [n]
chunk_indices_large_block       IDX(1216)                                [sum n_s(1216), 2]
block_indices_cumsum            IDX(Cc)                                  [sum n_s(Cc), 2]
cu_seqlens_kern                 cu_seqlens without empty sequences       [m+1]
keep_meta                       len_s > 0, bool                          [n]
==============================  =======================================  ================

with Cc = ``cumsum_block_size(HV)``. q indexes ``cu_seqlens_kern``; ``cu_seqlens`` is another thing
where an empty sequence lies in the middle. Offsets and ``final_chunk_indices`` count all n
sequences; m of them have tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gdn_dispatch.errors import InvalidArgumentError, MetadataError

if TYPE_CHECKING:
    import torch

    from gdn_dispatch.meta import ChunkMeta, ChunkTable

__all__ = ["CHUNK_SIZE", "LARGE_BLOCK_SIZE", "AscendTables", "cumsum_block_size", "named_tables"]

CHUNK_SIZE: Final = 64
"""Tokens per chunk of the chunk rule: ``_GDN_CHUNK_SIZE`` of vllm-ascend."""

LARGE_BLOCK_SIZE: Final = 608 * 2
"""Tokens per block of the triangular solve: ``LARGE_BLOCK_T`` of ``solve_tril``."""

CUMSUM_WORKING_SET: Final = 2**18
"""Gates that one block of the cumulative sum holds: ``_GDN_CUMSUM_WORKING_SET``."""


def cumsum_block_size(num_v_heads: int) -> int:
    """Tokens per block of the gates' cumulative sum, for HV value heads of this rank.

    ``next_power_of_2(max(1, 2**18 // (HV * 64)))``: 1024 for HV = 4, 512 for 8 and 12, 128 for 32.
    From HV = 128 on it is less than a chunk; vllm-ascend's own kernel could not run that.

    Raises:
        InvalidArgumentError: ``num_v_heads`` is less than 1.
    """
    if num_v_heads < 1:
        raise InvalidArgumentError("num_v_heads", f"{num_v_heads}", "at least 1")
    blocks = max(1, CUMSUM_WORKING_SET // (num_v_heads * CHUNK_SIZE))
    return 1 << (blocks - 1).bit_length()


@dataclass(frozen=True, slots=True, eq=False)
class AscendTables:
    """The tensors above; int32 on one device, but for ``keep_meta``.

    Where sizes come from an upper bound (``device_tables``, or ``ChunkMeta.update_``), index tables
    are longer than the step: rows past the last chunk are -1, ``cu_seqlens_kern`` repeats its last
    value.

    Attributes:
        num_v_heads: HV, which Cc follows from.
        cu_seqlens: ``[n+1]`` of all sequences.
        nonempty: ``[m]`` numbers of those with tokens.
        chunk_indices_chunk64, chunk_offsets_chunk64, update_chunk_offsets_chunk64,
        final_chunk_indices_chunk64, chunk_indices_large_block, block_indices_cumsum,
        cu_seqlens_kern, keep_meta: See the table of this module.
    """

    num_v_heads: int
    cu_seqlens: torch.Tensor
    nonempty: torch.Tensor
    chunk_indices_chunk64: torch.Tensor
    chunk_offsets_chunk64: torch.Tensor
    update_chunk_offsets_chunk64: torch.Tensor
    final_chunk_indices_chunk64: torch.Tensor
    chunk_indices_large_block: torch.Tensor
    block_indices_cumsum: torch.Tensor
    cu_seqlens_kern: torch.Tensor
    keep_meta: torch.Tensor


def named_tables(
    meta: ChunkMeta, num_v_heads: int | None, keep_meta: torch.Tensor | None
) -> AscendTables:
    """Views of ``meta`` under Ascend's names; nothing is computed or copied.

    Args:
        meta: Metadata of a step with a prefill group.
        num_v_heads: HV it was built for.
        keep_meta: ``[n]`` bool of its prefill group.

    Raises:
        MetadataError: What a name stands for is missing; the message names it.
    """
    group = meta.prefill
    if group is None or keep_meta is None:
        raise MetadataError(
            "prefill", "a step without prefill rows", "a prefill group, which the tables are over"
        )
    if num_v_heads is None:
        raise MetadataError(
            "block_indices_cumsum", "no table: num_v_heads was not given",
            "num_v_heads, the value heads of this rank, which its block size follows from",
            hint="pass num_v_heads to build_chunk_meta",
        )  # fmt: skip
    chunk = _table(meta, "chunk_indices_chunk64", CHUNK_SIZE)
    return AscendTables(
        num_v_heads=num_v_heads,
        cu_seqlens=group.cu_seqlens,
        nonempty=meta.nonempty,
        chunk_indices_chunk64=chunk.chunk_indices,
        chunk_offsets_chunk64=chunk.chunk_offsets,
        update_chunk_offsets_chunk64=chunk.update_chunk_offsets,
        final_chunk_indices_chunk64=chunk.final_chunk_indices,
        chunk_indices_large_block=_table(
            meta, "chunk_indices_large_block", LARGE_BLOCK_SIZE
        ).chunk_indices,
        block_indices_cumsum=_table(
            meta, "block_indices_cumsum", cumsum_block_size(num_v_heads)
        ).chunk_indices,
        cu_seqlens_kern=meta.cu_seqlens_nonempty,
        keep_meta=keep_meta,
    )


def _table(meta: ChunkMeta, field: str, size: int) -> ChunkTable:
    found = meta.chunks.get(size)
    if found is None:
        built = ", ".join(map(str, meta.chunks))
        raise MetadataError(
            field, f"tables for blocks of {built}", f"one for blocks of {size}",
            hint="build the metadata with backend='ascend'",
        )  # fmt: skip
    return found
