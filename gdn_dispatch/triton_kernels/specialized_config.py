"""Whether and how to launch the kernels of specialised warps; imports neither Triton nor Gluon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["GLUON", "SpecializedConfig", "gluon_is_there"]

GLUON: Final = "3.6."
"""How versions of Triton begin whose Gluon these kernels are written in: it changes between them,
and this is the one they were run with."""


@dataclass(frozen=True, slots=True)
class SpecializedConfig:
    """How to launch ``specialized_prepare_kernel`` and ``specialized_recurrence_kernel``.

    They take bf16 inputs that descriptors can address, and heads of 128; other calls get the
    portable kernels. Their numbers change the speed alone: no bit of a result.

    Attributes:
        parts: Groups of warps that recur, 1 or 2, each over 64 channels of V.
        cut_parts: The same where rows are cut into segments.
        stages: Chunks in shared memory, 2 or 3.
        prepare_heads: Value heads that a program of the preparation prepares a chunk for, at most;
            1, 2 or 4.
        prepare_keys: Key heads that these are of, at most; 1, 2 or 4. More than one only if a
            program has all value heads of each.
        prepare_registers: Per thread of the preparation: as many as let three programs share a
            multiprocessor, where shared memory does, and none spill.
        score_group: Most value heads a key head for which the recurrence computes the scores; for
            more the preparation does, which then reads q once for all of them.
    """

    parts: int = 1
    cut_parts: int = 1
    stages: int = 3
    prepare_heads: int = 4
    prepare_keys: int = 4
    prepare_registers: int = 168
    score_group: int = 2


def gluon_is_there() -> bool:
    """Whether this Triton compiles these kernels; its interpreter does not know Gluon."""
    import triton

    return triton.__version__.startswith(GLUON) and not triton.knobs.runtime.interpret
