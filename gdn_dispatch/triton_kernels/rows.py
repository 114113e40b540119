"""A group of rows and their slots, as kernels take them: device tensors, and sizes for grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from gdn_dispatch.meta import ChunkMeta, SequenceGroup

__all__ = ["Chunks", "Rows", "Slots"]


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """The chunks of a prefill group; int32 on the device.

    Attributes:
        size: Tokens per chunk, C.
        indices: ``[>= count, 2]`` rows [q, i]: chunk i of the q-th non-empty sequence. Rows past
            the step's chunks hold -1, after metadata has been updated in place.
        offsets: ``[n+1]`` number of the first chunk of each sequence of the group.
        nonempty: ``[m]`` number in the group of each non-empty sequence: what q counts.
        count: Chunks to launch for; at least those of the step.
    """

    size: int
    indices: torch.Tensor
    offsets: torch.Tensor
    nonempty: torch.Tensor
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """n rows of the step that take the same path; int32 on the device.

    Row i of the group owns the tokens ``starts[i] .. starts[i] + cu_seqlens[i+1] - cu_seqlens[i]``
    of the step's tensors.

    Attributes:
        num_seqs: n, the rows to launch for.
        sequences: ``[n]`` their row numbers in the step, by which slots are looked up; -1: no row.
            None: they are numbered 0 .. n-1.
        starts: ``[n]`` first token of each row, in the step.
        cu_seqlens: ``[n+1]`` packed within the group; only differences mean anything here.
        max_seqlen: Longest row, known on the host.
        chunks: Chunks, for a prefill group; else None.
    """

    num_seqs: int
    sequences: torch.Tensor | None
    starts: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    chunks: Chunks | None = None

    @classmethod
    def of(cls, meta: ChunkMeta, group: SequenceGroup) -> Rows:
        """The rows of a group of ``meta``."""
        chunks = None
        if group is meta.prefill:
            table = meta.chunks[meta.chunk_size]
            chunks = Chunks(
                size=meta.chunk_size,
                indices=table.chunk_indices,
                offsets=table.chunk_offsets,
                nonempty=meta.nonempty,
                # all of the table, not num_chunks: a captured launch must serve later steps
                count=table.chunk_indices.shape[0],
            )
        return cls(
            # the tensor's length, not group.num_seqs, for the same reason
            num_seqs=group.sequences.shape[0],
            sequences=group.sequences,
            starts=group.seq_starts,
            cu_seqlens=group.cu_seqlens,
            max_seqlen=group.max_seqlen,
            chunks=chunks,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """Where the rows of a step read and write state; indexed by the row's number in the step.

    A slot is padding if it is negative or equals ``pad_slot``. A row whose write slot (column 0) is
    padding is padding: nothing is read or written and its output is zero. A padding read slot of a
    live row means: start from zero.

    Attributes:
        write: ``[N]`` or ``[N, S]`` int32 or int64, any row stride.
        read: The same, or None: those of ``write``.
        has_initial_state: ``[N]`` bool, or None: all True. False: start from zero.
        num_accepted_tokens: ``[N]`` int32 or int64, or None.
        pad_slot: A slot that is padding besides all negative ones.
        checkpoint_sequences, checkpoint_offsets, checkpoint_slots: ``[c]`` int32, sorted by row and
            then offset, or None: the state of row ``sequence`` after ``offset`` tokens of this step
            also goes to ``slot``. Rows of -1 are none.
    """

    write: torch.Tensor
    read: torch.Tensor | None
    has_initial_state: torch.Tensor | None
    num_accepted_tokens: torch.Tensor | None
    pad_slot: int
    checkpoint_sequences: torch.Tensor | None = None
    checkpoint_offsets: torch.Tensor | None = None
    checkpoint_slots: torch.Tensor | None = None

    @classmethod
    def of(cls, meta: ChunkMeta) -> Slots:
        """The slots of ``meta``, which has some."""
        if meta.state_indices is None:
            raise TypeError("metadata for the recurrence alone has no slots")
        return cls(
            write=meta.state_indices,
            read=meta.initial_state_indices,
            has_initial_state=meta.has_initial_state,
            num_accepted_tokens=meta.num_accepted_tokens,
            pad_slot=meta.plan.pad_slot,
            checkpoint_sequences=meta.checkpoint_sequences,
            checkpoint_offsets=meta.checkpoint_offsets,
            checkpoint_slots=meta.checkpoint_slots,
        )
