"""The metadata all layers of a step share: device tensors, and their host values where known.

Built once per step from a ``BatchPlan``, passed to every layer by the caller. Every tensor that the
plan determines is a view of one flat int32 tensor; what the engine already holds on the device is
used as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from gdn_dispatch.errors import MetadataError
from gdn_dispatch.meta.handles import make_handle, remember
from gdn_dispatch.meta.parts import ChunkTable, MetaSpec, SequenceGroup, empty_prefill, views
from gdn_dispatch.plan.batch import BatchPlan
from gdn_dispatch.plan.chunks import chunk_indices
from gdn_dispatch.plan.groups import Groups, HostGroup, split
from gdn_dispatch.plan.layout import (
    GROUP_KINDS,
    Contents,
    Layout,
    NumpyTables,
    TablesMaker,
    contents,
    fill,
    measure,
)
from gdn_dispatch.plan.sources import DEVICE_FIELDS, check_sources
from gdn_dispatch.plan.update import check_fits, complete, refit
from gdn_dispatch.staging import PinnedArena, arena_for
from gdn_dispatch.types import MetaRequest

__all__ = ["ChunkMeta", "ChunkTable", "MetaSpec", "SequenceGroup", "build"]

_TENSOR_FIELDS = (
    "cu_seqlens",
    "nonempty",
    "cu_seqlens_nonempty",
    "conv_tile_sequences",
    "conv_tile_offsets",
    *DEVICE_FIELDS,
    "checkpoint_sequences",
    "checkpoint_offsets",
    "checkpoint_slots",
)


class _Referable:
    """``ChunkMeta`` is held weakly by ``handles``; a slotted dataclass has to be told."""

    __slots__ = ("__weakref__",)


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class ChunkMeta(_Referable):
    """Metadata of one step of N rows for one backend. Backends may subclass it.

    int32 tensors on ``device``, unless said otherwise. Slots are None in recurrence-only metadata
    (``serving`` False), where all rows form the prefill group.

    Attributes:
        backend: Name of the backend it was built for.
        device: Where the tensors are.
        plan: The step on the host.
        spec: What the backend asked for.
        serving: Whether rows have slots.
        cu_seqlens: ``[N+1]``, the whole step.
        prefill, decode, speculative: Groups of rows; None where the step has none.
        chunks: Tables by block size, over the prefill group; empty tables without one.
        nonempty: ``[m]`` sequences of the prefill group that have tokens.
        cu_seqlens_nonempty: ``[m+1]`` = the group's cu_seqlens without the empty ones. The compact
            numbers of ``chunk_indices`` index these two.
        conv_tile_sequences, conv_tile_offsets: ``[num_conv_tiles]`` number in the prefill group
            (not compact) and number within the sequence of every causal_conv1d tile, or None.
        num_conv_tiles: Tiles of the step.
        state_indices, initial_state_indices: ``[N]`` or ``[N, S]`` or None.
        has_initial_state: ``[N]`` bool, or None: all True.
        num_accepted_tokens: ``[N]`` or None.
        checkpoint_sequences, checkpoint_offsets, checkpoint_slots: ``[n]`` each, or None. Row
            numbers of the step, as in ``plan.checkpoints``.
        handle: Stands for this object in compiled graphs; see ``gdn_dispatch.meta.handles``.
    """

    backend: str
    device: torch.device
    plan: BatchPlan
    spec: MetaSpec
    serving: bool
    cu_seqlens: torch.Tensor
    prefill: SequenceGroup | None
    decode: SequenceGroup | None
    speculative: SequenceGroup | None
    chunks: dict[int, ChunkTable]
    nonempty: torch.Tensor
    cu_seqlens_nonempty: torch.Tensor
    conv_tile_sequences: torch.Tensor | None
    conv_tile_offsets: torch.Tensor | None
    num_conv_tiles: int
    state_indices: torch.Tensor | None
    initial_state_indices: torch.Tensor | None
    has_initial_state: torch.Tensor | None
    num_accepted_tokens: torch.Tensor | None
    checkpoint_sequences: torch.Tensor | None
    checkpoint_offsets: torch.Tensor | None
    checkpoint_slots: torch.Tensor | None
    _flat: torch.Tensor
    _layout: Layout
    _arena: PinnedArena
    _capacity: BatchPlan
    _tables_maker: TablesMaker = NumpyTables
    handle: torch.Tensor = field(init=False)
    _chunk_indices_host: tuple[int, ...] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.handle = make_handle(self.plan.num_seqs)
        remember(self)

    def __repr__(self) -> str:
        groups = ", ".join(
            f"{kind}={group.num_seqs}" for kind in GROUP_KINDS if (group := getattr(self, kind))
        )
        return (
            f"{type(self).__name__}(backend={self.backend!r}, device='{self.device}', "
            f"chunk_size={self.chunk_size}, num_seqs={self.plan.num_seqs}, "
            f"num_tokens={self.plan.num_tokens}, {groups or 'no rows'})"
        )

    @property
    def chunk_size(self) -> int:
        """Tokens per chunk of the backend's chunk rule."""
        return self.spec.chunk_size

    @property
    def chunk_indices(self) -> torch.Tensor:
        """``[num_chunks, 2]`` for ``chunk_size``."""
        return self.chunks[self.chunk_size].chunk_indices

    @property
    def chunk_offsets(self) -> torch.Tensor:
        """``[n+1]`` for ``chunk_size``."""
        return self.chunks[self.chunk_size].chunk_offsets

    @property
    def update_chunk_offsets(self) -> torch.Tensor:
        """``[n+1]`` for ``chunk_size``."""
        return self.chunks[self.chunk_size].update_chunk_offsets

    @property
    def final_chunk_indices(self) -> torch.Tensor:
        """``[n]`` for ``chunk_size``."""
        return self.chunks[self.chunk_size].final_chunk_indices

    @property
    def num_chunks(self) -> int:
        """Chunks of ``chunk_size`` in the prefill group."""
        return self.chunks[self.chunk_size].num_chunks

    @property
    def cu_seqlens_host(self) -> tuple[int, ...]:
        """``cu_seqlens`` of the step as Python ints; no device read."""
        return tuple(self.plan.query_start_loc.tolist())

    @property
    def chunk_indices_host(self) -> tuple[int, ...]:
        """``chunk_indices`` of the step, flattened, as Python ints; no device read."""
        if self._chunk_indices_host is None:
            lens = np.empty(0, np.int32) if self.prefill is None else self.prefill.host.lens
            rows = chunk_indices(lens, self.chunk_size)
            self._chunk_indices_host = tuple(rows.reshape(-1).tolist())
        return self._chunk_indices_host

    def update_(self, plan: BatchPlan) -> None:
        """Write a new step into the same device tensors, for a captured graph that reads them.

        The step must fit what the metadata was built with: no more rows or tokens, no group that
        was not there and none with more rows, no more chunks, the same fields given on the host.
        Tails are padded (``gdn_dispatch.plan.update``). Tensors the caller gave stay the caller's
        to update. Host values (``plan``, ``num_chunks``, a group's ``token_start`` ...) become the
        new step's; a captured launch keeps those it was captured with.

        Raises:
            MetadataError: A field does not fit; nothing was written.
            InvalidPlanError: ``plan`` contradicts what is on the device; nothing was written.
        """
        given = {
            name: tuple(tensor.shape)
            for name in DEVICE_FIELDS
            if name not in self._layout.sections and (tensor := getattr(self, name)) is not None
        }
        serving = check_sources(plan, given, chunk_size=self.chunk_size, at_least=True)
        for name, new, built in (
            ("num_seqs", plan.num_seqs, self._capacity.num_seqs),
            ("total_tokens", plan.total_tokens, self._capacity.total_tokens),
        ):
            if new > built:
                raise MetadataError(name, f"{new}", f"at most {built}, as built")
        if plan.pad_slot != self._capacity.pad_slot:
            built = self._capacity.pad_slot
            raise MetadataError("pad_slot", f"{plan.pad_slot}", f"{built}, as built")
        if serving != self.serving:
            names = {True: "slots", False: "no slots"}
            raise MetadataError("state_indices", names[serving], f"{names[self.serving]}, as built")
        groups = split(plan, serving=serving)
        what = _contents(plan, groups, self.spec, self._tables_maker)
        complete(what, self._layout, plan, groups)
        check_fits(self._layout, what)
        self._arena.upload(
            self._layout.num_words, lambda flat: refit(self._layout, what, plan, flat), self._flat
        )

        self.plan = plan
        self._chunk_indices_host = None
        for kind in GROUP_KINDS:
            group: SequenceGroup | None = getattr(self, kind)
            if group is not None:
                group.host = getattr(groups, kind) or HostGroup.empty()
        counts = [0] * len(self.chunks) if what.tables is None else what.tables.num_chunks
        for table, count in zip(self.chunks.values(), counts, strict=True):
            table.num_chunks = count
        self.num_conv_tiles = 0 if what.tables is None else what.tables.num_tiles


