"""The index tensors of a step for Intel's operator: rows packed, lengths exact.

The operator knows two kinds of rows, drafts and others, each packed by a list of tokens. Rows that
have nothing to do are left out here: its convolution reads a slot of -1 as padding, but its
recurrence would address memory by it. Where the host does not know the slots, negative ones are
sent to the pool's padding slot, which the caller of the operator saves and puts back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from gdn_dispatch.plan.slots import is_padding
from gdn_dispatch_xpu.providers.op_step import DraftMove, Move, OpStep

if TYPE_CHECKING:
    import numpy.typing as npt

    from gdn_dispatch.meta import ChunkMeta
    from gdn_dispatch.plan.batch import BatchPlan
    from gdn_dispatch.staging import PinnedArena

    Ints = npt.NDArray[np.signedinteger]

__all__ = ["op_step"]


def op_step(meta: ChunkMeta, arena: PinnedArena) -> OpStep:
    """The step of ``meta``, which has slots. Device tensors are read on the device alone.

    A step of ordinary rows that all have something to do takes its lengths from ``meta`` as they
    are; any other costs a second, small copy from the host.
    """
    return _Builder(meta, arena).build()


class _Builder:
    """The host's and the device's view of one step."""

    def __init__(self, meta: ChunkMeta, arena: PinnedArena) -> None:
        if meta.state_indices is None:
            raise TypeError("metadata for the recurrence alone has no slots")
        plan = meta.plan
        self.meta, self.plan, self.arena = meta, plan, arena
        self.slots = _columns(meta.state_indices[: plan.num_seqs])
        self.host_slots = plan.state_indices
        self.unseen = plan.state_indices is None
        alive = plan.seq_lens > 0
        if self.host_slots is not None:
            alive = alive & ~is_padding(_first(self.host_slots), plan.pad_slot)
        drafts = np.zeros(plan.num_seqs, bool) if plan.speculative is None else plan.speculative
        self.alive = alive
        self.ordinary = np.flatnonzero(alive & ~drafts)
        self.drafts = np.flatnonzero(alive & drafts)

    def build(self) -> OpStep:
        plan = self.plan
        lens = plan.seq_lens[self.ordinary]
        found: dict[str, object] = {
            "num_prefills": int((lens > 1).sum()),
            "num_decodes": int((lens <= 1).sum()),
            "num_spec_decodes": self.drafts.size,
            "num_actual_tokens": plan.num_tokens,
            "end": plan.num_tokens,
        }
        problems = self._problems()
        if problems or not (self.ordinary.size or self.drafts.size):
            return OpStep(**found, idle_tokens=self._idle(), problems=problems)  # type: ignore[arg-type]
        uploaded = self._upload()
        if self.ordinary.size:
            found |= self._ordinary(uploaded)
        if self.drafts.size:
            found |= self._drafts(uploaded)
        if uploaded["idle"].numel():
            found["idle_tokens"] = uploaded["idle"].long()
        if self.unseen:
            starts = self.meta.cu_seqlens[: plan.num_seqs + 1]
            found["padded_tokens"] = torch.repeat_interleave(
                self._padded(self.slots[:, 0]), starts.diff(), output_size=plan.num_tokens
            )
        if self.unseen or self._dropped_columns():
            found["pad_slot"] = plan.pad_slot
        return OpStep(**found)  # type: ignore[arg-type]

    # -- what cannot be run ----------------------------------------------------------------------

    def _problems(self) -> tuple[str, ...]:
        pad = self.plan.pad_slot
        if self.unseen and pad < 0 and self.alive.any():
            return (
                "slots given as device tensors, without a pad_slot inside the pools: a negative "
                "one, which the host cannot see, would address memory; give slots to plan_batch, "
                "or name a pad_slot that nobody uses",
            )
        if not self.unseen and pad < 0 and self._dropped_columns():
            return (
                "a draft token without a slot of its own: the state after it would be written by "
                "a negative index; name all slots, or a pad_slot that nobody uses",
            )
        return ()

    def _dropped_columns(self) -> bool:
        """Whether a draft token's state has nowhere to go, as far as the host sees."""
        if self.host_slots is None or not self.drafts.size:
            return False
        slots = self.host_slots[self.drafts]
        used = np.arange(slots.shape[1]) < self.plan.seq_lens[self.drafts][:, None]
        return bool((is_padding(slots, self.plan.pad_slot) & used).any())

    # -- from the host ---------------------------------------------------------------------------

    def _idle_tokens(self) -> Ints:
        return _tokens(self.plan, np.flatnonzero(~self.alive))

    def _idle(self) -> torch.Tensor | None:
        tokens = self._idle_tokens()
        if not tokens.size:
            return None
        return _send(self.arena, [tokens])[0].long()

    def _whole(self) -> bool:
        """Whether the ordinary rows are all rows, so that the step's own tensors will do."""
        return self.ordinary.size == self.plan.num_seqs

    def _first_tokens(self) -> bool:
        """Whether the ordinary rows own the step's tokens, all of them, in order."""
        return int(self.plan.seq_lens[self.ordinary].sum()) == self.plan.num_tokens

    def _upload(self) -> dict[str, torch.Tensor]:
        """Row numbers, starts and tokens of both kinds, and idle tokens; in one copy, or none."""
        none = np.empty(0, np.int32)
        parts: dict[str, Ints] = dict.fromkeys(("rows", "starts", "tokens"), none)
        if self.ordinary.size and not self._whole():
            parts["rows"] = self.ordinary
            parts["starts"] = _starts(self.plan, self.ordinary)
            if not self._first_tokens():
                parts["tokens"] = _tokens(self.plan, self.ordinary)
        parts |= dict.fromkeys(("draft rows", "draft starts", "draft tokens"), none)
        if self.drafts.size:
            parts["draft rows"] = self.drafts
            parts["draft starts"] = _starts(self.plan, self.drafts)
            parts["draft tokens"] = _tokens(self.plan, self.drafts)
        parts["moved"] = self._moved_rows()
        parts["idle"] = self._idle_tokens()
        return dict(zip(parts, _send(self.arena, list(parts.values())), strict=True))

    def _moved_rows(self) -> Ints:
        """Ordinary rows that the host knows to read another slot than they write."""
        reads, writes = self.plan.initial_state_indices, self.plan.state_indices
        if reads is None or writes is None:
            return np.empty(0, np.int32)
        differ = _first(reads)[self.ordinary] != _first(writes)[self.ordinary]
        moved: Ints = self.ordinary[differ]
        return moved

    # -- on the device ---------------------------------------------------------------------------

    def _ordinary(self, uploaded: dict[str, torch.Tensor]) -> dict[str, object]:
        plan, meta = self.plan, self.meta
        rows = None if self._whole() else uploaded["rows"].long()
        slots = _rows(self.slots[:, 0], rows)
        if self.unseen:
            slots = torch.where(slots < 0, plan.pad_slot, slots)
        starts = meta.cu_seqlens[: plan.num_seqs + 1] if rows is None else uploaded["starts"]
        found: dict[str, object] = {
            "non_spec_query_start_loc": starts,
            "non_spec_state_indices_tensor": slots.int().contiguous(),
        }
        if not self._first_tokens():
            found["non_spec_token_indx"] = uploaded["tokens"]

        has_state: torch.Tensor | None = None
        known = plan.has_initial_state
        if meta.has_initial_state is not None and (known is None or not known[self.alive].all()):
            has_state = _rows(meta.has_initial_state[: plan.num_seqs], rows)
        if self._reads_elsewhere(self.ordinary):
            reads = self._read_slots()
            readable = ~self._padded(_rows(reads[:, 0], rows))
            has_state = readable if has_state is None else has_state & readable
            both_seen = plan.initial_state_indices is not None and not self.unseen
            movers = uploaded["moved"].long() if both_seen else rows
            read, write = _rows(reads[:, 0], movers), _rows(self.slots[:, 0], movers)
            if self.unseen:
                write = torch.where(write < 0, plan.pad_slot, write)
            if write.numel():
                read = torch.where(self._padded(read), write, read)
                found["move"] = Move(read.long(), write.long())
        if has_state is not None:
            found["has_initial_state"] = has_state.contiguous()
        return found

    def _drafts(self, uploaded: dict[str, torch.Tensor]) -> dict[str, object]:
        plan, meta = self.plan, self.meta
        if meta.num_accepted_tokens is None:
            raise TypeError("metadata of drafts has num_accepted_tokens")
        rows = uploaded["draft rows"].long()
        slots = self.slots.index_select(0, rows)
        # a row is padding by its first column alone, whatever the others name
        unused = self._padded(slots) | self._padded(slots[:, :1])
        elsewhere = slots[:, :1] if plan.pad_slot < 0 else slots.new_full((), plan.pad_slot)
        table = torch.where(unused, elsewhere, slots)
        accepted = meta.num_accepted_tokens[: plan.num_seqs].index_select(0, rows)
        accepted = accepted.clamp(1, slots.shape[1])
        found: dict[str, object] = {
            "spec_query_start_loc": uploaded["draft starts"],
            "spec_token_indx": uploaded["draft tokens"],
            "spec_state_indices_tensor": table.int().contiguous(),
            "num_accepted_tokens": accepted.int().contiguous(),
        }
        if self._drafts_as_named():
            return found
        first = accepted.long() - 1
        reads = self._read_slots().index_select(0, rows)
        line, state = reads[:, 0], reads.gather(1, first[:, None])[:, 0]
        has_line, has_state = ~self._padded(line), ~self._padded(state)
        if meta.has_initial_state is not None:
            has_any = meta.has_initial_state[: plan.num_seqs].index_select(0, rows)
            has_line, has_state = has_line & has_any, has_state & has_any
        found["num_accepted_tokens"] = torch.ones_like(accepted, dtype=torch.int32)
        found["draft_move"] = DraftMove(
            line=torch.where(has_line, line, table[:, 0]).long(),
            state=torch.where(has_state, state, table[:, 0]).long(),
            first=first,
            has_line=has_line,
            has_state=has_state,
            write=table[:, 0].long(),
        )
        return found

    def _drafts_as_named(self) -> bool:
        """Whether drafts go on in place, from a state that is there, as far as the host sees.

        Slots that only the device knows are taken as named: a draft whose column A-1 is padding is
        not seen.
        """
        plan, rows = self.plan, self.drafts
        known = plan.has_initial_state
        if self.meta.has_initial_state is not None and (known is None or not known[rows].all()):
            return False
        if self._reads_elsewhere(rows):
            return False
        if self.host_slots is None:
            return True
        if plan.num_accepted_tokens is None:
            return not is_padding(self.host_slots[rows], plan.pad_slot).any()
        accepted = np.clip(plan.num_accepted_tokens[rows], 1, self.host_slots.shape[1])
        return not is_padding(self.host_slots[rows, accepted - 1], plan.pad_slot).any()

    def _reads_elsewhere(self, rows: Ints) -> bool:
        """Whether some of these rows read other slots than they write, as far as the host sees."""
        if self.meta.initial_state_indices is None:
            return False
        reads, writes = self.plan.initial_state_indices, self.plan.state_indices
        if reads is None or writes is None:
            return True
        return not np.array_equal(reads[rows], writes[rows])

    def _read_slots(self) -> torch.Tensor:
        reads = self.meta.initial_state_indices
        return self.slots if reads is None else _columns(reads[: self.plan.num_seqs])

    def _padded(self, slots: torch.Tensor) -> torch.Tensor:
        padded = slots < 0
        return padded | (slots == self.plan.pad_slot) if self.plan.pad_slot >= 0 else padded


