"""Block sizes of the XPU backend, and its metadata: the core's, and what Intel's operator takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gdn_dispatch.meta import ChunkMeta, MetaSpec, build

if TYPE_CHECKING:
    from gdn_dispatch.plan.batch import BatchPlan
    from gdn_dispatch.types import MetaRequest
    from gdn_dispatch_xpu.providers.op_step import OpStep

__all__ = [
    "BLOCK_SIZES",
    "BLOCK_SIZE_MULTIPLE",
    "CHUNK_SIZE",
    "CONV_BLOCK_SIZE",
    "XpuChunkMeta",
    "build_chunk_meta",
]

CHUNK_SIZE: Final = 64
"""Tokens per chunk of the chunk rule: that of the chunk kernels in vllm-xpu-kernels."""

BLOCK_SIZES: Final[tuple[int, ...]] = ()
"""No further block sizes: the whole-layer operator takes lengths and cuts chunks itself."""

CONV_BLOCK_SIZE: Final = 0
"""No convolution tiles, for the same reason."""

BLOCK_SIZE_MULTIPLE: Final = 64
"""Tokens an attention block of a serving engine is a multiple of.

vLLM rounds the block of a model with Gated DeltaNet layers up to 64 on this platform: with 528, the
size that other platforms get for Qwen3.5, the layer's output was wrong (vLLM #37467).
"""


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class XpuChunkMeta(ChunkMeta):
    """``ChunkMeta``, and the step as Intel's operator takes it.

    Attributes:
        op_step: Index tensors of the exact lengths the operator asks for, made once a step and
            shared by all its layers; None where the operator cannot be asked: without slots, or
            with ``backend="xpu/triton"``. Made from the slots as they were: where an engine writes
            others into its own tensors, metadata has to be built, or updated, again.
    """

    op_step: OpStep | None = None

    def prepare(self) -> None:
        """Make ``op_step`` for the step the metadata now describes."""
        from gdn_dispatch_xpu.providers.step_builder import op_step

        self.op_step = op_step(self, self._arena)

    def update_(self, plan: BatchPlan) -> None:
        """See ``ChunkMeta.update_``."""
        # not super(): a slotted dataclass is made anew by its decorator
        ChunkMeta.update_(self, plan)
        if self.op_step is not None:
            self.prepare()


def build_chunk_meta(request: MetaRequest) -> XpuChunkMeta:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch_xpu.providers.schema import unavailable

    meta = build(request, MetaSpec(CHUNK_SIZE), backend="xpu", cls=XpuChunkMeta)
    if meta.serving and request.provider != "triton" and not unavailable():
        meta.prepare()
    return meta
