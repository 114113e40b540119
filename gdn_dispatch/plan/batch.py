"""What a step consists of, on the host: which tokens belong to whom and where state lives.

A *row* is one sequence of the step. Its *slot* is an index into the engine's state pools; a slot is
*padding* if it is negative or equals ``pad_slot``. A row whose write slot (column 0 of ``[N, S]``)
is padding is itself padding: its output is zero, nothing is read and nothing is written. A padding
read slot of a live row means: start from zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gdn_dispatch.errors import InvalidPlanError
from gdn_dispatch.plan.arrays import BoolArray, Int32Array, bool_array, int32_array, int_value
from gdn_dispatch.plan.checkpoints import Checkpoints, plan_checkpoints
from gdn_dispatch.plan.slots import check_races, is_padding

__all__ = ["BatchPlan", "IntArrayLike", "check_starts", "plan_batch"]

IntArrayLike = Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BatchPlan:
    """Immutable host description of a step of N sequences; its arrays are read-only copies.

    Attributes:
        query_start_loc: ``[N+1]`` int32; row s owns tokens ``query_start_loc[s:s+2]``.
        seq_lens: ``[N]`` int32, tokens of each row in this step; zero is allowed.
        num_seqs: N; zero is allowed.
        num_tokens: Tokens that belong to a row.
        total_tokens: Rows T of the step's tensors, at least ``num_tokens``.
        max_seqlen: Longest row, 0 for an empty step.
        state_indices: ``[N]`` or ``[N, S]`` int32 slots to write, or None.
        initial_state_indices: Slots to read from, same shape, or None: those of ``state_indices``.
        has_initial_state: ``[N]`` bool, or None: all True. False starts the row from zero.
        speculative: ``[N]`` bool, or None: no row is.
        num_accepted_tokens: ``[N]`` int32, or None. Speculative rows read column ``accepted - 1``.
        pad_slot: A slot that is padding, besides all negative ones.
        checkpoints: States to keep on the way, or None.
        max_slot: Largest slot the host knows of, -1 if there is none: pools must be larger.
    """

    query_start_loc: Int32Array
    seq_lens: Int32Array
    num_seqs: int
    num_tokens: int
    total_tokens: int
    max_seqlen: int
    state_indices: Int32Array | None = None
    initial_state_indices: Int32Array | None = None
    has_initial_state: BoolArray | None = None
    speculative: BoolArray | None = None
    num_accepted_tokens: Int32Array | None = None
    pad_slot: int = -1
    checkpoints: Checkpoints | None = None
    max_slot: int = -1

    def __repr__(self) -> str:
        given = [
            name
            for name in (
                "state_indices",
                "initial_state_indices",
                "has_initial_state",
                "speculative",
                "num_accepted_tokens",
                "checkpoints",
            )
            if getattr(self, name) is not None
        ]
        return (
            f"BatchPlan(num_seqs={self.num_seqs}, num_tokens={self.num_tokens}, "
            f"total_tokens={self.total_tokens}, max_seqlen={self.max_seqlen}, "
            f"given=[{', '.join(given)}])"
        )


def plan_batch(
    query_start_loc: IntArrayLike,
    *,
    state_indices: IntArrayLike | None = None,
    initial_state_indices: IntArrayLike | None = None,
    has_initial_state: Sequence[bool] | BoolArray | None = None,
    speculative: Sequence[bool] | BoolArray | None = None,
    num_accepted_tokens: IntArrayLike | None = None,
    total_tokens: int | None = None,
    pad_slot: int = -1,
    checkpoint_offsets: Sequence[Sequence[int]] | None = None,
    checkpoint_indices: Sequence[Sequence[int]] | None = None,
) -> BatchPlan:
    """Check the host description of a step and make it a plan.

    Args:
        query_start_loc: ``[N+1]`` ints: 0, then the end of every row's tokens, non-decreasing.
        state_indices: ``[N]`` slots to write, or ``[N, S]`` where rows are speculative: the state
            after draft token t goes to column t, the conv line to column 0. May instead be given to
            ``build_chunk_meta`` as a device tensor, like the next two and ``num_accepted_tokens``.
        initial_state_indices: Slots to read from, where they differ from ``state_indices``.
        has_initial_state: ``[N]`` bools; False starts the row from zero whatever its slot holds.
        speculative: ``[N]`` bools; True for rows of draft tokens, at most S of them.
        num_accepted_tokens: ``[N]`` ints in 1..S; entries of other rows are ignored.
        total_tokens: Rows T of the step's tensors, where some belong to no row.
        pad_slot: A slot that is padding, besides all negative ones. vLLM's is 0.
        checkpoint_offsets: For every row a list, mostly empty, of offsets from its first token of
            this step, strictly increasing, in 1..len, at which its state is kept. Multiples of the
            backend's chunk size, which ``build_chunk_meta`` checks.
        checkpoint_indices: For every offset the slot that receives the state.

    Returns:
        A plan that shares no memory with the arguments.

    Raises:
        InvalidPlanError: The description contradicts itself, or two rows would race for a slot.
    """
    starts = int32_array("query_start_loc", query_start_loc)
    num_seqs = starts.size - 1
    check_starts("query_start_loc", starts)
    num_tokens = int(starts[-1])
    lens = starts[1:] - starts[:-1]
    lens.setflags(write=False)
    pad = int_value("pad_slot", pad_slot)
    total = num_tokens if total_tokens is None else int_value("total_tokens", total_tokens)
    if total < num_tokens:
        raise InvalidPlanError(
            "total_tokens", f"{total}", f"at least query_start_loc[-1] = {num_tokens}"
        )

    writes = reads = accepted = None
    if state_indices is not None:
        writes = int32_array("state_indices", state_indices, ndims=(1, 2))
        _check_rows("state_indices", writes, num_seqs)
    if initial_state_indices is not None:
        reads = int32_array("initial_state_indices", initial_state_indices, ndims=(1, 2))
        _check_rows("initial_state_indices", reads, num_seqs)
        if writes is not None and reads.shape != writes.shape:
            raise InvalidPlanError(
                "initial_state_indices",
                f"shape {list(reads.shape)}",
                f"the shape of state_indices, {list(writes.shape)}",
            )
    has_initial = None
    if has_initial_state is not None:
        has_initial = bool_array("has_initial_state", has_initial_state)
        _check_rows("has_initial_state", has_initial, num_seqs)
    is_speculative = None
    if speculative is not None:
        is_speculative = bool_array("speculative", speculative)
        _check_rows("speculative", is_speculative, num_seqs)
        if not is_speculative.any():
            is_speculative = None
    if num_accepted_tokens is not None:
        accepted = int32_array("num_accepted_tokens", num_accepted_tokens)
        _check_rows("num_accepted_tokens", accepted, num_seqs)
    if is_speculative is not None:
        _check_speculative(is_speculative, lens, writes, reads, accepted, pad)
    checkpoints = plan_checkpoints(
        checkpoint_offsets,
        checkpoint_indices,
        seq_lens=lens,
        speculative=is_speculative,
        state_indices=writes,
        pad_slot=pad,
    )

    plan = BatchPlan(
        query_start_loc=starts,
        seq_lens=lens,
        num_seqs=num_seqs,
        num_tokens=num_tokens,
        total_tokens=total,
        max_seqlen=int(lens.max()) if num_seqs else 0,
        state_indices=writes,
        initial_state_indices=reads,
        has_initial_state=has_initial,
        speculative=is_speculative,
        num_accepted_tokens=accepted,
        pad_slot=pad,
        checkpoints=checkpoints,
        max_slot=_max_slot(writes, reads, None if checkpoints is None else checkpoints.slots),
    )
    check_races(plan)
    return plan


def _max_slot(*slots: Int32Array | None) -> int:
    return max((int(some.max()) for some in slots if some is not None and some.size), default=-1)


def check_starts(name: str, starts: Int32Array) -> None:
    """Refuse boundaries that do not begin at 0, or fall."""
    expected = "0, then non-decreasing ends of sequences"
    if starts.size == 0:
        raise InvalidPlanError(name, "no values", expected)
    if starts[0] != 0:
        raise InvalidPlanError(name, f"{starts[0]} at position 0", expected)
    falls = starts[1:] < starts[:-1]
    if falls.any():
        at = int(falls.argmax())
        raise InvalidPlanError(
            name, f"{starts[at]} followed by {starts[at + 1]} (row {at})", expected
        )


def _check_rows(name: str, array: npt.NDArray[np.generic], num_seqs: int) -> None:
    if array.shape[0] != num_seqs:
        raise InvalidPlanError(
            name,
            f"{array.shape[0]} rows",
            f"{num_seqs}, one per sequence of query_start_loc",
        )
    if array.ndim == 2 and array.shape[1] == 0:
        raise InvalidPlanError(name, f"shape {list(array.shape)}", "at least one column")


def _check_speculative(
    speculative: BoolArray,
    lens: Int32Array,
    writes: Int32Array | None,
    reads: Int32Array | None,
    accepted: Int32Array | None,
    pad_slot: int,
) -> None:
    rows = np.flatnonzero(speculative)
    for name, slots in (("state_indices", writes), ("initial_state_indices", reads)):
        if slots is not None and slots.ndim == 1:
            raise InvalidPlanError(
                name,
                f"shape {list(slots.shape)} with speculative row {rows[0]}",
                "shape [N, S], one slot per draft token",
            )
    live = lens[rows] > 0
    most = None
    if writes is not None:
        most = writes.shape[1]
        too_long = lens[rows] > most
        if too_long.any():
            row = rows[too_long.argmax()]
            raise InvalidPlanError(
                "speculative",
                f"row {row} with {lens[row]} draft tokens",
                f"at most S = {most}, the columns of state_indices",
            )
        live &= ~is_padding(writes[rows, 0], pad_slot)
    if accepted is not None:
        # Rows that read nothing may hold anything: engines pad their counts with 0 or 1.
        counts = accepted[rows]
        wrong = live & ((counts < 1) | (counts > (most or counts.max())))
        if wrong.any():
            row = rows[wrong.argmax()]
            raise InvalidPlanError(
                "num_accepted_tokens",
                f"{accepted[row]} in row {row}",
                f"1..{most}" if most else "at least 1",
            )
