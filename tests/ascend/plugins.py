"""The backend's kernels and capability, on CPU tensors: for the interpreter, and for lowering."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from gdn_dispatch_ascend import meta
from gdn_dispatch_ascend.capability import CAPABILITY
from gdn_dispatch_ascend.kernels import calls
from gdn_dispatch_ascend.kernels.tiling import DEFAULT, Cores, Tiling

from gdn_dispatch import Available, BackendInfo, hookimpl
from gdn_dispatch.config import Config
from gdn_dispatch.plugins.registry import Registry
from gdn_dispatch.selection import dispatch

NAME = "on_cpu"
SMALL = Tiling(prefill_values=16, step_values=16, conv_tokens=16, conv_channels=32,
               conv_row_channels=64, conv_strided_channels=32)  # fmt: skip
"""Small blocks, so that small cases have several."""

FEW = Cores(cube=3, vector=5)
"""So few that each has several tasks, in no even number."""

OF_910B3 = Cores(cube=20, vector=40)


class Plugin:
    """The hooks."""

    def __init__(self, cores, tiling=DEFAULT, **capability):
        self.cores, self.tiling = cores, tiling
        self.capability = replace(CAPABILITY, **capability)

    @hookimpl
    def backend_info(self):
        return BackendInfo(
            name=NAME, device_types=("cpu",), capability=self.capability,
            chunk_size=meta.CHUNK_SIZE, block_sizes=meta.BLOCK_SIZES,
            summary="kernels of the Ascend backend on CPU tensors",
        )  # fmt: skip

    @hookimpl
    def probe(self):
        return Available("no NPU")

    @hookimpl
    def build_chunk_meta(self, request):
        return meta.build_chunk_meta(request, backend=NAME)

    @hookimpl
    def gdn_attention(self, request):
        return calls.gdn_attention(request, self.cores, self.tiling)

    @hookimpl
    def gated_delta_rule(self, request):
        return calls.gated_delta_rule(request, self.cores, self.tiling)


def interpreted(tiling=SMALL):
    """For the interpreter, whose products of bf16 are garbage."""
    return Plugin(FEW, tiling, dtypes=("float32", "float16"))


@contextlib.contextmanager
def registered(plugin):
    """Public calls find this backend and no other."""
    registry, config = dispatch.active_registry(), dispatch.active_config()
    fresh = Registry()
    fresh.register(plugin, NAME)
    dispatch.install(fresh, Config())
    try:
        yield NAME
    finally:
        dispatch.install(registry, config)
