"""The harness refuses what triton-ascend refuses: else a green run would say nothing."""

from __future__ import annotations

import lowering
import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def interleaved_kernel(out, n, BLOCK: tl.constexpr):
    r = tl.arange(0, BLOCK)
    tl.store(out + 2 * r, r, mask=r < n)
    tl.store(out + 2 * r + 1, r, mask=r < n)


@triton.jit
def tf32_kernel(x, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tile = tl.load(x + at)
    tl.store(out + at, tl.dot(tile, tile, input_precision="tf32"))


def launched(kernel, *tensors, **constants):
    with lowering.recorded() as made:
        kernel[(3,)](*tensors, **constants)
    (launch,) = made
    return launch


def test_a_pair_of_interleaved_stores_does_not_lower():
    launch = launched(interleaved_kernel, torch.zeros(64, dtype=torch.int32), 5, BLOCK=16)
    with pytest.raises(lowering.NotLowered):
        lowering.lower(launch)


def test_tf32_does_not_lower():
    launch = launched(tf32_kernel, *torch.zeros(2, 16, 16), N=16)
    with pytest.raises(lowering.NotLowered, match="tf32"):
        lowering.lower(launch)


def test_a_launch_is_recorded_with_its_grid_and_not_made():
    out = torch.zeros(64, dtype=torch.int32)
    launch = launched(interleaved_kernel, out, 5, BLOCK=16)
    assert (launch.kernel, launch.grid) == ("interleaved_kernel", (3,))
    assert launch.variant() == "BLOCK=16 out=i32"
    assert not out.any()
