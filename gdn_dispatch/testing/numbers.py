"""Relative errors, bits and seeds."""

from __future__ import annotations

import torch


def generator(seed: int) -> torch.Generator:
    """A generator of its own, so that no test depends on another."""
    return torch.Generator().manual_seed(seed)


def relative_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of ``exact``; nan and inf are never small."""
    exact = exact.double()
    difference = (got.double() - exact).norm()
    if difference == 0:
        return 0.0
    return float(difference / exact.norm())


def same_bits(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal bit for bit: NaN equals itself, 0.0 is not -0.0."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    return torch.equal(as_bytes(got), as_bytes(expected))


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    """The memory of ``x``, where NaN equals NaN."""
    return x.contiguous().view(-1).view(torch.uint8)
