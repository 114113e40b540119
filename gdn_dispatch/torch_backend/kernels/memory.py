"""Memory for large results.

torch's allocator on a CPU asks the system for fresh pages for every large tensor and gives them
back with it; touching them for the first time then costs more than filling them: 0.5 ms for a
2 MiB state, where the step that fills it takes 0.2, and a tenth of a prefill. numpy's memory comes
from the process's heap, which keeps what was freed, and in huge pages from 4 MiB on; but from
32 MiB on the heap gives it back to the system too, so blocks of that size are kept here: a few,
for the next layer's result.
"""

from __future__ import annotations

import math
import weakref
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["empty_output", "empty_result"]

_LARGE: Final = 1 << 20
_ALIGNMENT: Final = 64
_KEPT_FROM: Final = 32 << 20
"""Bytes of the smallest block that is kept: glibc returns those to the system when freed."""
_MOST_KEPT: Final = 256 << 20
"""Bytes of all blocks that wait for another use."""

_Block = npt.NDArray[np.uint8]
_kept: list[_Block] = []


def empty_result(
    shape: tuple[int, ...] | torch.Size, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """``torch.empty``, contiguous and aligned like it, but cheap to touch where it is large."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE or device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    memory = torch.from_numpy(_block(size + _ALIGNMENT))
    start = -memory.data_ptr() % _ALIGNMENT
    return memory[start : start + size].view(dtype).view(shape)


def _block(size: int) -> _Block:
    """At least ``size`` bytes; from 32 MiB on, a view whose end frees the block for another use."""
    if size < _KEPT_FROM:
        return np.empty(size, np.uint8)
    # A loop that pops and puts back, not one that looks: other threads take blocks, too.
    block = None
    for _ in range(len(_kept)):
        try:
            candidate = _kept.pop(0)
        except IndexError:
            break
        if size <= candidate.size <= size + size // 4:
            block = candidate
            break
        _kept.append(candidate)
    if block is None:
        block = np.empty(size, np.uint8)
    view = block[:]
    weakref.finalize(view, _keep, block).atexit = False
    return view


def _keep(block: _Block) -> None:
    _kept.append(block)
    while sum(kept.size for kept in list(_kept)) > _MOST_KEPT:
        try:
            _kept.pop(0)
        except IndexError:
            return


def empty_output(v: torch.Tensor) -> torch.Tensor:
    """``empty_result`` of the shape and dtype of ``v``; half the time of a call for a small one."""
    if v.nbytes < _LARGE:
        return torch.empty_like(v, memory_format=torch.contiguous_format)
    return empty_result(v.shape, v.dtype, v.device)
