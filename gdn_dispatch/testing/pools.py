"""An engine's state pools, in the layouts of real engines, poisoned wherever nothing lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gdn_dispatch.testing.layer_inputs import LayerDims
from gdn_dispatch.testing.numbers import as_bytes

POISON = 0xFF
"""A byte that makes every floating-point number NaN, and that no arithmetic produces."""


@dataclass(frozen=True)
class PoolLayout:
    """How the pools lie in memory.

    Attributes:
        state_v_first: ``ssm_state`` is ``[slots, HV, V, K]``.
        channels_last: The conv line of a slot is stored ``[L, D]``, as vLLM's SD layout is.
        extra_columns: L - (W-1).
        padding: Unused bytes between the two states of a slot, and after them.
        state_dtype: Of ``ssm_state``.
        dtype: Of ``conv_state``.
    """

    state_v_first: bool = False
    channels_last: bool = False
    extra_columns: int = 0
    padding: int = 0
    state_dtype: torch.dtype = torch.float32
    dtype: torch.dtype = torch.float32


class Pools:
    """Both pools as views of one buffer of bytes, one page a slot."""

    def __init__(
        self,
        slots: int,
        dims: LayerDims,
        layout: PoolLayout,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dims, self.layout = dims, layout
        self.columns = dims.W - 1 + layout.extra_columns
        self.conv_bytes = dims.D * self.columns * layout.dtype.itemsize
        self.ssm_bytes = dims.HV * dims.K * dims.V * layout.state_dtype.itemsize
        self.ssm_start = _aligned(self.conv_bytes + layout.padding)
        page = _aligned(self.ssm_start + self.ssm_bytes + layout.padding)
        self.pages = torch.full((slots, page), POISON, dtype=torch.uint8, device=device)
        self.conv, self.ssm = self._views(self.pages)

    def _views(self, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``conv_state`` and ``ssm_state`` as a caller passes them."""
        dims, layout = self.dims, self.layout
        conv = pages[:, : self.conv_bytes].view(layout.dtype)
        if layout.channels_last:
            conv = conv.unflatten(1, (self.columns, dims.D)).transpose(1, 2)
        else:
            conv = conv.unflatten(1, (dims.D, self.columns))
        ssm = pages[:, self.ssm_start : self.ssm_start + self.ssm_bytes].view(layout.state_dtype)
        K, V = dims.K, dims.V
        return conv, ssm.unflatten(1, (dims.HV, V, K) if layout.state_v_first else (dims.HV, K, V))

    @property
    def arguments(self) -> dict[str, Any]:
        """Under their names in ``gdn_attention``."""
        return {
            "conv_state": self.conv,
            "ssm_state": self.ssm,
            "state_v_first": self.layout.state_v_first,
        }

    def state(self, slot: int) -> torch.Tensor:
        """``[HV, K, V]``, on the CPU."""
        state = self.ssm[slot].cpu()
        return state.transpose(1, 2) if self.layout.state_v_first else state

    def line(self, slot: int, columns: int) -> torch.Tensor:
        """The first columns of a slot's conv line, ``[D, columns]``, on the CPU."""
        return self.conv[slot, :, :columns].cpu()

    def poison(self, slot: int) -> None:
        """Make whoever reads the slot again notice."""
        self.pages[slot] = POISON

    def snapshot(self) -> torch.Tensor:
        """Everything as it is now, for ``changed_only``."""
        return self.pages.clone()

    def changed_only(self, before: torch.Tensor, states: set[int], lines: dict[int, int]) -> bool:
        """Whether nothing changed but these slots' states and these first columns of lines."""
        conv, ssm = self._views(before)
        for slot in states:
            ssm[slot] = self.ssm[slot]
        for slot, columns in lines.items():
            conv[slot, :, :columns] = self.conv[slot, :, :columns]
        return torch.equal(as_bytes(before), as_bytes(self.pages))


def _aligned(size: int) -> int:
    return -(-size // 8) * 8
