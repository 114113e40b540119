"""Which configuration a launch of the portable kernels gets on an NVIDIA GPU.

Configurations are numbers chosen by measuring, not by a search at run time: the first prefill of a
server compiles what ``warmup`` would, and nothing else, ever. Those for bf16 activations and
K = V = 128 were measured on an H200 (sm_90; ``benchmarks/results``). What other dtypes, sizes and
architectures get compiles, and was not tuned; nothing has run on another architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

from gdn_dispatch.triton_kernels.conv import ConvConfig
from gdn_dispatch.triton_kernels.prefill import PrefillConfig
from gdn_dispatch.triton_kernels.segments import SegmentConfig
from gdn_dispatch.triton_kernels.steps import StepConfig

if TYPE_CHECKING:
    from gdn_dispatch.triton_kernels.config import LaunchShape

__all__ = ["CudaTable"]

_ANY: Final = 1 << 62

_TENSOR_MEMORY_ACCESS: Final = frozenset({90, 100, 103})
"""Architectures with a copy engine and 227 KB of shared memory per block; others have 163 or 99."""

# On sm_90 those for bf16 and K, V <= 128 do not spill, but for 8 bytes in variants of the wide one;
# all others are in benchmarks/results/triton_resources.json.
_PLAIN: Final = PrefillConfig(block_v=32, num_warps=8, num_stages=1, inverse_precision="fp16")
_PLAIN_FP16: Final = replace(_PLAIN, precision="tf32", inverse_precision="tf32x3")
_PLAIN_FP32: Final = replace(_PLAIN, precision="tf32x3", inverse_precision="tf32x3")
_BEFORE_HOPPER: Final = PrefillConfig(
    block_v=64, num_warps=8, num_stages=2, use_descriptors=False,
    inverse_precision="bf16x3",
)  # fmt: skip
_HOPPER: Final = PrefillConfig(block_v=64, num_warps=4, num_stages=3, inverse_precision="fp16")
_HOPPER_WIDE: Final = replace(_HOPPER, block_v=128, num_warps=8)
_BLACKWELL: Final = replace(_HOPPER, num_warps=8)
_SEGMENTS: Final = SegmentConfig(programs=132, join_precision="tf32")
_HOPPER_CUT: Final = replace(_HOPPER, segments=_SEGMENTS)
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
    """

    arch: int = 90
    invariant: bool = False

    def conv_prefill(self, shape: LaunchShape) -> ConvConfig:
        """See ``LaunchTable``."""
        return ConvConfig(block_channels=256, num_warps=4, block_tokens=16)

    def conv_update(self, shape: LaunchShape) -> ConvConfig:
        """See ``LaunchTable``."""
        if not shape.channels_last:
            return ConvConfig(block_channels=128, num_warps=2)
        return ConvConfig(block_channels=128 if shape.rows <= 8 else 256, num_warps=1)

    def prefill(self, shape: LaunchShape) -> PrefillConfig:
        """See ``LaunchTable``."""
        if shape.dtype != torch.bfloat16:
            # operands of fp32, twice the shared memory; products in three parts where the inputs
            # are fp32 too, so that nothing of them is lost
            return _PLAIN_FP16 if shape.dtype == torch.float16 else _PLAIN_FP32
        if max(shape.head_dim_k, shape.head_dim_v) > 128:
            return _PLAIN
        if self.arch not in _TENSOR_MEMORY_ACCESS:
            return _BEFORE_HOPPER
        if self.arch >= 100:
            return _BLACKWELL
        # How many heads run at once, if the longest row sets the time.
        heads = shape.num_v_heads * max(1, shape.tokens // max(1, shape.max_seqlen))
        if self.invariant:
            return _HOPPER
        if heads <= 40:
            return _HOPPER_WIDE_CUT if heads > 20 else _HOPPER_CUT
        return _HOPPER_WIDE if heads > 96 else _HOPPER

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
