"""What a kernel does for one sequence: which tokens, from which state, to which states.

States are views of the caller's memory, always seen as ``[HV, K, V]`` (a ``state_v_first`` pool is
seen through a transpose), of any strides and of any supported dtype. A view that is not there is
not touched: no ``read`` means the state starts from zero, no ``write`` means it is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

__all__ = ["Heads", "SequenceJob"]


class Heads(NamedTuple):
    """Inputs of the recurrence, over the tokens of the whole call.

    Attributes:
        q, k: ``[B, T, H, K]``, any strides. v: ``[B, T, HV, V]``, any strides.
        g: ``[B, T, HV]`` fp32 natural-log decay. beta: ``[B, T, HV]`` fp32.
        scale: Factor on the output.
        l2norm: Whether q and k are still to be normalised.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    scale: float
    l2norm: bool


@dataclass(frozen=True, slots=True)
class SequenceJob:
    """One sequence of a call.

    Attributes:
        batch: Row of the B dimension.
        start: First token. length: Number of tokens, at least 1.
        read: State before the first token, or None for zeros.
        write: Receives the state after the last token, or None.
        checkpoints: ``(offset, view)`` pairs in rising order of offset: ``view`` receives the
            state after ``offset`` tokens.
    """

    batch: int
    start: int
    length: int
    read: torch.Tensor | None
    write: torch.Tensor | None
    checkpoints: tuple[tuple[int, torch.Tensor], ...] = ()
