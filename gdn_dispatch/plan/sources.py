"""Whether a plan and the fields given on the device make a whole step between them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from gdn_dispatch.errors import InvalidPlanError
from gdn_dispatch.plan.batch import BatchPlan
from gdn_dispatch.plan.checkpoints import check_checkpoints

__all__ = ["DEVICE_FIELDS", "check_sources"]

DEVICE_FIELDS = (
    "state_indices",
    "initial_state_indices",
    "has_initial_state",
    "num_accepted_tokens",
)
"""Fields of a plan that may be given as device tensors instead."""

Shape = tuple[int, ...]


def check_sources(
    plan: BatchPlan, given: Mapping[str, Shape], *, chunk_size: int, at_least: bool = False
) -> bool:
    """Check ``plan`` together with the fields given on the device; only shapes are looked at.

    Args:
        plan: The step.
        given: Shapes of the device tensors by field name.
        chunk_size: The backend's; checkpoints fall on its multiples.
        at_least: Accept device tensors with more rows than the step (``ChunkMeta.update_``).

    Returns:
        Whether rows have slots.

    Raises:
        InvalidPlanError: A field is given twice, missing, or of a shape that does not fit.
    """
    shapes: dict[str, Shape] = dict(given)
    for name in DEVICE_FIELDS:
        host = getattr(plan, name)
        if host is None:
            continue
        if name in given:
            raise InvalidPlanError(
                name, "values in the plan and a device tensor", "one of them, not both"
            )
        shapes[name] = host.shape
    for name, shape in given.items():
        rows = shape[0] if shape else 0
        if rows < plan.num_seqs or (rows > plan.num_seqs and not at_least):
            raise InvalidPlanError(
                name, f"shape {list(shape)}", f"{plan.num_seqs} rows, one per sequence of the plan"
            )
    slots = shapes.get("state_indices")
    if slots is None:
        _refuse_without_slots(plan, shapes)
        return False
    source = shapes.get("initial_state_indices")
    if source is not None and source[1:] != slots[1:]:
        raise InvalidPlanError(
            "initial_state_indices",
            f"shape {list(source)}",
            f"the shape of state_indices, {list(slots)}",
        )
    if plan.speculative is not None:
        drafts = np.flatnonzero(plan.speculative)
        _check_speculative(plan, drafts, slots, accepted="num_accepted_tokens" in shapes)
    check_checkpoints(plan, chunk_size)
    return True


def _refuse_without_slots(plan: BatchPlan, shapes: Mapping[str, Shape]) -> None:
    needing = [name for name in DEVICE_FIELDS if name in shapes]
    if plan.speculative is not None:
        needing.append("speculative")
    if plan.checkpoints is not None:
        needing.append("checkpoint_offsets")
    if needing:
        raise InvalidPlanError(
            "state_indices",
            f"None with {', '.join(needing)}",
            "slots, in plan_batch or as a device tensor",
            hint="without slots there is only the recurrence, whose states are arguments",
        )


def _check_speculative(
    plan: BatchPlan, rows: npt.NDArray[np.intp], slots: Shape, *, accepted: bool
) -> None:
    if not accepted:
        raise InvalidPlanError(
            "num_accepted_tokens",
            f"None with speculative row {rows[0]}",
            "one count per row, in plan_batch or as a device tensor",
        )
    if len(slots) != 2:
        raise InvalidPlanError(
            "state_indices",
            f"shape {list(slots)} with speculative row {rows[0]}",
            "shape [N, S], one slot per draft token",
        )
    longest = int(plan.seq_lens[rows].max())
    if longest > slots[1]:
        raise InvalidPlanError(
            "speculative",
            f"a row with {longest} draft tokens",
            f"at most S = {slots[1]}, the columns of state_indices",
        )
    if plan.num_accepted_tokens is not None:
        most = int(plan.num_accepted_tokens[rows].max())
        if most > slots[1]:
            raise InvalidPlanError("num_accepted_tokens", f"{most}", f"at most S = {slots[1]}")
