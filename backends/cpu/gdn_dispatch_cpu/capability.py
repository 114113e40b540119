"""What the backend supports."""

from __future__ import annotations

from gdn_dispatch.capability import Capability, Feature

__all__ = ["CAPABILITY"]

CAPABILITY = Capability(
    features=frozenset(Feature) - {Feature.AUTOGRAD},
    dtypes=("float32", "bfloat16", "float16"),
    state_dtypes=("float32", "bfloat16", "float16"),
    max_conv_width=8,
    notes=(
        "fastest for K and V of 64 and 128; others are padded to whole vectors in scratch memory",
        "bf16 inputs on CPUs with AVX512-BF16: products with the state take bf16 operands",
    ),
)
