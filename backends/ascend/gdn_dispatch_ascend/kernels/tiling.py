"""Cores of a device, and how a task is cut so that what it holds fits the unified buffer.

Sizes were chosen by BiShengIR's memory planning for Ascend910B3 (``docs/ascend_memory.md``).
Nothing here has been timed: no kernel of this package has run on an NPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

__all__ = ["DEFAULT", "Cores", "Tiling", "cores_of", "grid", "padded"]

_LEAST: Final = 16
"""Elements of the smallest tail: 32 bytes of bf16."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Cores of a device.

    Attributes:
        cube: AI cores, each a cube with two vector cores: for kernels with matrix products.
        vector: Vector cores, for kernels without.
    """

    cube: int
    vector: int


@dataclass(frozen=True, slots=True)
class Tiling:
    """Sizes of what a program holds at a time; powers of two.

    Attributes:
        prefill_values: Values of the state in a task of the chunk rule.
        step_values: Values of the state in a task of the recurrence token by token.
        conv_tokens, conv_channels: Tokens and channels of a tile of the convolution.
        conv_row_channels: Channels of a task that goes token by token.
        conv_strided_channels: The same, for a pool whose channels do not run along memory.
    """

    prefill_values: int = 64
    step_values: int = 32
    conv_tokens: int = 16
    conv_channels: int = 256
    conv_row_channels: int = 512
    conv_strided_channels: int = 128


DEFAULT: Final = Tiling()


def padded(size: int) -> int:
    """The power of two from 16 up that holds ``size`` elements."""
    return max(_LEAST, 1 << (size - 1).bit_length())


def grid(tasks: int, cores: int) -> tuple[int]:
    """A program for every core, and no more than there are tasks."""
    return (max(1, min(tasks, cores)),)


@lru_cache(maxsize=64)
def cores_of(device: torch.device) -> Cores:
    """What triton-ascend's driver says of ``device``; asked once."""
    from triton.runtime import driver

    index = driver.active.get_current_device() if device.index is None else device.index
    found = driver.active.utils.get_device_properties(index)
    return Cores(cube=int(found["num_aicore"]), vector=int(found["num_vectorcore"]))
