"""Block sizes of the XPU backend: declared in ``backend_info``, worked with by the core."""

from __future__ import annotations

from typing import Final

__all__ = ["BLOCK_SIZES", "BLOCK_SIZE_MULTIPLE", "CHUNK_SIZE", "CONV_BLOCK_SIZE"]

CHUNK_SIZE: Final = 64
"""Tokens per chunk of the chunk rule: that of the chunk kernels in vllm-xpu-kernels."""

BLOCK_SIZES: Final[tuple[int, ...]] = ()
"""No further block sizes: the whole-layer operator takes lengths and cuts chunks itself."""

CONV_BLOCK_SIZE: Final = 0
"""No convolution tiles, for the same reason."""

BLOCK_SIZE_MULTIPLE: Final = 64
"""Tokens an attention block of a serving engine is a multiple of.

vLLM rounds the block of a model with Gated DeltaNet layers up to 64 on this platform: with 528, the
size that other platforms get for Qwen3.5, the layer's output was wrong (vLLM #37467).
"""
