"""The hooks of the XPU backend: what it is, whether it can run here, and what runs a call.

``backend="xpu/sycl"`` is Intel's whole-layer operator and ``xpu/triton`` kernels of this project.
``xpu`` alone takes the operator for every call it can run rightly, and Triton for the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdn_dispatch import Available, BackendInfo, GDNOutput, Unavailable, hookimpl
from gdn_dispatch_xpu import meta
from gdn_dispatch_xpu.capability import CAPABILITY
from gdn_dispatch_xpu.providers import provider_infos

if TYPE_CHECKING:
    from gdn_dispatch.types import GDNRequest, MetaRequest, RuleRequest

__all__ = ["backend_info", "build_chunk_meta", "gated_delta_rule", "gdn_attention", "probe"]


@hookimpl
def backend_info() -> BackendInfo:
    """See ``gdn_dispatch.hookspecs``."""
    return BackendInfo(
        name="xpu",
        device_types=("xpu",),
        capability=CAPABILITY,
        priority=50,
        hook_api=1,  # a number, not the installed core's: this is what the hooks were written for
        chunk_size=meta.CHUNK_SIZE,
        block_sizes=meta.BLOCK_SIZES,
        conv_block_size=meta.CONV_BLOCK_SIZE,
        block_size_multiple=meta.BLOCK_SIZE_MULTIPLE,
        summary="Intel GPUs: the operator of vllm-xpu-kernels, and Triton kernels of this project",
        providers=provider_infos(),
    )


@hookimpl
def probe() -> Available | Unavailable:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch_xpu.probe import probe_machine

    return probe_machine()


@hookimpl
def build_chunk_meta(request: MetaRequest) -> meta.XpuChunkMeta:
    """See ``gdn_dispatch.hookspecs``."""
    return meta.build_chunk_meta(request)


@hookimpl
def gdn_attention(request: GDNRequest) -> GDNOutput:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch_xpu.kernels.calls import gdn_attention

    return gdn_attention(request)


@hookimpl
def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch_xpu.kernels.calls import gated_delta_rule

    return gated_delta_rule(request)
