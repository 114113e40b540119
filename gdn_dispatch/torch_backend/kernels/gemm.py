"""Which library multiplies fp32 matrices on this CPU.

torch sends batched fp32 products to MKL, which is not at its best on CPUs that are not Intel's.
oneDNN's own fp32 kernel was a tenth faster for our largest product on the one CPU measured here,
and torch routes to it when the matmul precision is set to ``bf16``: a *permission* to lower
precision, which oneDNN can only use where the CPU has matrix tiles (AMX). The permission is
therefore given only on a CPU without tiles, only after a product under it was seen to keep fp32
accuracy, and only around our own products of dense matrices: for a transposed or strided one torch
makes a copy first, which costs more.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch

__all__ = ["fast_fp32_products"]

_FP32_RELATIVE_ERROR = 1e-6
"""A 128-term fp32 product errs by 2e-7, a bf16 one by 2e-3: anything between tells them apart."""


_settings: Any = getattr(torch.backends.mkldnn, "matmul", None)
"""Where the setting lives; None in a torch that does not have it."""


class _Permission:
    """The process-wide setting, held by any number of threads: the last to leave restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._before = ""

    def __enter__(self) -> None:
        with self._lock:
            if self._holders == 0:
                self._before = _settings.fp32_precision
                _settings.fp32_precision = "bf16"
            self._holders += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                _settings.fp32_precision = self._before


_permission = _Permission()


def fast_fp32_products(device_type: str) -> AbstractContextManager[None]:
    """Let torch use oneDNN's fp32 kernels for the products inside; restores the setting.

    What is returned may be entered any number of times, one after another.
    """
    if device_type != "cpu" or not _permission_is_harmless():
        return nullcontext()
    return _permission


@cache
def _permission_is_harmless() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if _settings is None or torch.cpu._is_amx_tile_supported():
        return False
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 64, 128, generator=generator)
    b = torch.randn(4, 128, 256, generator=generator)
    exact = a.double() @ b.double()
    with _permission:
        product = torch.bmm(a, b)
    return bool((product - exact).norm() <= _FP32_RELATIVE_ERROR * exact.norm())
