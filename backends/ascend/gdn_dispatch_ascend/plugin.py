"""The hooks of the Ascend backend: what it is, whether it can run here, and what runs a call.

A layer and the recurrence alone run on Triton kernels of this package (``kernels``);
``backend="ascend/aclnn"`` asks for CANN's operators for the recurrence, and nothing else does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdn_dispatch import Available, BackendInfo, GDNOutput, Unavailable, hookimpl
from gdn_dispatch_ascend import meta
from gdn_dispatch_ascend.capability import CAPABILITY
from gdn_dispatch_ascend.providers import provider_infos

if TYPE_CHECKING:
    from gdn_dispatch.meta import ChunkMeta
    from gdn_dispatch.types import GDNRequest, MetaRequest, RuleRequest

__all__ = ["backend_info", "build_chunk_meta", "gated_delta_rule", "gdn_attention", "probe"]


@hookimpl
def backend_info() -> BackendInfo:
    """See ``gdn_dispatch.hookspecs``."""
    return BackendInfo(
        name="ascend",
        device_types=("npu",),
        capability=CAPABILITY,
        priority=50,
        hook_api=1,  # a number, not the installed core's: this is what the hooks were written for
        chunk_size=meta.CHUNK_SIZE,
        block_sizes=meta.BLOCK_SIZES,
        conv_block_size=meta.CONV_BLOCK_SIZE,
        block_size_multiple=meta.BLOCK_SIZE_MULTIPLE,
        summary="Ascend NPUs: kernels of this project for triton-ascend, not yet run on an NPU",
        providers=provider_infos(),
    )


@hookimpl
def probe() -> Available | Unavailable:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch_ascend.probe import probe_machine

    return probe_machine()


@hookimpl
def build_chunk_meta(request: MetaRequest) -> ChunkMeta:
    """See ``gdn_dispatch.hookspecs``."""
    return meta.build_chunk_meta(request)


@hookimpl
def gdn_attention(request: GDNRequest) -> GDNOutput:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch_ascend.kernels import calls

    return calls.gdn_attention(request)


@hookimpl
def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """See ``gdn_dispatch.hookspecs``."""
    if request.provider is not None:
        from gdn_dispatch_ascend.providers import run

        return run(request.provider, request)
    from gdn_dispatch_ascend.kernels import calls

    return calls.gated_delta_rule(request)
