"""Which configuration a launch of the portable kernels gets on Intel's Xe2 (B-series, Lunar Lake).

**Not measured.** The numbers follow from the hardware and from Intel's code generator, and have not
run on either:

* A warp is a sub-group of 32 lanes, as on NVIDIA, but a hardware thread has 128 registers of 64
  bytes (8 KB), a quarter of what an NVIDIA warp may have. So programs get more warps: a state tile
  of [128, 32] in fp32 is 16 KB, over 8 warps 2 KB of each one's 8; 64 columns would take half of it
  and leave too little for operands.
* Products of bf16 are systolic; those of fp32 are not, unless they are rounded to tf32, which the
  inverse would not survive. It takes three bf16 products where activations are bf16 (an older code
  generator refuses to compile that). fp16 and fp32 activations have operands of fp32: plain ones.
* Shared local memory is 128 KB for a core: two stages, not three.
* No descriptors: its block loads want memory aligned to 64 bytes, and an engine's rows need not be.
* No segments: what fills such a device is a guess until it is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from gdn_dispatch.triton_kernels.conv import ConvConfig
from gdn_dispatch.triton_kernels.prefill import PrefillConfig
from gdn_dispatch.triton_kernels.steps import StepConfig

if TYPE_CHECKING:
    from gdn_dispatch.triton_kernels.config import LaunchShape

__all__ = ["XpuTable"]

_BF16: Final = PrefillConfig(
    block_v=32, num_warps=8, num_stages=2, use_descriptors=False,
    precision="ieee", inverse_precision="bf16x3",
)  # fmt: skip
_FP32: Final = PrefillConfig(
    block_v=32, num_warps=8, num_stages=1, use_descriptors=False,
    precision="ieee", inverse_precision="ieee",
)  # fmt: skip

_FEW_ROWS: Final = 64
"""Rows times value heads below which a step leaves the device idle in larger programs."""


@dataclass(frozen=True, slots=True)
class XpuTable:
    """``LaunchTable`` of Intel GPUs."""

    def conv_prefill(self, shape: LaunchShape) -> ConvConfig:
        """See ``LaunchTable``."""
        return ConvConfig(block_channels=256, num_warps=8, block_tokens=16)

    def conv_update(self, shape: LaunchShape) -> ConvConfig:
        """See ``LaunchTable``."""
        return ConvConfig(block_channels=128, num_warps=2 if shape.channels_last else 4)

    def prefill(self, shape: LaunchShape) -> PrefillConfig:
        """See ``LaunchTable``."""
        return _BF16 if shape.dtype == torch.bfloat16 else _FP32

    def steps(self, shape: LaunchShape) -> StepConfig:
        """See ``LaunchTable``."""
        few = shape.rows * shape.num_v_heads <= _FEW_ROWS
        return StepConfig(8 if few else 16, 2 if few else 4, 8, StepConfig(32, 4))
