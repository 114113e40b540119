"""What the backend supports, with kernels of its own."""

from __future__ import annotations

from gdn_dispatch.capability import Capability, Feature

__all__ = ["CAPABILITY"]

CAPABILITY = Capability(
    features=frozenset(Feature) - {Feature.AUTOGRAD},
    dtypes=("bfloat16", "float16", "float32"),
    state_dtypes=("float32", "bfloat16", "float16"),
    max_head_dim=128,
    max_conv_width=8,
    notes=(
        "no kernel has run on an NPU: their numbers are those of triton-ascend's interpreter; all "
        "are lowered by triton-ascend, and planned by BiShengIR for Ascend910B3",
        "inputs of a rule whose last stride is not 1 are copied; so are interleaved projections",
    ),
)
