"""Block sizes of the Ascend backend: declared in ``backend_info``, worked with by the core.

The numbers are those of vllm-ascend's metadata builder for Gated DeltaNet.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BLOCK_SIZES", "BLOCK_SIZE_MULTIPLE", "CHUNK_SIZE", "CONV_BLOCK_SIZE"]

CHUNK_SIZE: Final = 64
"""Tokens per chunk of the chunk rule: ``_GDN_CHUNK_SIZE`` of vllm-ascend."""

BLOCK_SIZES: Final[tuple[int, ...]] = (608 * 2,)
"""Block sizes that get a table besides ``CHUNK_SIZE``.

1216 tokens is the block of the triangular solve (``LARGE_BLOCK_T`` of ``solve_tril``). The
cumulative sum of the gates takes a third size, which depends on this rank's HV value heads and so
is no fixed number: ``next_power_of_2(max(1, 2**18 // (HV * 64)))``, such as 512 for HV = 8 and 128
for HV = 32.
"""

CONV_BLOCK_SIZE: Final = 0
"""No convolution tiles: the convolution is one operator for the whole step."""

BLOCK_SIZE_MULTIPLE: Final = 128
"""Tokens an attention block of a serving engine is a multiple of: that of Ascend's attention."""
