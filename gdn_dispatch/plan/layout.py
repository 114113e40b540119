"""Every device array of a step as a section of one flat int32 buffer, so that one copy moves all.

Three small steps: ``contents`` says what the sections hold, ``measure`` where they lie, ``fill``
writes them. Sections are named ``base`` or ``base/which``: ``cu_seqlens`` is the step's,
``cu_seqlens/decode`` a group's, ``chunk_indices/64`` a block size's. The pairs come first; every
section begins on a cache line, so that pairs are int64-aligned and kernels that specialise on
pointer alignment are compiled once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gdn_dispatch.plan.arrays import Int32Array
from gdn_dispatch.plan.batch import BatchPlan
from gdn_dispatch.plan.chunks import ChunkTables, ConvTiles, first_numbers
from gdn_dispatch.plan.groups import Groups, HostGroup

__all__ = ["GROUP_KINDS", "Contents", "Layout", "Section", "contents", "fill", "measure"]

GROUP_KINDS = ("prefill", "decode", "speculative")

_LINE = 16
"""int32 words per cache line of 64 bytes."""


class Section(NamedTuple):
    """Where an array lies in the buffer.

    Attributes:
        offset: First word. words: Words used. span: Words to the next section.
        shape: Shape of the array. is_bool: One byte per element instead of one word.
    """

    offset: int
    words: int
    span: int
    shape: tuple[int, ...]
    is_bool: bool

    def of(self, flat: Int32Array) -> npt.NDArray[Any]:
        """The section as a view of ``flat``, in its shape and dtype."""
        words = flat[self.offset : self.offset + self.words]
        if self.is_bool:
            return words.view(np.bool_)[: self.shape[0]]
        return words if len(self.shape) == 1 else words.reshape(self.shape)


@dataclass(slots=True)
class Layout:
    """Sections by name, in the order in which they lie, and the size of the whole buffer."""

    sections: dict[str, Section]
    num_words: int

    def rows(self, flat: Int32Array, names: tuple[str, ...], width: int) -> Int32Array:
        """Adjacent sections of one span as ``[len(names), width]``, a strided view of ``flat``."""
        first = self.sections[names[0]]
        end = first.offset + len(names) * first.span
        return flat[first.offset : end].reshape(len(names), first.span)[:, :width]


class _TableNames(NamedTuple):
    """Names of the sections of all block sizes, one per size in each field."""

    indices: tuple[str, ...]
    offsets: tuple[str, ...]
    updates: tuple[str, ...]
    finals: tuple[str, ...]


@lru_cache(maxsize=64)
def _table_names(block_sizes: tuple[int, ...]) -> _TableNames:
    return _TableNames(
        tuple(f"chunk_indices/{size}" for size in block_sizes),
        tuple(f"chunk_offsets/{size}" for size in block_sizes),
        tuple(f"update_chunk_offsets/{size}" for size in block_sizes),
        tuple(f"final_chunk_indices/{size}" for size in block_sizes),
    )


@dataclass(slots=True)
class Contents:
    """What a step writes to the device.

    Attributes:
        arrays: Sections that exist on the host already.
        tables, tiles: Sections written by formula, over the prefill group; None without them.
        token_indices: Groups whose tokens are listed, by kind.
    """

    arrays: dict[str, npt.NDArray[Any]]
    tables: ChunkTables | None
    tiles: ConvTiles | None
    token_indices: dict[str, HostGroup]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every section, in their order in the buffer."""
        found: dict[str, tuple[int, ...]] = {}
        if self.tables is not None:
            names, n = _table_names(self.tables.block_sizes), self.tables.num_seqs
            for name, count in zip(names.indices, self.tables.num_chunks, strict=True):
                found[name] = (count, 2)
            for name in names.offsets + names.updates:
                found[name] = (n + 1,)
            for name in names.finals:
                found[name] = (n,)
        if self.tiles is not None:
            found["conv_tile_sequences"] = found["conv_tile_offsets"] = (self.tiles.num_tiles,)
        for kind, group in self.token_indices.items():
            found[f"token_indices/{kind}"] = (group.num_tokens,)
        for name, array in self.arrays.items():
            found[name] = array.shape
        return found


