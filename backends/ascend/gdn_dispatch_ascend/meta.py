"""Metadata of a step for the Ascend backend: the core's, with one table more and Ascend's names.

The host mode: everything the plan determines is prebuilt into one pinned buffer and goes to the
device in one asynchronous copy (``gdn_dispatch.staging``); what an engine holds on the device
already is used from there. What follows from both there (``metadata.arguments``) is computed by a
few tensor operations when the metadata is built, never later. ``metadata.device_tables`` is the
other mode.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gdn_dispatch.meta import ChunkMeta, MetaSpec, build
from gdn_dispatch_ascend.metadata.arguments import GroupArguments
from gdn_dispatch_ascend.metadata.host_arguments import ConvHostArguments, RuleHostArguments
from gdn_dispatch_ascend.metadata.tables import (
    CHUNK_SIZE,
    LARGE_BLOCK_SIZE,
    AscendTables,
    cumsum_block_size,
    named_tables,
)

if TYPE_CHECKING:
    from gdn_dispatch.plan.batch import BatchPlan
    from gdn_dispatch.staging import PinnedArena
    from gdn_dispatch.types import MetaRequest

__all__ = [
    "BLOCK_SIZES",
    "BLOCK_SIZE_MULTIPLE",
    "CHUNK_SIZE",
    "CONV_BLOCK_SIZE",
    "AscendChunkMeta",
    "build_chunk_meta",
    "spec_for",
]

BLOCK_SIZES: Final[tuple[int, ...]] = (LARGE_BLOCK_SIZE,)
"""Block sizes that get a table besides ``CHUNK_SIZE``, whatever the model.

A third follows from this rank's value heads, ``cumsum_block_size``; ``build_chunk_meta`` adds it.
"""

CONV_BLOCK_SIZE: Final = 0
"""No convolution tiles: the convolution is one operator for the whole step."""

BLOCK_SIZE_MULTIPLE: Final = 128
"""Tokens an attention block of a serving engine is a multiple of: that of Ascend's attention."""


def spec_for(num_v_heads: int | None) -> MetaSpec:
    """Block sizes of a rank with so many value heads; None: without that of the cumulative sum."""
    sizes = BLOCK_SIZES
    if num_v_heads is not None:
        sizes += (cumsum_block_size(num_v_heads),)
    return MetaSpec(CHUNK_SIZE, sizes, CONV_BLOCK_SIZE)


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class AscendChunkMeta(ChunkMeta):
    """``ChunkMeta`` with what Ascend's operators take, by the names they know it under.

    Attributes:
        num_v_heads: HV it was built for, or None: ``tables`` is then refused.
        arguments: Of the operators, for every kind of rows the step has.
    """

    num_v_heads: int | None = None
    arguments: dict[str, GroupArguments] = field(default_factory=dict)

    @property
    def tables(self) -> AscendTables:
        """The six tables, ``cu_seqlens_kern`` and ``keep_meta``: views, over the prefill group.

        Raises:
            MetadataError: The step has no prefill rows, or ``num_v_heads`` was not given.
        """
        prefill = self.arguments.get("prefill")
        return named_tables(self, self.num_v_heads, None if prefill is None else prefill.keep_meta)

    @property
    def rule_host_arguments(self) -> RuleHostArguments:
        """Of the chunk rule's host-argument operators, as tuples; no device read.

        Raises:
            MetadataError: The step has no prefill rows.
        """
        return RuleHostArguments.of(self)

    def conv_host_arguments(self, kind: str) -> ConvHostArguments:
        """Of a convolution over the rows of one kind, as tuples; no device read.

        Args:
            kind: ``prefill``, ``decode`` or ``speculative``.

        Raises:
            MetadataError: There are no such rows, or a field is known to the device alone.
        """
        return ConvHostArguments.of(self, kind)

    def update_(self, plan: BatchPlan) -> None:
        """See ``ChunkMeta.update_``; ``arguments`` are written anew, in place."""
        # not super(): a slotted dataclass is another class than the one this method was written in
        ChunkMeta.update_(self, plan)
        for arguments in self.arguments.values():
            arguments.refresh(self)


def build_chunk_meta(
    request: MetaRequest, *, backend: str = "ascend", arena: PinnedArena | None = None
) -> AscendChunkMeta:
    """The ``build_chunk_meta`` hook: see ``gdn_dispatch.hookspecs``.

    Args:
        request: The step.
        backend: Name of the backend the metadata is for.
        arena: Where the host buffer comes from; None for the process-wide one of the device.

    Raises:
        InvalidPlanError: See ``gdn_dispatch.meta.build``.
    """
    spec = spec_for(request.num_v_heads)
    meta = build(request, spec, backend=backend, cls=AscendChunkMeta, arena=arena)
    meta.num_v_heads = request.num_v_heads
    for kind in ("prefill", "decode", "speculative"):
        if getattr(meta, kind) is not None:
            meta.arguments[kind] = GroupArguments.of(meta, kind)
    return meta
