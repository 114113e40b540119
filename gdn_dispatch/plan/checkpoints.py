"""States kept on the way through a long prompt, so that a prefix can be continued later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gdn_dispatch.errors import InvalidPlanError
from gdn_dispatch.plan.arrays import BoolArray, Int32Array, frozen, int32_array
from gdn_dispatch.plan.slots import is_padding

if TYPE_CHECKING:
    from gdn_dispatch.plan.batch import BatchPlan

__all__ = ["Checkpoints", "check_checkpoints", "plan_checkpoints"]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoints:
    """The states to keep, sorted by (sequence, offset); three read-only int32 arrays ``[n]``.

    Attributes:
        sequences: Row numbers of the step.
        offsets: Tokens from the row's first token of this step, in 1..len.
        slots: Slots that receive the states.
    """

    sequences: Int32Array
    offsets: Int32Array
    slots: Int32Array


def plan_checkpoints(
    offsets: Sequence[Sequence[int]] | None,
    indices: Sequence[Sequence[int]] | None,
    *,
    seq_lens: Int32Array,
    speculative: BoolArray | None,
    state_indices: Int32Array | None,
    pad_slot: int,
) -> Checkpoints | None:
    """Flatten and check ``checkpoint_offsets`` and ``checkpoint_indices``; None if none is live.

    A checkpoint whose slot is padding is dropped, and so are all those of a padding row.
    """
    if offsets is None and indices is None:
        return None
    if offsets is None or indices is None:
        missing, other = ("offsets", "indices") if offsets is None else ("indices", "offsets")
        raise InvalidPlanError(
            f"checkpoint_{missing}", "None", f"one list per list of checkpoint_{other}"
        )
    for name, lists in (("checkpoint_offsets", offsets), ("checkpoint_indices", indices)):
        if not isinstance(lists, (list, tuple)):
            raise InvalidPlanError(name, type(lists).__name__, "a list of N lists of ints")
        if len(lists) != seq_lens.size:
            raise InvalidPlanError(
                name, f"{len(lists)} lists", f"{seq_lens.size}, one per sequence"
            )
        for row, values in enumerate(lists):
            if not hasattr(values, "__len__"):
                got = f"{type(values).__name__} {values!r}"
                raise InvalidPlanError(f"{name}[{row}]", got, "a list of ints, mostly empty")

    rows: list[int] = []
    parts: list[Int32Array] = []
    slots: list[Int32Array] = []
    for row, (row_offsets, row_slots) in enumerate(zip(offsets, indices, strict=True)):
        if len(row_offsets) == 0 and len(row_slots) == 0:
            continue
        at = int32_array(f"checkpoint_offsets[{row}]", row_offsets)
        to = int32_array(f"checkpoint_indices[{row}]", row_slots)
        if at.size != to.size:
            raise InvalidPlanError(
                f"checkpoint_indices[{row}]", f"{to.size} slots", f"{at.size}, one per offset"
            )
        if speculative is not None and speculative[row]:
            raise InvalidPlanError(
                f"checkpoint_offsets[{row}]",
                "offsets on a speculative row",
                "an empty list",
                hint="a speculative row keeps the state after every draft token already",
            )
        if at[0] < 1 or at[-1] > seq_lens[row] or (at[1:] <= at[:-1]).any():
            raise InvalidPlanError(
                f"checkpoint_offsets[{row}]",
                f"{at.tolist()}",
                f"strictly increasing offsets in 1..{seq_lens[row]}, the row's tokens",
            )
        rows.extend([row] * at.size)
        parts.append(at)
        slots.append(to)
    if not rows:
        return None

    sequences = np.array(rows, dtype=np.int32)
    kept_slots = np.concatenate(slots)
    live = ~is_padding(kept_slots, pad_slot)
    if state_indices is not None:
        own = state_indices if state_indices.ndim == 1 else state_indices[:, 0]
        live &= ~is_padding(own[sequences], pad_slot)
    if not live.any():
        return None
    return Checkpoints(
        sequences=frozen(sequences[live]),
        offsets=frozen(np.concatenate(parts)[live]),
        slots=frozen(kept_slots[live]),
    )


def check_checkpoints(plan: BatchPlan, chunk_size: int) -> None:
    """Refuse a checkpoint that does not fall between two chunks of ``chunk_size`` tokens."""
    if plan.checkpoints is None:
        return
    astray = plan.checkpoints.offsets % chunk_size != 0
    if astray.any():
        at = int(astray.argmax())
        raise InvalidPlanError(
            "checkpoint_offsets",
            f"{plan.checkpoints.offsets[at]} in row {plan.checkpoints.sequences[at]}",
            f"multiples of {chunk_size}, the backend's chunk size",
        )
