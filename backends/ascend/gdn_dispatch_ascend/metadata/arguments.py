"""Arguments that Ascend's operators take as device tensors: made with the metadata, once a step.

Slots and accepted counts may be known to the device alone, so these are tensor operations on it:
none has a size that depends on values, none is read back, and all but ``keep_meta`` are views where
the rows of one kind are the whole step. ``refresh`` writes the next step into the same tensors.

Recurrent operators take lengths, not offsets. vllm-ascend's own take ``[n+1]`` of them, the first
being ``query_start_loc[0]``; torch_npu's takes the n behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gdn_dispatch.errors import MetadataError

if TYPE_CHECKING:
    from gdn_dispatch.meta import ChunkMeta, SequenceGroup

__all__ = ["GroupArguments"]


@dataclass(slots=True, eq=False)
class GroupArguments:
    """Of the operators, over the n rows of one kind; int32 on the device, but for what is said.

    Attributes:
        kind: ``prefill``, ``decode`` or ``speculative``.
        whole: The rows of this kind are all rows of the step: slots are views, not gathered.
        query_start_loc: ``[n+1]`` packed within the rows.
        actual_seq_lengths: ``[n+1]`` = [query_start_loc[0], len_0, ..., len_(n-1)].
        keep_meta: ``[n]`` bool, len_s > 0.
        cache_indices: ``[n]`` slots (column 0 of ``[N, S]``), in the dtype they came in;
            ``pad_slot`` past the step's rows. None without slots.
        initial_state_mode: ``[n]`` bool, False past the step's rows; prefill rows only, and None
            there where every row has an initial state.
        num_accepted_tokens: ``[n]``, 1 past the step's rows; speculative rows only.
        ssm_state_indices: Slot of every token, packed: ``[n]`` of decode rows, ``[n * S]`` of
            speculative ones, padding past their last token. None for others.
    """

    kind: str
    whole: bool
    query_start_loc: torch.Tensor
    actual_seq_lengths: torch.Tensor
    keep_meta: torch.Tensor
    cache_indices: torch.Tensor | None = None
    initial_state_mode: torch.Tensor | None = None
    num_accepted_tokens: torch.Tensor | None = None
    ssm_state_indices: torch.Tensor | None = None

    @classmethod
    def of(cls, meta: ChunkMeta, kind: str) -> GroupArguments:
        """Those of the rows of one kind.

        Raises:
            MetadataError: The step has none.
        """
        group: SequenceGroup | None = getattr(meta, kind)
        if group is None:
            raise MetadataError(kind, "a step without such rows", f"{kind} rows in the plan")
        whole = group.num_seqs == meta.plan.num_seqs
        return cls(kind, whole, **_compute(meta, kind, group, whole))

    @property
    def lengths(self) -> torch.Tensor:
        """``[n]`` tokens of every row."""
        return self.actual_seq_lengths[1:]

    def refresh(self, meta: ChunkMeta) -> None:
        """Write the step that ``meta`` holds now into the same tensors.

        What is a view of a tensor the caller gave is left alone: it is the caller's to update.
        """
        for name, values in _compute(meta, self.kind, getattr(meta, self.kind), self.whole).items():
            mine: torch.Tensor = getattr(self, name)
            if mine.data_ptr() != values.data_ptr():
                mine.copy_(values)


def _token_slots(slots: torch.Tensor, group: SequenceGroup, pad_slot: int) -> torch.Tensor:
    """``[n * S]`` slots ``[n, S]`` of the group's tokens, one after the other.

    Rows of S tokens, the usual ones, and rows without tokens behind them are ``slots`` as they lie.
    """
    n, S = slots.shape
    lens = group.host.lens
    if (lens[: int((lens > 0).sum())] == S).all():
        return slots.flatten()
    cu = group.cu_seqlens
    token = torch.arange(n * S, dtype=torch.int32, device=slots.device)
    row = torch.bucketize(token, cu[1:], right=True, out_int32=True).clamp(max=n - 1)
    draft = (token - cu[row]).clamp(max=S - 1)
    return slots[row, draft].where(token < cu[-1], pad_slot)


def _compute(
    meta: ChunkMeta, kind: str, group: SequenceGroup, whole: bool
) -> dict[str, torch.Tensor]:
    cu, pad = group.cu_seqlens, meta.plan.pad_slot
    lengths = cu[1:] - cu[:-1]
    found = {
        "query_start_loc": cu,
        "actual_seq_lengths": torch.cat([cu[:1], lengths]),
        "keep_meta": lengths > 0,
    }
    slots, has, accepted = meta.state_indices, meta.has_initial_state, meta.num_accepted_tokens
    if slots is None:
        return found

    def rows(values: torch.Tensor, padding: int) -> torch.Tensor:
        numbers = group.sequences
        if whole:
            return values[: numbers.shape[0]].contiguous()
        live = numbers >= 0  # rows past the step's are -1 after update_
        taken = values.index_select(0, numbers.clamp(min=0))
        return taken.where(live if taken.ndim == 1 else live[:, None], padding)

    found["cache_indices"] = rows(slots if slots.ndim == 1 else slots[:, 0], pad)
    if kind == "prefill" and has is not None:
        found["initial_state_mode"] = rows(has, 0)
    elif kind == "decode":
        found["ssm_state_indices"] = found["cache_indices"]
    elif kind == "speculative" and accepted is not None:
        found["num_accepted_tokens"] = rows(accepted, 1)
        found["ssm_state_indices"] = _token_slots(rows(slots, pad), group, pad)
    return found
