"""What a launch can be chosen by, and who chooses: the package of a device, from a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from gdn_dispatch.triton_kernels.conv import ConvConfig
    from gdn_dispatch.triton_kernels.prefill import PrefillConfig
    from gdn_dispatch.triton_kernels.steps import StepConfig

__all__ = ["LaunchShape", "LaunchTable"]


@dataclass(frozen=True, slots=True)
class LaunchShape:
    """Sizes the host knows of one group of rows.

    Attributes:
        device: Of the tensors.
        rows: Rows to launch for.
        tokens: Tokens of the group, all rows together.
        max_seqlen: Longest row.
        num_heads, num_v_heads, head_dim_k, head_dim_v: H, HV, K, V of this rank.
        dtype: Of activations.
        state_dtype: Of the state pool, or of the states.
        speculative: Whether the rows are drafts.
        channels_last: Whether channels run along memory in a slot of the conv pool.
    """

    device: torch.device
    rows: int
    tokens: int
    max_seqlen: int
    num_heads: int
    num_v_heads: int
    head_dim_k: int
    head_dim_v: int
    dtype: torch.dtype
    state_dtype: torch.dtype
    speculative: bool = False
    channels_last: bool = True

    @property
    def channels(self) -> int:
        """D, of the convolution."""
        return 2 * self.num_heads * self.head_dim_k + self.num_v_heads * self.head_dim_v


class LaunchTable(Protocol):
    """Configurations by shape: a pure function of the shape, so that a launch can be foretold."""

    def conv_prefill(self, shape: LaunchShape) -> ConvConfig:
        """For the convolution of a prefill group."""

    def conv_update(self, shape: LaunchShape) -> ConvConfig:
        """For the convolution of decode and speculative rows."""

    def prefill(self, shape: LaunchShape) -> PrefillConfig:
        """For the chunk rule."""

    def steps(self, shape: LaunchShape) -> StepConfig:
        """For the recurrence token by token."""
