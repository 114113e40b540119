"""The rows of a step by what has to be done with them: prefill, decode, speculative decode.

A group is packed on its own: kernels that take it see its sequences numbered 0..n-1 and its tokens
0..num_tokens-1, wherever they lie in the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gdn_dispatch.plan.arrays import Int32Array, frozen
from gdn_dispatch.plan.batch import BatchPlan

__all__ = ["Groups", "HostGroup", "split"]


@dataclass(frozen=True, slots=True, eq=False)
class HostGroup:
    """Some rows of a step, packed; arrays are read-only int32.

    Attributes:
        sequences: ``[n]`` row numbers, ascending.
        starts: ``[n]`` first token of each row, in the step.
        lens: ``[n]`` tokens of each row.
        cu_seqlens: ``[n+1]`` = [0] + cumsum(lens), packed within the group.
        num_seqs: n. num_tokens: ``cu_seqlens[-1]``. max_seqlen: longest row, 0 if there is none.
        token_start: First token where the group's tokens are one run of the step's, else None.
    """

    sequences: Int32Array
    starts: Int32Array
    lens: Int32Array
    cu_seqlens: Int32Array
    num_seqs: int
    num_tokens: int
    max_seqlen: int
    token_start: int | None

    @staticmethod
    def empty() -> HostGroup:
        """A group without rows."""
        none = frozen(np.empty(0, np.int32))
        return HostGroup(none, none, none, frozen(np.zeros(1, np.int32)), 0, 0, 0, 0)

    def write_token_indices(self, out: Int32Array) -> None:
        """Write ``[num_tokens]``: where in the step each token of the group lies."""
        np.add(
            np.arange(self.num_tokens, dtype=np.int32),
            np.repeat(self.starts - self.cu_seqlens[:-1], self.lens),
            out=out,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The groups of a step; a group without rows is None."""

    prefill: HostGroup | None
    decode: HostGroup | None
    speculative: HostGroup | None


def split(plan: BatchPlan, *, serving: bool) -> Groups:
    """Sort the rows of ``plan`` into groups.

    Speculative rows are speculative, other rows of one token are decodes, and the rest are
    prefills. Rows without tokens go with the prefills if there are any, and with the decodes
    otherwise, so that a captured decode step keeps its shape when some of its rows are padding.

    Args:
        plan: The step.
        serving: Whether rows have slots. Without them all rows are prefills: recurrence only.
    """
    if plan.num_seqs == 0:
        return Groups(None, None, None)
    if not serving:
        return Groups(_all_rows(plan), None, None)
    if plan.speculative is None:
        if plan.max_seqlen <= 1:
            return Groups(None, _all_rows(plan), None)
        one = plan.seq_lens == 1
        if not one.any():
            return Groups(_all_rows(plan), None, None)
        return Groups(_rows(plan, ~one), _rows(plan, one), None)
    if plan.speculative.all():
        return Groups(None, None, _all_rows(plan))
    others = ~plan.speculative
    prefill = None
    decode = others & (plan.seq_lens == 1)
    if (others & (plan.seq_lens > 1)).any():
        prefill = others & ~decode
    else:
        decode = others
    return Groups(
        None if prefill is None else _rows(plan, prefill),
        _rows(plan, decode) if decode.any() else None,
        _rows(plan, plan.speculative),
    )


def _all_rows(plan: BatchPlan) -> HostGroup:
    return HostGroup(
        sequences=frozen(np.arange(plan.num_seqs, dtype=np.int32)),
        starts=plan.query_start_loc[:-1],
        lens=plan.seq_lens,
        cu_seqlens=plan.query_start_loc,
        num_seqs=plan.num_seqs,
        num_tokens=plan.num_tokens,
        max_seqlen=plan.max_seqlen,
        token_start=0,
    )


def _rows(plan: BatchPlan, mask: npt.NDArray[np.bool_]) -> HostGroup:
    rows = np.flatnonzero(mask)
    starts, lens = plan.query_start_loc[rows], plan.seq_lens[rows]
    cu_seqlens = np.zeros(rows.size + 1, np.int32)
    np.cumsum(lens, out=cu_seqlens[1:])
    return HostGroup(
        sequences=frozen(rows.astype(np.int32)),
        starts=frozen(starts),
        lens=frozen(lens),
        cu_seqlens=frozen(cu_seqlens),
        num_seqs=rows.size,
        num_tokens=int(cu_seqlens[-1]),
        max_seqlen=int(lens.max()),
        token_start=_run_start(starts, lens, cu_seqlens),
    )


def _run_start(starts: Int32Array, lens: Int32Array, cu_seqlens: Int32Array) -> int | None:
    # One run: every row with tokens begins where the tokens before it, packed, would end.
    shifts = (starts - cu_seqlens[:-1])[lens > 0]
    if shifts.size == 0:
        return int(starts[0])
    first = int(shifts[0])
    return first if (shifts == first).all() else None
