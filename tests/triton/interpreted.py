"""A backend made of the portable kernels and nothing else, for CPU tensors and the interpreter.

It declares what the packages of devices declare, so that the conformance kit holds the kernels to
it without a device.
"""

from __future__ import annotations

import torch

from gdn_dispatch import Available, BackendInfo, hookimpl
from gdn_dispatch.capability import Capability, Feature
from gdn_dispatch.triton_kernels import attention, rule
from gdn_dispatch.triton_kernels.conv import ConvConfig
from gdn_dispatch.triton_kernels.prefill import PrefillConfig
from gdn_dispatch.triton_kernels.rule_tensors import CHUNK
from gdn_dispatch.triton_kernels.segments import SegmentConfig
from gdn_dispatch.triton_kernels.steps import StepConfig

NAME = "interpreted"

CAPABILITY = Capability(
    features=frozenset(Feature) - {Feature.AUTOGRAD},
    dtypes=("float32", "float16"),  # bf16 products are garbage in the interpreter
    state_dtypes=("float32", "bfloat16", "float16"),
    max_head_dim=256,
    max_conv_width=8,
)


class Table:
    """Small blocks, so that small cases have several."""

    def __init__(self, segments: SegmentConfig | None = None) -> None:
        self._segments = segments

    def conv_prefill(self, shape):
        return ConvConfig(block_channels=64, num_warps=4, block_tokens=16)

    def conv_update(self, shape):
        return ConvConfig(block_channels=64, num_warps=4)

    def prefill(self, shape):
        return PrefillConfig(
            block_v=32, precision="ieee", inverse_precision="ieee", segments=self._segments
        )

    def steps(self, shape):
        return StepConfig(block_values=16, num_warps=1)


TABLE = Table()


@hookimpl
def backend_info():
    return BackendInfo(
        name=NAME,
        device_types=("cpu",),
        capability=CAPABILITY,
        priority=1,
        chunk_size=CHUNK,
        summary="the portable Triton kernels in Triton's interpreter",
    )


@hookimpl
def probe():
    return Available("Triton's interpreter")


@hookimpl
def gdn_attention(request):
    with torch.no_grad():
        return attention.gdn_attention(request, TABLE)


@hookimpl
def gated_delta_rule(request):
    with torch.no_grad():
        return rule.gated_delta_rule(request, TABLE)
