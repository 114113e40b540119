"""Kernels this backend can use: Intel's whole-layer operator, and Triton kernels of this project.

The adapter to the operator is ``sycl``: it converts what has to be converted, says so in its
docstring, and refuses what the operator would silently get wrong (``checks``).
"""

from __future__ import annotations

from typing import Final

from gdn_dispatch.types import ProviderInfo
from gdn_dispatch_xpu.capability import SYCL, TRITON
from gdn_dispatch_xpu.providers.schema import not_installed
from gdn_dispatch_xpu.providers.triton import unavailable

__all__ = ["OPERATOR", "OWN", "provider_infos"]

OPERATOR: Final = "sycl"
OWN: Final = "triton"


def provider_infos() -> tuple[ProviderInfo, ...]:
    """What ``backend_info`` says. Looks at installed distributions and imports none of them."""
    return (
        ProviderInfo(OPERATOR, SYCL, not_installed()),
        ProviderInfo(OWN, TRITON, unavailable()),
    )
