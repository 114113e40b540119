"""A step as ``gdn_attention`` of vllm-xpu-kernels takes it: its arguments, and what is done around.

``step_builder`` makes it; ``sycl`` uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["DraftMove", "Move", "OpStep"]


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """Rows that read one slot and write another: both pools' ``read`` go to ``write`` first.

    Attributes:
        read, write: ``[n]`` int64 slots; the same where a row has nothing to read.
    """

    read: torch.Tensor
    write: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class DraftMove:
    """The same for drafts: what an accepted token left goes to where the first draft token looks.

    Attributes:
        line, state: ``[n]`` int64 slots that hold the conv line and the recurrent state.
        first: ``[n]`` int64 first column of the history in the line: A - 1.
        has_line, has_state: ``[n]`` bool; False: zeros instead.
        write: ``[n]`` int64 slot of column 0.
    """

    line: torch.Tensor
    state: torch.Tensor
    first: torch.Tensor
    has_line: torch.Tensor
    has_state: torch.Tensor
    write: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class OpStep:
    """Arguments of the operator, under its names, and what is to be done around it.

    Attributes:
        num_prefills, num_decodes, num_spec_decodes: Rows of each kind, n and S together.
        num_actual_tokens: Tokens the operator may look at.
        has_initial_state: ``[n]`` bool, or None: all True.
        non_spec_query_start_loc: ``[n+1]`` int32. non_spec_token_indx: int32 tokens of the rows, or
            None: the first ones, in order. non_spec_state_indices_tensor: ``[n]`` int32.
        spec_query_start_loc: ``[S+1]`` int32. spec_token_indx: int32.
        spec_state_indices_tensor: ``[S, columns]`` int32. num_accepted_tokens: ``[S]`` int32.
        idle_tokens: int64 tokens of rows that are left out, or None: there are none.
        end: First token past the last row.
        padded_tokens: ``[end]`` bool, tokens of rows whose slots the device alone knows to be
            padding, or None: the host knows the slots.
        pad_slot: Slot that such rows write, to be saved and put back, or None.
        move, draft_move: Rows that read other slots than they write, or None.
        problems: Why the operator cannot run this step; sentences.
    """

    num_prefills: int = 0
    num_decodes: int = 0
    num_spec_decodes: int = 0
    num_actual_tokens: int = 0
    has_initial_state: torch.Tensor | None = None
    non_spec_query_start_loc: torch.Tensor | None = None
    non_spec_token_indx: torch.Tensor | None = None
    non_spec_state_indices_tensor: torch.Tensor | None = None
    spec_query_start_loc: torch.Tensor | None = None
    spec_token_indx: torch.Tensor | None = None
    spec_state_indices_tensor: torch.Tensor | None = None
    num_accepted_tokens: torch.Tensor | None = None
    idle_tokens: torch.Tensor | None = None
    end: int = 0
    padded_tokens: torch.Tensor | None = None
    pad_slot: int | None = None
    move: Move | None = None
    draft_move: DraftMove | None = None
    problems: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows the operator runs."""
        return self.num_prefills + self.num_decodes + self.num_spec_decodes
