"""What a random serving trace is made of: its setting, its requests, the rows of a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from gdn_dispatch.testing.layer_inputs import LayerDims, Tokens
from gdn_dispatch.testing.pools import PoolLayout

__all__ = ["Request", "Row", "Setting", "Snapshot"]


@dataclass(frozen=True)
class Setting:
    """What stays the same over a trace.

    Attributes:
        dims: The layer's sizes.
        layout: The pools'; ``extra_columns`` of at least S-1 are needed for drafts.
        columns: S of ``state_indices [N, S]``; 0 for ``[N]`` and no drafts.
        slots: Size of the pools.
        pad_slot: As in ``plan_batch``; 0 reserves that slot.
        on_device: Give slots, flags and counts to ``build_chunk_meta``.
        projections: None, ``"flat"`` or ``"interleaved"``.
        bias: Whether the convolution has one.
        options: Of ``gdn_attention``.
        tolerance: Relative to the largest number there is.
        chunk: The backend's chunk size: checkpoints fall on its multiples.
        checkpoints: Whether there are any.
        device: Where the pools and the calls are.
    """

    dims: LayerDims = field(default_factory=lambda: LayerDims(H=1, HV=2, K=8, V=8, W=4))
    layout: PoolLayout = field(default_factory=PoolLayout)
    columns: int = 0
    slots: int = 24
    pad_slot: int = -1
    on_device: bool = False
    projections: str | None = None
    bias: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 5e-6
    chunk: int = 32
    checkpoints: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def stride(self) -> int:
        """Slots a request owns."""
        return max(1, self.columns)


@dataclass
class Snapshot:
    """What the oracle knows of a request after some token: ``[D, W-1]`` and ``[HV, K, V]``."""

    history: torch.Tensor | None
    state: torch.Tensor | None


@dataclass
class Request:
    """A request being served.

    Attributes:
        slots: Its own; drafts use all of them, everything else the first.
        now: After its last accepted token.
        reads: Slots to start from where they are not its own: a checkpoint's.
        accepted: Draft tokens accepted of its last step: how far along its slots it reads.
        started: Whether its slots hold anything yet.
    """

    slots: list[int]
    now: Snapshot
    reads: list[int] | None = None
    accepted: int = 1
    started: bool = False


@dataclass
class Row:
    """One row of a step, and what is to come of it."""

    tokens: Tokens
    writes: list[int]
    reads: list[int]
    has_initial_state: bool = True
    speculative: bool = False
    accepted: int = 1
    checkpoints: dict[int, int] = field(default_factory=dict)
    request: Request | None = None
    after: list[Snapshot] = field(default_factory=list)
    output: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)