def _first(slots: Ints) -> Ints:
    return slots if slots.ndim == 1 else slots[:, 0]


def _columns(slots: torch.Tensor) -> torch.Tensor:
    return slots[:, None] if slots.ndim == 1 else slots


def _rows(x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return x if rows is None else x.index_select(0, rows)


def _starts(plan: BatchPlan, rows: Ints) -> Ints:
    return np.concatenate(([0], np.cumsum(plan.seq_lens[rows])))


def _tokens(plan: BatchPlan, rows: Ints) -> Ints:
    """Tokens of these rows, row after row."""
    lens = plan.seq_lens[rows]
    shifts = plan.query_start_loc[rows] - np.concatenate(([0], np.cumsum(lens)[:-1]))[: rows.size]
    tokens: Ints = np.arange(lens.sum()) + np.repeat(shifts, lens)
    return tokens


def _send(arena: PinnedArena, parts: list[Ints]) -> list[torch.Tensor]:
    """Arrays as int32 device tensors, in one copy; each begins on a cache line."""
    sizes = [-(-part.size // 16) * 16 for part in parts]

    def fill(flat: npt.NDArray[np.int32]) -> None:
        at = 0
        for part, size in zip(parts, sizes, strict=True):
            flat[at : at + part.size] = part
            at += size

    flat = arena.upload(sum(sizes), fill)
    return [piece[: part.size] for piece, part in zip(flat.split(sizes), parts, strict=True)]
