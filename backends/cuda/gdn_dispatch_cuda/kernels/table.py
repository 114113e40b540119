"""Which configuration a launch of the portable kernels gets on an NVIDIA GPU.

Configurations are numbers chosen by measuring, not by a search at run time: the first prefill of a
server compiles what ``warmup`` would, and nothing else, ever. Those for bf16 activations and
K = V = 128 were measured on an H200 (sm_90; ``benchmarks/results``). What other dtypes, sizes and
architectures get compiles, and was not tuned; nothing has run on another architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Final

import torch

from gdn_dispatch.triton_kernels.conv import ConvConfig
from gdn_dispatch.triton_kernels.prefill import PrefillConfig
from gdn_dispatch.triton_kernels.segments import SegmentConfig
from gdn_dispatch.triton_kernels.specialized_config import SpecializedConfig
from gdn_dispatch.triton_kernels.steps import StepConfig

if TYPE_CHECKING:
    from gdn_dispatch.triton_kernels.config import LaunchShape

__all__ = ["CudaTable"]

_ANY: Final = 1 << 62

_TENSOR_MEMORY_ACCESS: Final = frozenset({90, 100, 103})
"""Architectures with a copy engine and 227 KB of shared memory per block; others have 163 or 99."""

# Nothing spills in benchmarks/results/triton_resources.json, which a test holds to that. Products
# decide: tensor cores before Hopper want both operands in registers, and those of fp32 in three
# products are wanted there everywhere, twice. So the preparation takes some columns of q and k at a
# time, and the recurrence in fp32 gives each warp its own part of K. That has a price where it was
# measured: 2.3 ms on an H200 for 16/32 heads and 4096 tokens, where 82 words spilled take 0.74
# (block_v=32, parts=1); two stages take a third off fp16, but spill 8 bytes in some layers. What is
# left: in fp32, heads of 256 spill 72 to 88 bytes a thread, and those of 96 spill 8 on sm_90.
_LARGE_HEADS: Final = PrefillConfig(
    block_v=32, num_warps=8, num_stages=1, use_descriptors=False, prepare_columns=64,
    inverse_precision="fp16",
)  # fmt: skip
_PLAIN_FP16: Final = PrefillConfig(
    block_v=32, num_warps=8, num_stages=1, precision="tf32", inverse_precision="tf32x3"
)
_PLAIN_FP32: Final = PrefillConfig(
    block_v=16, num_warps=8, num_stages=1, use_descriptors=False, prepare_columns=16, parts=8,
    inverse_precision="tf32x3",
)  # fmt: skip
_BEFORE_HOPPER: Final = PrefillConfig(
    block_v=64, num_warps=8, num_stages=2, use_descriptors=False, prepare_columns=64,
    inverse_precision="bf16x3",
)  # fmt: skip
_HOPPER: Final = PrefillConfig(block_v=64, num_warps=4, num_stages=3, inverse_precision="fp16")
_HOPPER_WIDE: Final = replace(_HOPPER, block_v=128, num_warps=8, late_reads=True)
_BLACKWELL: Final = replace(_HOPPER, num_warps=8, prepare_columns=32)
_SEGMENTS: Final = SegmentConfig(programs=132, join_precision="tf32")
_HOPPER_CUT: Final = replace(_HOPPER, segments=_SEGMENTS)
_SPECIALIZED_SEGMENTS: Final = replace(_SEGMENTS, price=1.8, fixed_tokens=768)
_SPECIALIZED_CUT: Final = replace(_HOPPER, segments=_SPECIALIZED_SEGMENTS)
# as many as run the pass over segments of 24 heads all at once
_SPECIALIZED_WIDE_CUT: Final = replace(
    _HOPPER, segments=replace(_SPECIALIZED_SEGMENTS, programs=99)
)
_HOPPER_WIDE_CUT: Final = replace(_HOPPER_WIDE, segments=_SEGMENTS)

# (most rows * HV, config), ascending. The last part of a config is for states with values last.
_Steps = tuple[tuple[int, StepConfig], ...]

_DECODE_FP32: Final[_Steps] = (
    (32, StepConfig(8, 1, 8, StepConfig(16, 1))),
    (128, StepConfig(8, 2, 16, StepConfig(16, 1))),
    (_ANY, StepConfig(8, 2, 16, StepConfig(64, 4))),
)
_DECODE_HALF: Final[_Steps] = (
    (64, StepConfig(8, 2, 16, StepConfig(32, 2))),
    (128, StepConfig(8, 1, 8, StepConfig(32, 2))),
    (_ANY, StepConfig(8, 1, 16, StepConfig(64, 4))),
)
_DRAFTS_FP32: Final[_Steps] = (
    (1024, StepConfig(8, 1, 8, StepConfig(16, 1))),
    (_ANY, StepConfig(16, 2, 16, StepConfig(32, 4))),
)
_DRAFTS_HALF: Final[_Steps] = (
    (64, StepConfig(8, 1, 8, StepConfig(32, 2))),
    (_ANY, StepConfig(16, 1, 8, StepConfig(32, 2))),
)
_INVARIANT_FP32: Final[_Steps] = ((_ANY, StepConfig(8, 2, 16, StepConfig(16, 1))),)
_INVARIANT_HALF: Final[_Steps] = ((_ANY, StepConfig(16, 2, 16, StepConfig(32, 2))),)


@dataclass(frozen=True, slots=True)
class CudaTable:
    """``LaunchTable`` of NVIDIA GPUs.

    Attributes:
        arch: Compute capability, 10 * major + minor.
        invariant: Never let the size of the batch decide: no segments, and one configuration for
            every number of rows, so that a row's bits do not depend on the rows beside it.
        gluon: Whether Triton's Gluon may be used (``gluon_is_there``).
    """

    arch: int = 90
    invariant: bool = False
    gluon: bool = False

    def conv_prefill(self, shape: LaunchShape) -> ConvConfig:
        """See ``LaunchTable``."""
        return ConvConfig(block_channels=256, num_warps=4, block_tokens=16)

    def conv_update(self, shape: LaunchShape) -> ConvConfig:
        """See ``LaunchTable``."""
        if not shape.channels_last:
            return ConvConfig(block_channels=128, num_warps=2)
        if shape.rows <= 8:
            return ConvConfig(block_channels=128, num_warps=1)
        # drafts of so many channels a thread spill on sm_80
        return ConvConfig(block_channels=256, num_warps=2 if self.arch < 90 else 1)

    def prefill(self, shape: LaunchShape) -> PrefillConfig:
        """See ``LaunchTable``."""
        large = max(shape.head_dim_k, shape.head_dim_v) > 128
        # operands of fp32, twice the shared memory; products in three parts where the inputs are
        # fp32 too, so that nothing of them is lost
        if shape.dtype == torch.float32:
            return _PLAIN_FP32
        if shape.dtype == torch.float16:
            return self._fp16(large)
        if large:
            return replace(
                _LARGE_HEADS,
                use_descriptors=self.arch in _TENSOR_MEMORY_ACCESS,
                prepare_columns=32 if self.arch in (100, 103) else 64,
            )
        if self.arch not in _TENSOR_MEMORY_ACCESS:
            return _BEFORE_HOPPER
        if self.arch >= 100:
            return _BLACKWELL
        # How many heads run at once, if the longest row sets the time.
        heads = shape.num_v_heads * max(1, shape.tokens // max(1, shape.max_seqlen))
        if self.arch == 90 and self.gluon and shape.head_dim_k == shape.head_dim_v == 128:
            if self.invariant:
                return _specialized(parts=1)
            # one group of warps for each 64 channels until that fills the chip; rows are cut where
            # it leaves half of the chip idle
            if heads <= 33:
                wide = 16 < heads <= 24 and shape.max_seqlen >= 8192
                return _specialized(parts=1, cut_parts=2 if wide else 1)
            return _specialized(parts=1 if heads <= 66 else 2)
        if self.invariant:
            return _HOPPER
        if heads <= 40:
            return _HOPPER_WIDE_CUT if heads > 20 else _HOPPER_CUT
        return _HOPPER_WIDE if heads > 96 else _HOPPER

    def _fp16(self, large: bool) -> PrefillConfig:
        """Operands of fp32, rounded to tf32; ``large``: heads of more than 128."""
        columns = None if self.arch == 90 else 16 if self.arch in _TENSOR_MEMORY_ACCESS else 64
        if large:
            return replace(_PLAIN_FP32, precision="tf32", prepare_columns=columns or 64)
        return replace(_PLAIN_FP16, prepare_columns=columns)

    def steps(self, shape: LaunchShape) -> StepConfig:
        """See ``LaunchTable``."""
        wide = shape.state_dtype == torch.float32
        if self.invariant:
            rows = _INVARIANT_FP32 if wide else _INVARIANT_HALF
        elif shape.speculative:
            rows = _DRAFTS_FP32 if wide else _DRAFTS_HALF
        else:
            rows = _DECODE_FP32 if wide else _DECODE_HALF
        work = shape.rows * shape.num_v_heads
        return next(config for most, config in rows if work <= most)


@cache
def _specialized(*, parts: int, cut_parts: int = 0) -> PrefillConfig:
    """Of heads of 128 on Hopper. Two groups of warps in one program share q, k and scores.

    Args:
        parts: Of rows that are not cut.
        cut_parts: Of those that are; 0: none is.
    """
    if not cut_parts:
        return replace(_HOPPER, specialized=SpecializedConfig(parts=parts))
    config = _SPECIALIZED_CUT if cut_parts == 1 else _SPECIALIZED_WIDE_CUT
    return replace(config, specialized=SpecializedConfig(parts=parts, cut_parts=cut_parts))
