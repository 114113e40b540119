"""Which library multiplies fp32 matrices on this CPU.

torch sends batched fp32 products to MKL, which uses half of the vector width on CPUs that are not
Intel's. oneDNN's own fp32 kernel is up to 2.7 times faster there, and torch routes to it when the
matmul precision is set to ``bf16``: a *permission* to lower precision, which oneDNN can only use
where the CPU has matrix tiles (AMX). The permission is therefore given only on a CPU without tiles,
only after a product under it was seen to keep fp32 accuracy, and only around our own products.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["fast_fp32_products"]

_FP32_RELATIVE_ERROR = 1e-6
"""A 128-term fp32 product errs by 2e-7, a bf16 one by 2e-3: anything between tells them apart."""


@contextmanager
def fast_fp32_products(device_type: str) -> Iterator[None]:
    """Let torch use oneDNN's fp32 kernels for the products inside; restores the setting."""
    if device_type != "cpu" or not _permission_is_harmless():
        yield
        return
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@cache
def _permission_is_harmless() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.backends.mkldnn, "matmul") or torch.cpu._is_amx_tile_supported():
        return False
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 64, 128, generator=generator)
    b = torch.randn(4, 128, 256, generator=generator)
    exact = a.double() @ b.double()
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        product = torch.bmm(a, b)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    return bool((product - exact).norm() <= _FP32_RELATIVE_ERROR * exact.norm())
