"""What a rule reads, and where its states come from and go to, whatever launches its kernels.

No Triton here: kernels for devices whose Triton lacks what ``prefill`` imports take these, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gdn_dispatch.triton_kernels.rows import Slots
    from gdn_dispatch.types import RuleRequest

__all__ = ["CHUNK", "PrefillInputs", "States", "final_state", "flat_tokens"]

CHUNK = 64
"""Tokens per chunk: checkpoints fall on its multiples, ``Rows.chunks.size`` is this."""


@dataclass(slots=True, eq=False)
class PrefillInputs:
    """What the rule reads, for all tokens of the step.

    Attributes:
        q, k: ``[T, H, K]``; last stride 1. v: ``[T, HV, V]`` likewise. bf16, fp16 or fp32.
        g: ``[T, HV]`` natural-log decay, <= 0, may be -inf; or the raw gate, with ``A_log``.
        beta: ``[T, HV]`` write strength, or its logit. Both: any float dtype, any strides.
        A_log: ``[HV]``, or None: ``g`` is the decay. dt_bias: ``[HV]``, or None: 0.
        scale: Factor on the output.
        l2norm: Normalise q and k over K (x / sqrt(sum x^2 + 1e-6)).
        beta_is_logit: Write strength is ``sigmoid(beta)``.
        allow_neg_eigval: Write strength is doubled.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    A_log: torch.Tensor | None = None
    dt_bias: torch.Tensor | None = None
    scale: float = 1.0
    l2norm: bool = False
    beta_is_logit: bool = False
    allow_neg_eigval: bool = False


@dataclass(slots=True, eq=False)
class States:
    """Where states come from and go to.

    Attributes:
        initial: ``[slots, HV, V, K]`` with ``state_v_first``, else ``[slots, HV, K, V]``; any
            strides, any float dtype. None: zeros.
        final: The same tensor, for a pool; another one; or None: not wanted.
        state_v_first: The layout of both.
        slots: Which rows of the two belong to which sequence, and the checkpoints (which go to
            ``final``). None: row i of the group has index i in both, and a row of no tokens leaves
            its initial state, or zeros, in ``final``.
    """

    initial: torch.Tensor | None = None
    final: torch.Tensor | None = None
    state_v_first: bool = True
    slots: Slots | None = None

    def strides(self, state: torch.Tensor | None) -> tuple[int, int, int, int]:
        """Strides of slot, head, v and k."""
        if state is None:
            return 0, 0, 0, 0
        slot, head, *inner = state.stride()
        v, k = inner if self.state_v_first else reversed(inner)
        return slot, head, v, k

    def slot_arguments(self) -> tuple[torch.Tensor | int | None, ...]:
        """Slots and checkpoints as kernels take them, those' number, and the padding's slot."""
        slots = self.slots
        if slots is None:
            return None, None, None, None, None, None, 0, -1
        checkpoints = slots.checkpoint_sequences
        return (
            slots.write,
            slots.read,
            slots.has_initial_state,
            checkpoints,
            slots.checkpoint_offsets,
            slots.checkpoint_slots,
            0 if checkpoints is None else checkpoints.shape[0],
            slots.pad_slot,
        )

    def read_arguments(self) -> tuple[torch.Tensor | int | None, ...]:
        """What says where a row's state is read, as kernels take it, and how many there are."""
        slots, count = self.slots, 0 if self.initial is None else self.initial.shape[0]
        if slots is None:
            return None, None, None, -1, count
        return slots.write, slots.read, slots.has_initial_state, slots.pad_slot, count

    def slot_strides(self) -> tuple[int, int]:
        """Strides of the slots to write and to read."""
        if self.slots is None:
            return 0, 0
        read = self.slots.read
        return self.slots.write.stride(0), 0 if read is None else read.stride(0)


def flat_tokens(x: torch.Tensor) -> torch.Tensor:
    """``[B, T, heads, dim]`` as ``[B*T, heads, dim]`` with last stride 1, a view if possible."""
    return (x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()).flatten(0, 1)


def final_state(request: RuleRequest, rows: int) -> torch.Tensor | None:
    """Where a rule leaves its fp32 states: new memory, or the donated initial state's; or None.

    For kernels in which a program reads its part of the state before it writes it.
    """
    if not request.output_final_state:
        return None
    state = request.initial_state
    if request.donate_initial_state and state is not None and state.dtype == torch.float32:
        return state
    K, (HV, V) = request.k.shape[3], request.v.shape[2:]
    shape = (rows, HV, V, K) if request.state_v_first else (rows, HV, K, V)
    return torch.empty(shape, dtype=torch.float32, device=request.v.device)