MetaT = TypeVar("MetaT", bound=ChunkMeta)


def build(
    request: MetaRequest,
    spec: MetaSpec,
    *,
    backend: str,
    cls: type[MetaT] = ChunkMeta,  # type: ignore[assignment]
    arena: PinnedArena | None = None,
) -> MetaT:
    """The core's builder: everything ``spec`` asks for, with one asynchronous copy and no wait.

    Args:
        request: The step and the tensors an engine already holds; validated, but for what follows.
        spec: Block sizes.
        backend: Name of the backend the metadata is for.
        cls: ``ChunkMeta`` or a subclass whose further fields have defaults.
        arena: Where the host buffer comes from; None for the process-wide one of the device.

    Raises:
        InvalidPlanError: A field is given on the host and on the device, or missing on both, or
            does not have one row per sequence; a checkpoint is not a multiple of the chunk size.
    """
    plan, device = request.plan, request.device
    given = {
        name: tensor for name in DEVICE_FIELDS if (tensor := getattr(request, name)) is not None
    }
    serving = check_sources(
        plan,
        {name: tuple(tensor.shape) for name, tensor in given.items()},
        chunk_size=spec.chunk_size,
    )
    groups = split(plan, serving=serving)
    tables_maker = request.tables_maker or NumpyTables
    what = _contents(plan, groups, spec, tables_maker)
    layout = measure(what)
    arena = arena_for(device) if arena is None else arena
    flat = arena.upload(layout.num_words, lambda host: fill(layout, what, host))
    tensors = views(flat, layout)
    if groups.prefill is None:
        tensors |= empty_prefill(tensors["cu_seqlens"], spec)
    tensors |= given
    fields: dict[str, Any] = {name: tensors.get(name) for name in _TENSOR_FIELDS}
    return cls(
        backend=backend,
        device=flat.device,  # "cuda" has become the device it means
        plan=plan,
        spec=spec,
        serving=serving,
        prefill=SequenceGroup.of("prefill", groups.prefill, tensors),
        decode=SequenceGroup.of("decode", groups.decode, tensors),
        speculative=SequenceGroup.of("speculative", groups.speculative, tensors),
        chunks={size: ChunkTable.of(size, tensors) for size in spec.table_sizes},
        num_conv_tiles=0 if what.tables is None else what.tables.num_tiles,
        _flat=flat,
        _layout=layout,
        _arena=arena,
        _capacity=plan,
        _tables_maker=tables_maker,
        **fields,
    )


def _contents(
    plan: BatchPlan, groups: Groups, spec: MetaSpec, tables_maker: TablesMaker
) -> Contents:
    return contents(
        plan,
        groups,
        block_sizes=spec.table_sizes,
        conv_block_size=spec.conv_block_size,
        tables_maker=tables_maker,
    )
