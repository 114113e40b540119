"""What the machine itself reaches, for ``native_cpu``: its matrix products, and steady samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import torch

from gdn_dispatch.cli.cases_inputs import HV, H, K, V
from gdn_dispatch.cli.cases_transformers import Timed

GEMM_SIZES = (1024, 2048)
SAMPLES = 5


@contextmanager
def onednn() -> Iterator[None]:
    """fp32 products through oneDNN, which without AMX computes them in fp32.

    MKL, torch's own choice, takes a slower path on AMD: the peak is the faster one's.
    """
    before = torch.backends.mkldnn.matmul.fp32_precision
    if torch.cpu._is_amx_tile_supported():
        yield
        return
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def operations(T: int, C: int) -> tuple[float, float]:
    """Of T tokens, in chunks of C: with the state, and between tokens.

    Products with the state are K S, Q S and K^T X. The others, on and below the diagonal: K K^T
    and Q K^T once a key head, the substitution and P X once a value head.
    """
    with_state = 3 * 2 * C * K * V
    between = C * (C + 1) * (2 * K * H / HV + 2 * V)
    return T / C * HV * with_state, T / C * HV * between


def steady(sample: Callable[[], float]) -> Callable[[], float]:
    """The median of several samples."""
    return lambda: median(sample() for _ in range(SAMPLES))


def rate(timed: Timed, dtype: torch.dtype) -> Callable[[], float]:
    """Seconds an operation of a square matrix product, of the fastest size."""
    samples = []
    for M in GEMM_SIZES:
        x = torch.randn(M, M).to(dtype)
        out = torch.empty_like(x)
        samples.append((2 * M**3, steady(timed(partial(torch.mm, x, x, out=out)))))
    return lambda: min(sample() / count for count, sample in samples)
