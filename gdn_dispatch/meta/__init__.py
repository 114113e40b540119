"""The metadata all layers of a step share."""

from gdn_dispatch.meta.chunk_meta import ChunkMeta, build
from gdn_dispatch.meta.parts import ChunkTable, MetaSpec, SequenceGroup

__all__ = ["ChunkMeta", "ChunkTable", "MetaSpec", "SequenceGroup", "build"]
