"""Every device array of a step as a section of one flat int32 buffer, so that one copy moves all.

Three small steps: ``contents`` says what the sections hold, ``measure`` where they lie, ``fill``
writes them. Chunk tables are counted and written by ``NumpyTables``, or by compiled ``Tables`` of a
backend that write the same. Sections are named ``base`` or ``base/which``: ``cu_seqlens`` is the
step's, ``cu_seqlens/decode`` a group's, ``chunk_indices/64`` a block size's. The pairs come first;
every section begins on a cache line, so that pairs are int64-aligned and kernels that specialise on
pointer alignment are compiled once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gdn_dispatch.plan.arrays import Int32Array
from gdn_dispatch.plan.batch import BatchPlan
from gdn_dispatch.plan.chunks import ChunkTables, ConvTiles, first_numbers
from gdn_dispatch.plan.groups import Groups, HostGroup

__all__ = [
    "GROUP_KINDS",
    "Contents",
    "Layout",
    "NumpyTables",
    "Section",
    "TableNames",
    "Tables",
    "TablesMaker",
    "TablesRequest",
    "contents",
    "fill",
    "measure",
    "table_names",
]

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


class TableNames(NamedTuple):
    """Names of the sections of all block sizes, one per size in each field."""

    indices: tuple[str, ...]
    offsets: tuple[str, ...]
    updates: tuple[str, ...]
    finals: tuple[str, ...]


@lru_cache(maxsize=64)
def table_names(block_sizes: tuple[int, ...]) -> TableNames:
    """Names of the chunk tables' sections, in the order in which they lie."""
    return TableNames(
        tuple(f"chunk_indices/{size}" for size in block_sizes),
        tuple(f"chunk_offsets/{size}" for size in block_sizes),
        tuple(f"update_chunk_offsets/{size}" for size in block_sizes),
        tuple(f"final_chunk_indices/{size}" for size in block_sizes),
    )


class TablesRequest(NamedTuple):
    """What ``Tables`` are made from; the argument of the ``chunk_tables`` hook.

    Attributes:
        seq_lens: ``[n]`` int32, contiguous: tokens of each row of the prefill group, n >= 1.
        block_sizes: Block sizes that get a table, each at least 1.
        conv_block_size: Tokens per conv tile, or 0 for no tiles.
    """

    seq_lens: Int32Array
    block_sizes: tuple[int, ...]
    conv_block_size: int


class Tables(Protocol):
    """The sections written by formula (``gdn_dispatch.plan.chunks``): counted, then written.

    Attributes:
        request: What they were made from.
        num_chunks: Chunks of each block size. num_tiles: Conv tiles; 0 without.
        nonempty: ``[m]`` int32 numbers of the rows with tokens, or None: all have some.
    """

    request: TablesRequest
    num_chunks: list[int]
    num_tiles: int
    nonempty: Int32Array | None

    def write(self, layout: Layout, flat: Int32Array) -> None:
        """Write all of them into ``flat``; sections of ``layout`` may be larger than they are.

        They are the first sections of ``layout``, in the order of ``table_names`` and then the
        tiles' sequences and offsets; those of one kind have one span. Words behind a table's last,
        to the next section, may be written with anything; others may not.
        """


TablesMaker = Callable[[TablesRequest], Tables]


class NumpyTables:
    """``Tables`` in numpy."""

    __slots__ = ("_chunks", "_tiles", "nonempty", "num_chunks", "num_tiles", "request")

    def __init__(self, request: TablesRequest) -> None:
        self.request = request
        lens, sizes, tile = request
        self._chunks = ChunkTables(lens, sizes)
        self._tiles = ConvTiles(lens, tile) if tile else None
        self.num_chunks = self._chunks.num_chunks
        self.num_tiles = 0 if self._tiles is None else self._tiles.num_tiles
        self.nonempty = self._chunks.nonempty

    def write(self, layout: Layout, flat: Int32Array) -> None:
        """See ``Tables``."""
        sections, chunks = layout.sections, self._chunks
        names, n = table_names(chunks.block_sizes), chunks.num_seqs
        # The pairs are the first sections, so words of the buffer are words of the pairs.
        chunks.write_indices(flat, [sections[name].offset // 2 for name in names.indices])
        chunks.write_offsets(layout.rows(flat, names.offsets, n + 1))
        chunks.write_update_offsets(layout.rows(flat, names.updates, n + 1))
        chunks.write_final_indices(layout.rows(flat, names.finals, n))
        if self._tiles is not None:
            tiles = (sections[f"conv_tile_{what}"].of(flat) for what in ("sequences", "offsets"))
            self._tiles.write(*(tile[: self.num_tiles] for tile in tiles))


@dataclass(slots=True)
class Contents:
    """What a step writes to the device.

    Attributes:
        arrays: Sections that exist on the host already.
        tables: Sections written by formula, over the prefill group; None without one.
        token_indices: Groups whose tokens are listed, by kind.
    """

    arrays: dict[str, npt.NDArray[Any]]
    tables: Tables | None
    token_indices: dict[str, HostGroup]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every section, in their order in the buffer."""
        found: dict[str, tuple[int, ...]] = {}
        if self.tables is not None:
            lens, sizes, tile = self.tables.request
            names, n = table_names(sizes), lens.size
            for name, count in zip(names.indices, self.tables.num_chunks, strict=True):
                found[name] = (count, 2)
            for name in names.offsets + names.updates:
                found[name] = (n + 1,)
            for name in names.finals:
                found[name] = (n,)
            if tile:
                count = self.tables.num_tiles
                found["conv_tile_sequences"] = found["conv_tile_offsets"] = (count,)
        for kind, group in self.token_indices.items():
            found[f"token_indices/{kind}"] = (group.num_tokens,)
        for name, array in self.arrays.items():
            found[name] = array.shape
        return found


def contents(
    plan: BatchPlan,
    groups: Groups,
    *,
    block_sizes: tuple[int, ...],
    conv_block_size: int,
    tables_maker: TablesMaker = NumpyTables,
) -> Contents:
    """What the device needs to know of ``plan``: its host-given fields, groups and chunks.

    Args:
        plan: The step.
        groups: Its groups; chunks and conv tiles are those of the prefill group.
        block_sizes: Block sizes that get chunk tables.
        conv_block_size: Tokens per conv tile, or 0 for none.
        tables_maker: Who counts and writes the tables.
    """
    arrays: dict[str, npt.NDArray[Any]] = {"cu_seqlens": plan.query_start_loc}
    tables = None
    listed: dict[str, HostGroup] = {}
    if groups.prefill is not None:
        lens, ends = groups.prefill.lens, groups.prefill.cu_seqlens
        tables = tables_maker(TablesRequest(lens, block_sizes, conv_block_size))
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
    return Contents(arrays, tables, listed)


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
        what.tables.write(layout, flat)
    for kind, group in what.token_indices.items():
        group.write_token_indices(sections[f"token_indices/{kind}"].of(flat)[: group.num_tokens])
    for name, array in what.arrays.items():
        sections[name].of(flat)[: array.shape[0]] = array
