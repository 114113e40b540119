"""The hooks of the torch backend."""

from __future__ import annotations

import torch

from gdn_dispatch.hookspecs import hookimpl
from gdn_dispatch.torch_backend.capability import CAPABILITY
from gdn_dispatch.torch_backend.kernels.inverse import CHUNK
from gdn_dispatch.torch_backend.layer import gdn_attention as _gdn_attention
from gdn_dispatch.torch_backend.meta import TorchChunkMeta
from gdn_dispatch.torch_backend.meta import build_chunk_meta as _build_chunk_meta
from gdn_dispatch.torch_backend.probe import probe_machine
from gdn_dispatch.torch_backend.rule import gated_delta_rule as _gated_delta_rule
from gdn_dispatch.types import (
    Available,
    BackendInfo,
    GDNOutput,
    GDNRequest,
    MetaRequest,
    RuleRequest,
)

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
        version=torch.__version__,
    )


@hookimpl
def probe() -> Available:
    """See ``gdn_dispatch.hookspecs``."""
    return probe_machine()


@hookimpl
def build_chunk_meta(request: MetaRequest) -> TorchChunkMeta:
    """See ``gdn_dispatch.hookspecs``."""
    return _build_chunk_meta(request, backend=_NAME)


@hookimpl
def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """See ``gdn_dispatch.hookspecs``."""
    return _gated_delta_rule(request)


@hookimpl
def gdn_attention(request: GDNRequest) -> GDNOutput:
    """See ``gdn_dispatch.hookspecs``."""
    with torch.no_grad():
        return _gdn_attention(request)
