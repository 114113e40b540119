"""Causal depthwise convolution over packed sequences, on the engine's conv pool.

Token-major and fp32 inside, a block of tokens at a time: W multiply-adds over rows that are
contiguous in the channels, whatever the layout of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ConvJob", "ConvWeights", "convolve", "convolve_single_tokens"]

_BLOCK_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class ConvJob:
    """One sequence of a call. Views are ``[D, columns]``, oldest column first.

    Attributes:
        start: First token. length: Number of tokens, at least 1.
        read: W-1 columns of history, or None for zeros.
        write: Receives the last columns of [history | x], as many as it has, or None.
        checkpoints: ``(offset, view)``: ``view`` receives the W-1 columns before token ``offset``.
    """

    start: int
    length: int
    read: torch.Tensor | None
    write: torch.Tensor | None
    checkpoints: tuple[tuple[int, torch.Tensor], ...] = ()


class ConvWeights:
    """Weights as the loops want them: fp32 rows ``[W, D]``, bias ``[D]`` or None."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
    ) -> None:
        taps = torch.empty(weight.t().shape, dtype=torch.float32, device=weight.device)
        self.taps = taps.copy_(weight.t())
        self.bias = None if bias is None else bias.float()
        self.width, self.channels = self.taps.shape
        self.silu = activation is not None

    def apply(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """``bias + sum_i taps[i] * rows[i]`` for W row blocks ``[n, D]`` fp32."""
        total = rows[0] * self.taps[0]
        for row, tap in zip(rows[1:], self.taps[1:], strict=True):
            total.addcmul_(row, tap)
        if self.bias is not None:
            total.add_(self.bias)
        return total


def convolve(
    x: torch.Tensor, out: torch.Tensor, jobs: Sequence[ConvJob], weights: ConvWeights
) -> None:
    """Convolve every job's rows of ``x`` [T, D] into ``out`` [T, D]; update the histories."""
    W, D = weights.width, weights.channels
    block = max(W, _BLOCK_BYTES // (4 * D))
    buffer = torch.empty(W - 1 + block, D, dtype=torch.float32, device=x.device)
    for job in jobs:
        for offset in range(0, job.length, block):
            n = min(block, job.length - offset)
            rows = buffer[: W - 1 + n]
            _fill_history(rows[: W - 1], x, job, offset)
            rows[W - 1 :].copy_(x[job.start + offset : job.start + offset + n])
            result = weights.apply([rows[i : i + n] for i in range(W)])
            if weights.silu:
                F.silu(result, inplace=True)
            out[job.start + offset : job.start + offset + n].copy_(result)
        _save_history(x, job, W)


def _fill_history(rows: torch.Tensor, x: torch.Tensor, job: ConvJob, offset: int) -> None:
    """The W-1 rows before token ``offset`` of the job."""
    from_x = min(offset, rows.shape[0])
    from_history = rows.shape[0] - from_x
    if from_x:
        rows[from_history:].copy_(x[job.start + offset - from_x : job.start + offset])
    if from_history:
        if job.read is None:
            rows[:from_history].zero_()
        else:
            rows[:from_history].copy_(job.read[:, job.read.shape[1] - from_history :].t())


def _save_history(x: torch.Tensor, job: ConvJob, W: int) -> None:
    targets = list(job.checkpoints)
    if job.write is not None:
        targets.append((job.length, job.write))
    # Reading all before writing any: the history read may be the one written.
    columns = []
    for end, target in targets:
        rows = x.new_empty(target.shape[1], x.shape[1])
        from_x = min(end, rows.shape[0])
        rows[rows.shape[0] - from_x :].copy_(x[job.start + end - from_x : job.start + end])
        missing = rows.shape[0] - from_x
        if missing and job.read is None:
            rows[:missing].zero_()
        elif missing and job.read is not None:
            rows[:missing].copy_(job.read[:, job.read.shape[1] - missing :].t())
        columns.append(rows.t())
    for (_, target), column in zip(targets, columns, strict=True):
        target.copy_(column)


def convolve_single_tokens(
    x: torch.Tensor,
    out: torch.Tensor,
    tokens: torch.Tensor,
    history: torch.Tensor,
    reads: torch.Tensor,
    writes: torch.Tensor,
    from_zero: Sequence[int],
    weights: ConvWeights,
) -> None:
    """One token for each of n sequences, and their histories moved on by it.

    Column by column: where an engine keeps channels innermost, a column is one run of memory.

    Args:
        x, out: ``[T, D]``. tokens: ``[n]`` rows of both.
        history: ``[slots, D, W-1]``, any strides.
        reads, writes: ``[n]`` slots to read from and to write to.
        from_zero: Numbers below n of sequences that have no history yet.
        weights: The taps.
    """
    columns = [column.index_select(0, reads) for column in history.unbind(2)]
    for column in columns:
        for n in from_zero:
            column[n].zero_()
    columns.append(x.index_select(0, tokens))
    result = weights.apply([column.float() for column in columns])
    if weights.silu:  # not F.silu, whose bits would depend on n: see ``gates``
        result.div_(result.neg().exp_().add_(1))
    out.index_copy_(0, tokens, result.to(out.dtype))
    for target, column in zip(history.unbind(2), columns[1:], strict=True):
        target.index_copy_(0, writes, column)
