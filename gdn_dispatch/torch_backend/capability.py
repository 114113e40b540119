"""What the torch backend supports."""

from __future__ import annotations

from gdn_dispatch.capability import Capability, Feature

__all__ = ["CAPABILITY", "CHUNK"]

CHUNK = 32
"""Tokens per chunk of the chunk kernel; checkpoints fall on its multiples."""

CAPABILITY = Capability(
    features=frozenset(Feature),
    dtypes=("float32", "bfloat16", "float16", "float64"),
    state_dtypes=("float32", "bfloat16", "float16", "float64"),
    notes=(
        "gradients: of the recurrence alone, in a slower out-of-place form",
        "float64: the recurrence alone, token by token (the oracle)",
        "on an accelerator only on request; slots given as device tensors are then read once, "
        "when the metadata is built",
    ),
)
