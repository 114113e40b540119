"""Which kernels run a validated call: Intel's operator, or those of this project."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gdn_dispatch.errors import UnsupportedRequestError
from gdn_dispatch_xpu.providers import OPERATOR, OWN, sycl
from gdn_dispatch_xpu.providers.triton import unavailable

if TYPE_CHECKING:
    from gdn_dispatch.types import GDNOutput, GDNRequest, RuleRequest

__all__ = ["gated_delta_rule", "gdn_attention"]


def gdn_attention(request: GDNRequest) -> GDNOutput:
    """A layer, by the provider asked for, or the operator where it can run this very call.

    Where states would have to be copied from slot to slot first, Triton kernels are taken instead,
    if there are any: they read and write different slots.

    Raises:
        UnsupportedRequestError: No provider here can run the call; says why not, of each.
    """
    if request.provider == OPERATOR:
        return sycl.gdn_attention(request)
    if request.provider is None:
        reasons = sycl.refusals(request)
        own = unavailable()
        if not reasons and (own or not sycl.moves_states(request)):
            return sycl.run(request)
        if own:
            raise UnsupportedRequestError(
                f"xpu: xpu/{OPERATOR}: {'; '.join(reasons)}; xpu/{OWN}: {own}"
            )
    from gdn_dispatch.triton_kernels import attention
    from gdn_dispatch_xpu.kernels.table import XpuTable

    with torch.no_grad():
        return attention.gdn_attention(request, XpuTable())


def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """The recurrence alone: Triton kernels.

    Raises:
        UnsupportedRequestError: There is no Triton for this device.
    """
    own = unavailable()
    if own and request.provider is None:
        raise UnsupportedRequestError(
            f"xpu: the recurrence alone takes Triton kernels ({own}); xpu/{OPERATOR} has whole "
            "layers: call gdn_attention"
        )
    from gdn_dispatch.triton_kernels import rule
    from gdn_dispatch_xpu.kernels.table import XpuTable

    with torch.no_grad():
        return rule.gated_delta_rule(request, XpuTable())
