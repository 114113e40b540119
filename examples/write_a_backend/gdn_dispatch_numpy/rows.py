"""Which slots of the state pools each row of a step uses.

A *row* is one sequence of a step: some new tokens, a state to start from and a place to leave the
new one. Every row has two kinds of memory in the pools: the recurrent state ``[HV, K, V]``, and the
conv line, whose columns are the last inputs of the convolution. What is written where:

==============  ==========================  ====================================================
row             recurrent state             conv line, of [history | tokens]
==============  ==========================  ====================================================
ordinary        after its last token        the last W-1 columns
its checkpoint  after so many tokens        the W-1 columns up to there
speculative     after each token, to the    all but the oldest column, to the first slot: whoever
                slot of that column         accepts n tokens reads from column n-1 of it
==============  ==========================  ====================================================

On a CPU a tensor's ``.numpy()`` is the same memory, so slots are read here. A backend for an
accelerator hands ``meta.state_indices`` and its neighbours to its kernels as they are instead:
there nothing may read a device tensor on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gdn_dispatch import ChunkMeta, GDNRequest, InvalidArgumentError
from gdn_dispatch.meta import SequenceGroup


@dataclass(frozen=True)
class Row:
    """One row of a step. A padding row writes nothing, and its output is zero.

    Attributes:
        tokens: Its tokens in the step.
        state_from: Slot of the state it starts from, or None: zeros.
        history_from: Slot of its conv line and the first of W-1 columns in it, or None: zeros.
        states_to: ``(tokens, slot)`` in rising order: after so many tokens, the state goes there
            (None: nowhere). The last is for all its tokens; a padding row has none.
        lines_to: ``(tokens, columns, slot)``: the last ``columns`` columns of the conv line after
            so many tokens.
    """

    tokens: slice
    state_from: int | None = None
    history_from: tuple[int, int] | None = None
    states_to: tuple[tuple[int, int | None], ...] = ()
    lines_to: tuple[tuple[int, int, int], ...] = ()

    @property
    def is_padding(self) -> bool:
        """Whether it has tokens but no slot."""
        return not self.states_to


def rows_of(group: SequenceGroup, request: GDNRequest) -> list[Row]:
    """The rows of a group that have tokens.

    Raises:
        InvalidArgumentError: A slot lies outside the pools. The core has checked those of the plan;
            those an engine gave as tensors it does not read.
    """
    meta, W = request.meta, request.conv_weight.shape[1]
    pool_size = min(request.conv_state.shape[0], request.ssm_state.shape[0])

    def slot(name: str, value: int) -> int | None:
        if value < 0 or value == meta.plan.pad_slot:
            return None
        if value >= pool_size:
            raise InvalidArgumentError(name, f"slot {value}", f"slots below {pool_size}")
        return int(value)

    # These may have more rows than the step: an engine's buffers are as long as its largest step.
    writes = _columns(meta.state_indices)
    reads = writes if meta.initial_state_indices is None else _columns(meta.initial_state_indices)
    has_state = None if meta.has_initial_state is None else meta.has_initial_state.numpy()
    speculative = group is meta.speculative
    checkpoints = {} if speculative else _checkpoints(meta)

    rows = []
    host = group.host
    lists = (host.sequences.tolist(), host.starts.tolist(), host.lens.tolist())
    for n, start, length in zip(*lists, strict=True):
        tokens = slice(start, start + length)
        own = slot("state_indices", writes[n, 0])
        if length == 0:
            continue
        if own is None:
            rows.append(Row(tokens))
            continue

        accepted = _accepted(meta, n, writes.shape[1]) if speculative else 1
        state_from = history_from = None
        if has_state is None or has_state[n]:
            state_from = slot("initial_state_indices", reads[n, accepted - 1])
            line = slot("initial_state_indices", reads[n, 0])
            history_from = None if line is None else (line, accepted - 1)

        if speculative:
            slots = [slot("state_indices", value) for value in writes[n, :length]]
            states_to = tuple(enumerate(slots, start=1))
            rows.append(
                Row(tokens, state_from, history_from, states_to, ((length, W - 2 + length, own),))
            )
        else:
            kept = (*checkpoints.get(n, ()), (length, own))
            lines_to = tuple((after, W - 1, target) for after, target in kept)
            rows.append(Row(tokens, state_from, history_from, kept, lines_to))
    return rows


def _columns(slots: torch.Tensor | None) -> npt.NDArray[np.integer[Any]]:
    """Slots as ``[N, S]``, whether an engine gave ``[N, S]`` or, without drafts, ``[N]``."""
    if slots is None:  # the core has refused metadata without slots
        raise TypeError("gdn_attention needs metadata with slots")
    array = slots.numpy()
    return array[:, None] if array.ndim == 1 else array


def _accepted(meta: ChunkMeta, n: int, most: int) -> int:
    """Accepted draft tokens of the last step, which say how far along its slots a row reads."""
    if meta.num_accepted_tokens is None:  # the core has refused it
        raise TypeError("speculative rows need num_accepted_tokens")
    accepted = int(meta.num_accepted_tokens.numpy()[n])
    if not 1 <= accepted <= most:
        name = "num_accepted_tokens"
        raise InvalidArgumentError(name, f"{accepted} in row {n}", f"1 to {most}")
    return accepted


def _checkpoints(meta: ChunkMeta) -> dict[int, list[tuple[int, int]]]:
    """``(tokens, slot)`` of every checkpoint, by row."""
    found: dict[int, list[tuple[int, int]]] = {}
    if meta.plan.checkpoints is not None:
        kept = meta.plan.checkpoints  # sorted by row, then by tokens
        for n, after, slot in zip(kept.sequences, kept.offsets, kept.slots, strict=True):
            found.setdefault(int(n), []).append((int(after), int(slot)))
    return found
