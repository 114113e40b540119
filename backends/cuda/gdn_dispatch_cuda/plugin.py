"""The hooks of the CUDA backend: what it is, whether it can run here, and what runs a call.

``backend="cuda/PROVIDER"`` is one library and no other. ``cuda`` alone takes kernels of this
project for a layer, and for the chunk rule whatever was measured to be fastest at the call's shape
among the libraries that are installed (``providers.choice``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdn_dispatch import Available, BackendInfo, GDNOutput, Unavailable, hookimpl
from gdn_dispatch_cuda import meta
from gdn_dispatch_cuda.capability import CAPABILITY
from gdn_dispatch_cuda.providers import provider_infos

if TYPE_CHECKING:
    from gdn_dispatch.types import GDNRequest, RuleRequest

__all__ = ["backend_info", "gated_delta_rule", "gdn_attention", "probe"]


@hookimpl
def backend_info() -> BackendInfo:
    """See ``gdn_dispatch.hookspecs``."""
    return BackendInfo(
        name="cuda",
        device_types=("cuda",),
        capability=CAPABILITY,
        priority=50,
        hook_api=1,  # a number, not the installed core's: this is what the hooks were written for
        chunk_size=meta.CHUNK_SIZE,
        block_sizes=meta.BLOCK_SIZES,
        conv_block_size=meta.CONV_BLOCK_SIZE,
        block_size_multiple=meta.BLOCK_SIZE_MULTIPLE,
        summary="NVIDIA GPUs: Triton kernels of this project, and the fastest libraries installed",
        providers=provider_infos(),
    )


@hookimpl
def probe() -> Available | Unavailable:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch_cuda.probe import probe_machine

    return probe_machine()


@hookimpl
def gdn_attention(request: GDNRequest) -> GDNOutput:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch_cuda.kernels.calls import gdn_attention

    return gdn_attention(request)


@hookimpl
def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch_cuda.kernels.calls import gated_delta_rule

    return gated_delta_rule(request)
