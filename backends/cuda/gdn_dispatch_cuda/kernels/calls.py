"""Which kernels run a validated call: those of this project, or a library's."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from gdn_dispatch.triton_kernels import attention, rule
from gdn_dispatch.triton_kernels.specialized_config import gluon_is_there
from gdn_dispatch_cuda.kernels.table import CudaTable
from gdn_dispatch_cuda.providers import choose_provider, run
from gdn_dispatch_cuda.providers.library import compute_capability

if TYPE_CHECKING:
    from gdn_dispatch.types import GDNOutput, GDNRequest, RuleRequest

__all__ = ["gated_delta_rule", "gdn_attention"]

_OWN = ("triton", "triton_invariant")


def gdn_attention(request: GDNRequest) -> GDNOutput:
    """A layer: always kernels of this project, since no library works on an engine's pools."""
    with torch.no_grad():
        return attention.gdn_attention(request, _table(request.out.device, request.provider))


def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """The recurrence: the provider asked for, or the one measured to be fastest at this shape."""
    provider = choose_provider(request).provider if request.provider is None else request.provider
    if provider not in _OWN:
        return run(provider, request)
    with torch.no_grad():
        return rule.gated_delta_rule(request, _table(request.v.device, provider))


@lru_cache(maxsize=64)
def _table(device: torch.device, provider: str | None) -> CudaTable:
    major, minor = compute_capability(device)
    return CudaTable(
        arch=10 * major + minor,
        invariant=provider == "triton_invariant",
        gluon=gluon_is_there(),
    )
