"""The device mode: Ascend's tables out of ``cu_seqlens`` on the device, into pooled tensors.

For engines whose lengths live on the device. No size depends on a value there: index tables have
room for as many chunks as the sequences could have together, and nothing is read back. Everything
comes from Triton kernels, or, where Triton is missing, everything from tensor operations; the two
are equal, and equal to the host mode's, element for element.

A pool is allocated once, for the largest step. Its tensors keep their addresses, so that a captured
graph may read them. The next step is written over them, in the order of the stream.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

import torch

from gdn_dispatch.errors import BackendUnavailableError, InvalidArgumentError
from gdn_dispatch_ascend.metadata.tables import (
    CHUNK_SIZE,
    LARGE_BLOCK_SIZE,
    AscendTables,
    cumsum_block_size,
)

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["MODES", "DeviceTablePool", "available_mode"]

MODES: Final = ("triton", "torch")


class DeviceTablePool:
    """Tensors of one device for the tables of any step within its bounds.

    Args:
        max_seqs: Most sequences of a step. max_tokens: Most tokens of a step.
        num_v_heads: HV of this rank.
        device: Where ``cu_seqlens`` will be.
        mode: ``triton`` or ``torch``; None for the first there is.

    Raises:
        InvalidArgumentError: A bound is impossible, or there is no such mode.
        BackendUnavailableError: ``triton`` was asked for and is not installed.
    """

    def __init__(
        self,
        *,
        max_seqs: int,
        max_tokens: int,
        num_v_heads: int,
        device: torch.device | str,
        mode: str | None = None,
    ) -> None:
        for name, value in (("max_seqs", max_seqs), ("max_tokens", max_tokens)):
            if not 0 <= value < 2**31:
                raise InvalidArgumentError(name, f"{value}", "a number that fits int32, at least 0")
        self.max_seqs, self.max_tokens, self.num_v_heads = max_seqs, max_tokens, num_v_heads
        self.mode = available_mode() if mode is None else mode
        if self.mode not in MODES:
            raise InvalidArgumentError("mode", repr(mode), " or ".join(map(repr, MODES)))
        if self.mode == "triton" and not _has_triton():
            raise BackendUnavailableError(
                "mode='triton': Triton is not installed: pip install 'gdn-dispatch[ascend]', or "
                "pass mode='torch'"
            )
        self._sizes = (CHUNK_SIZE, LARGE_BLOCK_SIZE, cumsum_block_size(num_v_heads))
        n = max_seqs

        def empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self._offsets, self._large_offsets, self._cumsum_offsets = (empty(n + 1) for _ in range(3))
        self._updates, self._finals, self._numbers = empty(n + 1), empty(n), empty(n + 1)
        self._keep = empty(n, dtype=torch.bool)
        self._cu_nonempty, self._nonempty = empty(n + 1), empty(n)
        self._indices = tuple(empty(self.capacity(size, n), 2) for size in self._sizes)
        self.device = self._offsets.device

    def capacity(self, block_size: int, num_seqs: int) -> int:
        """The most chunks that many sequences of ``max_tokens`` tokens together can have."""
        lives = min(num_seqs, self.max_tokens)
        return lives + (self.max_tokens - lives) // block_size if lives else 0

    def fill(self, cu_seqlens: torch.Tensor) -> AscendTables:
        """The tables of a step, written into the pool's tensors, and valid until the next call.

        Args:
            cu_seqlens: ``[n+1]`` int32 or int64 on the pool's device, contiguous; starts at 0,
                non-decreasing, at most ``max_tokens``. Nobody checks: that would be a read.

        Raises:
            InvalidArgumentError: ``cu_seqlens`` is not such a tensor, or too long.
        """
        self._check(cu_seqlens)
        n = cu_seqlens.shape[0] - 1
        indices = tuple(
            rows[: self.capacity(size, n)]
            for rows, size in zip(self._indices, self._sizes, strict=True)
        )
        tables = AscendTables(
            num_v_heads=self.num_v_heads,
            cu_seqlens=cu_seqlens,
            nonempty=self._nonempty[:n],
            chunk_indices_chunk64=indices[0],
            chunk_offsets_chunk64=self._offsets[: n + 1],
            update_chunk_offsets_chunk64=self._updates[: n + 1],
            final_chunk_indices_chunk64=self._finals[:n],
            chunk_indices_large_block=indices[1],
            block_indices_cumsum=indices[2],
            cu_seqlens_kern=self._cu_nonempty[: n + 1],
            keep_meta=self._keep[:n],
        )
        scratch = (self._large_offsets[: n + 1], self._cumsum_offsets[: n + 1], self._numbers)
        if self.mode == "triton":
            from gdn_dispatch_ascend.metadata.device_tables_triton import fill
        else:
            from gdn_dispatch_ascend.metadata.device_tables_torch import fill
        fill(tables, scratch)
        return tables

    def _check(self, cu: torch.Tensor) -> None:
        def refuse(got: str, expected: str) -> NoReturn:
            raise InvalidArgumentError("cu_seqlens", got, expected)

        if not isinstance(cu, torch.Tensor):
            refuse(type(cu).__name__, f"a tensor on {self.device}")
        if cu.device != self.device:
            refuse(f"a tensor on {cu.device}", f"one on {self.device}, as the pool")
        if cu.dtype not in (torch.int32, torch.int64):
            refuse(f"dtype {cu.dtype}", "int32 or int64")
        if cu.ndim != 1 or cu.shape[0] < 1:
            refuse(f"shape {list(cu.shape)}", "[n+1], with n of at least 0")
        if not cu.is_contiguous():
            refuse(f"stride {cu.stride(0)}", "a contiguous tensor")
        if cu.shape[0] - 1 > self.max_seqs:
            refuse(f"{cu.shape[0] - 1} sequences", f"at most max_seqs = {self.max_seqs}")


def available_mode() -> str:
    """``triton`` where a Triton is installed, and ``torch`` elsewhere: for all tables alike."""
    return "triton" if _has_triton() else "torch"


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
