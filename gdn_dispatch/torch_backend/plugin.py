"""The hooks of the torch backend.

Its modules are imported by the first call that needs them, as a vendor package imports its SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gdn_dispatch.hookspecs import hookimpl
from gdn_dispatch.torch_backend.capability import CAPABILITY, CHUNK
from gdn_dispatch.torch_backend.probe import probe_machine
from gdn_dispatch.types import (
    Available,
    BackendInfo,
    GDNOutput,
    GDNRequest,
    MetaRequest,
    RuleRequest,
)

if TYPE_CHECKING:
    from gdn_dispatch.torch_backend.meta import TorchChunkMeta

__all__ = ["backend_info", "build_chunk_meta", "gated_delta_rule", "gdn_attention", "probe"]

_NAME = "torch"


@hookimpl
def backend_info() -> BackendInfo:
    """See ``gdn_dispatch.hookspecs``."""
    return BackendInfo(
        name=_NAME,
        device_types=("cpu",),
        capability=CAPABILITY,
        priority=0,
        any_device_on_request=True,
        chunk_size=CHUNK,
        summary="pure torch; the reference, and the default on a CPU",
        version=str(torch.__version__),
    )


@hookimpl
def probe() -> Available:
    """See ``gdn_dispatch.hookspecs``."""
    return probe_machine()


@hookimpl
def build_chunk_meta(request: MetaRequest) -> TorchChunkMeta:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch.torch_backend import meta

    return meta.build_chunk_meta(request, backend=_NAME)


@hookimpl
def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch.torch_backend import rule

    device = request.q.device.type
    if not torch.is_autocast_enabled(device):
        return rule.gated_delta_rule(request)
    with torch.autocast(device, enabled=False):  # fp32 inside is part of the contract
        return rule.gated_delta_rule(request)


@hookimpl
def gdn_attention(request: GDNRequest) -> GDNOutput:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch.torch_backend import layer

    with torch.no_grad(), torch.autocast(request.out.device.type, enabled=False):
        return layer.gdn_attention(request)