def contents(
    plan: BatchPlan, groups: Groups, *, block_sizes: tuple[int, ...], conv_block_size: int
) -> Contents:
    """What the device needs to know of ``plan``: its host-given fields, groups and chunks.

    Args:
        plan: The step.
        groups: Its groups; chunks and conv tiles are those of the prefill group.
        block_sizes: Block sizes that get chunk tables.
        conv_block_size: Tokens per conv tile, or 0 for none.
    """
    arrays: dict[str, npt.NDArray[Any]] = {"cu_seqlens": plan.query_start_loc}
    tables = tiles = None
    listed: dict[str, HostGroup] = {}
    if groups.prefill is not None:
        lens, ends = groups.prefill.lens, groups.prefill.cu_seqlens
        tables = ChunkTables(lens, block_sizes)
        tiles = ConvTiles(lens, conv_block_size) if conv_block_size else None
        if tables.nonempty is None:
            arrays["nonempty"] = first_numbers(lens.size)
            arrays["cu_seqlens_nonempty"] = ends
        else:
            arrays["nonempty"] = tables.nonempty
            kept = arrays["cu_seqlens_nonempty"] = np.zeros(tables.nonempty.size + 1, np.int32)
            kept[1:] = ends[1:][tables.nonempty]
    for kind in GROUP_KINDS:
        group: HostGroup | None = getattr(groups, kind)
        if group is not None:
            arrays[f"sequences/{kind}"] = group.sequences
            arrays[f"seq_starts/{kind}"] = group.starts
            arrays[f"cu_seqlens/{kind}"] = group.cu_seqlens
            if group.token_start is None:
                listed[kind] = group
    for name, values in (
        ("state_indices", plan.state_indices),
        ("initial_state_indices", plan.initial_state_indices),
        ("has_initial_state", plan.has_initial_state),
        ("num_accepted_tokens", plan.num_accepted_tokens),
    ):
        if values is not None:
            arrays[name] = values
    if plan.checkpoints is not None:
        arrays["checkpoint_sequences"] = plan.checkpoints.sequences
        arrays["checkpoint_offsets"] = plan.checkpoints.offsets
        arrays["checkpoint_slots"] = plan.checkpoints.slots
    return Contents(arrays, tables, tiles, listed)


def measure(what: Contents) -> Layout:
    """Lay the sections of ``what`` out one after the other."""
    sections: dict[str, Section] = {}
    offset = 0
    for name, shape in what.shapes().items():
        words = shape[0] if len(shape) == 1 else shape[0] * shape[1]
        is_bool = name == "has_initial_state"
        if is_bool:
            words = (words + 3) // 4
        span = -(-words // _LINE) * _LINE
        sections[name] = Section(offset, words, span, shape, is_bool)
        offset += span
    return Layout(sections, offset)


def fill(layout: Layout, what: Contents, flat: Int32Array) -> None:
    """Write ``what`` into ``flat``, whose ``layout`` has room for it (and may have more)."""
    sections = layout.sections
    if what.tables is not None:
        names, n = _table_names(what.tables.block_sizes), what.tables.num_seqs
        # The pairs are the first sections, so words of the buffer are words of the pairs.
        what.tables.write_indices(flat, [sections[name].offset // 2 for name in names.indices])
        what.tables.write_offsets(layout.rows(flat, names.offsets, n + 1))
        what.tables.write_update_offsets(layout.rows(flat, names.updates, n + 1))
        what.tables.write_final_indices(layout.rows(flat, names.finals, n))
    if what.tiles is not None:
        n = what.tiles.num_tiles
        what.tiles.write(
            sections["conv_tile_sequences"].of(flat)[:n], sections["conv_tile_offsets"].of(flat)[:n]
        )
    for kind, group in what.token_indices.items():
        group.write_token_indices(sections[f"token_indices/{kind}"].of(flat)[: group.num_tokens])
    for name, array in what.arrays.items():
        sections[name].of(flat)[: array.shape[0]] = array
