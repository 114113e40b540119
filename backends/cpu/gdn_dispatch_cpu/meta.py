"""Block sizes of the CPU backend: declared in ``backend_info``, worked with by the core."""

from __future__ import annotations

from typing import Final

__all__ = ["BLOCK_SIZES", "BLOCK_SIZE_MULTIPLE", "CHUNK_SIZE", "CONV_BLOCK_SIZE"]

CHUNK_SIZE: Final = 64
"""FLA's size, so that checkpoints fall on the same tokens; the kernels take half as many a time."""

BLOCK_SIZES: Final[tuple[int, ...]] = ()
"""No further block sizes: a loop on the host needs no table of its chunks."""

CONV_BLOCK_SIZE: Final = 0
"""No convolution tiles, for the same reason."""

BLOCK_SIZE_MULTIPLE: Final = 1
"""Tokens an attention block of a serving engine is a multiple of: any will do for the recurrence.

The engine's attention asks for its own multiple, which is 32 in vLLM on a CPU.
"""
