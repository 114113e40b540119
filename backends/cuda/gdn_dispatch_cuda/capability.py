"""What the backend supports: with kernels of its own, and with the libraries it can use."""

from __future__ import annotations

from dataclasses import replace

from gdn_dispatch.capability import Capability, Feature

__all__ = ["CAPABILITY", "INVARIANT"]

CAPABILITY = Capability(
    features=frozenset(Feature) - {Feature.AUTOGRAD, Feature.BATCH_INVARIANT},
    dtypes=("bfloat16", "float16", "float32"),
    state_dtypes=("float32", "bfloat16", "float16"),
    max_head_dim=256,
    max_conv_width=8,
    notes=(
        "inputs of a rule whose last stride is not 1 are copied; so are interleaved projections",
        "batch invariance: with cuda/triton_invariant (13 of 13 on an H200)",
    ),
)
"""Of the backend, and of the provider ``triton``: Triton kernels of this project."""

INVARIANT = replace(CAPABILITY, features=CAPABILITY.features | {Feature.BATCH_INVARIANT})
"""Of the provider ``triton_invariant``: the same kernels, never launched by the batch's size."""
