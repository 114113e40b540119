"""Which configuration a launch of the portable kernels gets on an NVIDIA GPU.

Configurations are numbers chosen by measuring, not by a search at run time: the first prefill of a
server compiles what ``warmup`` would, and nothing else, ever. All of them were measured on an H200
(sm_90; ``benchmarks/results``); other architectures get the same numbers, which compile there
without spills but were not measured there.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    (_ANY, StepConfig(16, 2, 16, StepConfig(64, 4))),
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
        segments = None if self.invariant else SegmentConfig()
        if shape.dtype != torch.bfloat16:
            # fp32 operands take twice the shared memory
            return PrefillConfig(block_v=32, num_stages=1, segments=segments)
        return PrefillConfig(segments=segments)

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
