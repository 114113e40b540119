"""Launches of the causal depthwise convolution: long rows in tiles, and rows of a few tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton

from gdn_dispatch_ascend.kernels.conv_kernel import conv_prefill_kernel, conv_update_kernel
from gdn_dispatch_ascend.kernels.tiling import DEFAULT, grid

if TYPE_CHECKING:
    import torch

    from gdn_dispatch.triton_kernels.rows import Rows, Slots
    from gdn_dispatch_ascend.kernels.tiling import Cores, Tiling

__all__ = ["conv_prefill", "conv_update"]


def conv_prefill(
    x: torch.Tensor,
    conv: torch.Tensor,
    rows: Rows,
    slots: Slots,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    cores: Cores,
    tiling: Tiling = DEFAULT,
) -> None:
    """``conv_t = act(bias + sum_i weight[:, i] h_{t+i})``, h = [history | x], on the group's rows.

    One launch, whose tiles are the group's chunks; arithmetic in fp32. The last W-1 inputs of
    every row, and those before each of its checkpoints, are left in the pool.

    Args:
        x: ``[T, D]`` inputs of the step; row stride free.
        conv: ``[T, D]`` receives the results. Rows of padding are left as they are.
        rows: A prefill group: with chunks, whose size is a power of two and at least W-1.
        slots: Of the step. A checkpoint lies at a multiple of the chunk size.
        conv_state: ``[slots, D, L >= W-1]``, any strides, dtype of ``x``; updated in place.
        weight: ``[D, W]``, W = 2..8. bias: ``[D]`` or None.
        activation: ``"silu"`` or None.
        cores: Of the device.
        tiling: How much a program holds at a time.
    """
    chunks = rows.chunks
    if chunks is None:
        raise TypeError("conv_prefill takes a prefill group, which has chunks")
    D, W = weight.shape
    if chunks.count == 0 or rows.num_seqs == 0:
        return
    checkpoints = slots.checkpoint_sequences
    read = slots.write if slots.read is None else slots.read
    tile = min(tiling.conv_tokens, chunks.size)
    tasks = chunks.count * (chunks.size // tile) * triton.cdiv(D, tiling.conv_channels)
    conv_prefill_kernel[grid(tasks, cores.vector)](
        x, conv, weight, bias, conv_state,
        rows.sequences, rows.starts, rows.cu_seqlens, chunks.indices, chunks.nonempty,
        slots.write, read, slots.has_initial_state,
        checkpoints, slots.checkpoint_offsets, slots.checkpoint_slots,
        chunks.count, rows.num_seqs, 0 if checkpoints is None else checkpoints.shape[0],
        conv_state.shape[0], slots.pad_slot, D,
        x.stride(0), conv.stride(0), *weight.stride(), *conv_state.stride(),
        slots.write.stride(0), read.stride(0),
        W=W, TAPS=_power_of_two(W), TILE=chunks.size, BT=tile, BD=tiling.conv_channels,
        BR=_row_channels(conv_state, tiling), SILU=activation is not None,
    )  # fmt: skip


def conv_update(
    x: torch.Tensor,
    conv: torch.Tensor,
    rows: Rows,
    slots: Slots,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    cores: Cores,
    tiling: Tiling = DEFAULT,
    *,
    speculative: bool = False,
) -> None:
    """The same for rows of one token, and for rows of draft tokens.

    A draft's history is columns A-1 .. A+W-3 of column 0's line, A = ``num_accepted_tokens``
    (anything outside 1..S counts as the nearest); it leaves columns 0 .. W-3+len.

    Args:
        x, conv, slots, conv_state, weight, bias, activation, cores, tiling: As in
            ``conv_prefill``; a draft of S tokens takes lines of L >= W-2+S columns.
        rows: A decode or speculative group.
        speculative: Whether the rows are drafts. Others have at most one token.
    """
    if rows.num_seqs == 0:
        return
    D, W = weight.shape
    read = slots.write if slots.read is None else slots.read
    channels = _row_channels(conv_state, tiling)
    conv_update_kernel[grid(rows.num_seqs * triton.cdiv(D, channels), cores.vector)](
        x, conv, weight, bias, conv_state,
        rows.sequences, rows.starts, rows.cu_seqlens,
        slots.write, read, slots.has_initial_state,
        slots.num_accepted_tokens if speculative else None,
        rows.num_seqs, conv_state.shape[0], slots.pad_slot, slots.write.shape[-1], D,
        x.stride(0), conv.stride(0), *weight.stride(), *conv_state.stride(),
        slots.write.stride(0), read.stride(0),
        W=W, TAPS=_power_of_two(W), BD=channels, SPECULATIVE=speculative,
        SILU=activation is not None,
    )  # fmt: skip


def _row_channels(conv_state: torch.Tensor, tiling: Tiling) -> int:
    along = conv_state.stride(1) == 1
    return tiling.conv_row_channels if along else tiling.conv_strided_channels


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
