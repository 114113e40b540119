"""Block sizes of the CUDA backend: declared in ``backend_info``, worked with by the core."""

from __future__ import annotations

from typing import Final

__all__ = ["BLOCK_SIZES", "BLOCK_SIZE_MULTIPLE", "CHUNK_SIZE", "CONV_BLOCK_SIZE"]

CHUNK_SIZE: Final = 64
"""Tokens per chunk of the chunk rule: the size of FLA's and FlashInfer's kernels."""

BLOCK_SIZES: Final[tuple[int, ...]] = ()
"""No further block sizes: every kernel of a chunk reads the table of ``CHUNK_SIZE``."""

CONV_BLOCK_SIZE: Final = 0
"""No convolution tiles, until a kernel reads them."""

BLOCK_SIZE_MULTIPLE: Final = 16
"""Tokens an attention block of a serving engine is a multiple of.

In vLLM, FlashAttention and the Triton attention take multiples of 16; FlashInfer takes 16, 32 or
64, and its GDN prefill puts checkpoints on multiples of 64, which is ``CHUNK_SIZE``.
"""
