"""What ``ChunkMeta`` is made of; import these names from ``gdn_dispatch.meta``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gdn_dispatch.errors import InvalidArgumentError
from gdn_dispatch.plan.groups import HostGroup
from gdn_dispatch.plan.layout import Layout

__all__ = ["ChunkTable", "MetaSpec", "SequenceGroup", "views"]


@dataclass(frozen=True, slots=True)
class MetaSpec:
    """What a backend asks for.

    Attributes:
        chunk_size: Tokens per chunk of its chunk rule; checkpoints fall on its multiples.
        block_sizes: Further block sizes that get a ``ChunkTable``.
        conv_block_size: Tokens per causal_conv1d tile, or 0 for no tiles.
    """

    chunk_size: int
    block_sizes: tuple[int, ...] = ()
    conv_block_size: int = 0

    def __post_init__(self) -> None:
        for size in (self.chunk_size, *self.block_sizes):
            if size < 1:
                raise InvalidArgumentError("MetaSpec", f"a block of {size} tokens", "at least 1")
        if self.conv_block_size < 0:
            raise InvalidArgumentError("conv_block_size", f"{self.conv_block_size}", "at least 0")

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """``chunk_size`` and ``block_sizes``, each once."""
        return tuple(dict.fromkeys((self.chunk_size, *self.block_sizes)))


@dataclass(slots=True, eq=False)
class ChunkTable:
    """Chunks of one block size C over the n sequences of the prefill group; int32 on the device.

    With n_s = ceil(len_s / C) and NT = sum n_s (formulas: ``gdn_dispatch.plan.chunks``):

    Attributes:
        chunk_size: C.
        chunk_indices: ``[NT, 2]`` rows [q, i]; q indexes ``ChunkMeta.nonempty``.
        chunk_offsets: ``[n+1]``. update_chunk_offsets: ``[n+1]``. final_chunk_indices: ``[n]``.
        num_chunks: NT of the step; ``update_`` may leave ``chunk_indices`` longer.
    """

    chunk_size: int
    chunk_indices: torch.Tensor
    chunk_offsets: torch.Tensor
    update_chunk_offsets: torch.Tensor
    final_chunk_indices: torch.Tensor
    num_chunks: int

    @classmethod
    def of(cls, size: int, tensors: Mapping[str, torch.Tensor]) -> ChunkTable:
        """The table of one block size out of all sections."""
        indices = tensors[f"chunk_indices/{size}"]
        return cls(
            chunk_size=size,
            chunk_indices=indices,
            chunk_offsets=tensors[f"chunk_offsets/{size}"],
            update_chunk_offsets=tensors[f"update_chunk_offsets/{size}"],
            final_chunk_indices=tensors[f"final_chunk_indices/{size}"],
            num_chunks=indices.shape[0],
        )


@dataclass(slots=True, eq=False)
class SequenceGroup:
    """Rows of the step that take the same path, packed; int32 on the device.

    Attributes:
        host: The same on the host; the four numbers below come from it.
        sequences: ``[n]`` row numbers of the step, -1 past ``num_seqs`` after ``update_``.
        seq_starts: ``[n]`` first token of each row, in the step.
        cu_seqlens: ``[n+1]`` packed within the group.
        token_indices: ``[num_tokens]`` tokens of the step, or None: they are one run that begins at
            ``token_start``.
    """

    host: HostGroup
    sequences: torch.Tensor
    seq_starts: torch.Tensor
    cu_seqlens: torch.Tensor
    token_indices: torch.Tensor | None

    @classmethod
    def of(
        cls, kind: str, host: HostGroup | None, tensors: Mapping[str, torch.Tensor]
    ) -> SequenceGroup | None:
        """The group of one kind out of all sections; None for one without rows."""
        if host is None:
            return None
        return cls(
            host=host,
            sequences=tensors[f"sequences/{kind}"],
            seq_starts=tensors[f"seq_starts/{kind}"],
            cu_seqlens=tensors[f"cu_seqlens/{kind}"],
            token_indices=tensors.get(f"token_indices/{kind}"),
        )

    @property
    def num_seqs(self) -> int:
        """Rows in the group."""
        return self.host.num_seqs

    @property
    def num_tokens(self) -> int:
        """Tokens in the group."""
        return self.host.num_tokens

    @property
    def max_seqlen(self) -> int:
        """Longest row."""
        return self.host.max_seqlen

    @property
    def token_start(self) -> int | None:
        """First token, where the group's tokens are one run of the step's; else None."""
        return self.host.token_start


def views(flat: torch.Tensor, layout: Layout) -> dict[str, torch.Tensor]:
    """Every section as a view of ``flat``, in its shape and dtype, cut out in one call."""
    sizes: list[int] = []
    for section in layout.sections.values():
        sizes += (section.words, section.span - section.words)  # the section, then its gap
    found: dict[str, torch.Tensor] = {}
    pieces = flat.split_with_sizes(sizes)[::2]
    for (name, section), piece in zip(layout.sections.items(), pieces, strict=True):
        if section.is_bool:
            piece = piece.view(torch.bool)[: section.shape[0]]
        elif len(section.shape) != 1:
            piece = piece.view(section.shape)
        found[name] = piece
    return found


def empty_prefill(cu_seqlens: torch.Tensor, spec: MetaSpec) -> dict[str, torch.Tensor]:
    """The sections of a step without a prefill group: nothing, and offsets that are just [0].

    Views of ``cu_seqlens``, whose first value is 0 in every step.
    """
    nothing, zero = cu_seqlens[:0], cu_seqlens[:1]
    found = {"nonempty": nothing, "cu_seqlens_nonempty": zero}
    for size in spec.table_sizes:
        found[f"chunk_indices/{size}"] = nothing.view(0, 2)
        found[f"chunk_offsets/{size}"] = found[f"update_chunk_offsets/{size}"] = zero
        found[f"final_chunk_indices/{size}"] = nothing
    if spec.conv_block_size:
        found["conv_tile_sequences"] = found["conv_tile_offsets"] = nothing
    return found
