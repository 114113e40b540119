"""Slots of the state pools: which are padding, and whether two rows would race for one.

All rows of a step run at the same time, so a slot may be written once, and no row may read a slot
that another row writes. What only the device knows is not checked: slots given there, and the
column a speculative row reads where ``num_accepted_tokens`` is not on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gdn_dispatch.errors import InvalidPlanError
from gdn_dispatch.plan.arrays import BoolArray, Int32Array

if TYPE_CHECKING:
    from gdn_dispatch.plan.batch import BatchPlan

__all__ = ["check_races", "is_padding"]

_Rows = npt.NDArray[np.intp]


def is_padding(slots: Int32Array, pad_slot: int) -> BoolArray:
    """Element-wise: negative, or equal to ``pad_slot``."""
    padding: BoolArray = slots < 0
    if pad_slot >= 0:
        padding |= slots == pad_slot
    return padding


def check_races(plan: BatchPlan) -> None:
    """Raise ``InvalidPlanError`` if two rows of ``plan`` would race for a slot."""
    if plan.state_indices is None:
        return
    own = plan.state_indices if plan.state_indices.ndim == 1 else plan.state_indices[:, 0]
    active = (plan.seq_lens > 0) & ~is_padding(own, plan.pad_slot)
    slots, rows = _writes(plan, own, active)
    if slots.size == 0:
        return
    order = slots.argsort()
    slots, rows = slots[order], rows[order]
    twice = slots[1:] == slots[:-1]
    if twice.any():
        at = int(twice.argmax())
        first, second = sorted((int(rows[at]), int(rows[at + 1])))
        raise InvalidPlanError(
            "state_indices",
            f"slot {slots[at]} written by rows {first} and {second}",
            "every live slot to be written once in a step",
            hint="checkpoint slots count; a slot that holds no state must be negative or pad_slot",
        )
    if plan.initial_state_indices is None and plan.speculative is None:
        return  # every row reads the slot it writes
    read_slots, readers = _reads(plan, active)
    at_slot = np.minimum(slots.searchsorted(read_slots), slots.size - 1)
    clash = (slots[at_slot] == read_slots) & (rows[at_slot] != readers)
    if clash.any():
        at = int(clash.argmax())
        name = "state_indices" if plan.initial_state_indices is None else "initial_state_indices"
        raise InvalidPlanError(
            name,
            f"slot {read_slots[at]} read by row {readers[at]} and written by row "
            f"{rows[at_slot[at]]}",
            "no row to read what another row of the same step writes",
        )


def _writes(plan: BatchPlan, own: Int32Array, active: BoolArray) -> tuple[Int32Array, _Rows]:
    """Every slot written, and by which row."""
    rows = np.flatnonzero(active)
    slots = own[rows]
    if plan.speculative is not None and plan.state_indices is not None:
        # Column 0 is in already: the conv line, and the state after the first draft token.
        columns = np.arange(1, plan.state_indices.shape[1])
        drafts = np.where(plan.speculative & active, plan.seq_lens, 0)
        more = plan.state_indices[:, 1:]
        mask = (columns < drafts[:, None]) & ~is_padding(more, plan.pad_slot)
        slots = np.concatenate([slots, more[mask]])
        rows = np.concatenate([rows, mask.nonzero()[0]])
    if plan.checkpoints is not None:
        slots = np.concatenate([slots, plan.checkpoints.slots])
        rows = np.concatenate([rows, plan.checkpoints.sequences.astype(np.intp)])
    return slots, rows


def _reads(plan: BatchPlan, active: BoolArray) -> tuple[Int32Array, _Rows]:
    """Every slot read that the host knows of, and by which row."""
    source = plan.initial_state_indices
    if source is None:
        source = plan.state_indices
    if source is None:
        return np.empty(0, np.int32), np.empty(0, np.intp)
    if plan.has_initial_state is not None:
        active = active & plan.has_initial_state
    rows = np.flatnonzero(active)
    slots = source[rows] if source.ndim == 1 else source[rows, 0]
    if plan.speculative is not None and plan.num_accepted_tokens is not None:
        drafts = np.flatnonzero(active & plan.speculative)
        slots = np.concatenate([slots, source[drafts, plan.num_accepted_tokens[drafts] - 1]])
        rows = np.concatenate([rows, drafts])
    live = ~is_padding(slots, plan.pad_slot)
    return slots[live], rows[live]
