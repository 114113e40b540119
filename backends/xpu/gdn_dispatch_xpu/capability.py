"""What the backend supports: with kernels of this project, and with Intel's operator."""

from __future__ import annotations

from gdn_dispatch.capability import Capability, Feature

__all__ = ["CAPABILITY", "SYCL", "TRITON"]

TRITON = Capability(
    features=frozenset(Feature) - {Feature.AUTOGRAD, Feature.BATCH_INVARIANT},
    dtypes=("bfloat16", "float16", "float32"),
    state_dtypes=("float32", "bfloat16", "float16"),
    max_head_dim=256,
    max_conv_width=8,
    notes=("nothing has run on an Intel GPU: declared as the portable kernels pass elsewhere",),
)
"""Of the provider ``triton``: the portable kernels."""

CAPABILITY = Capability(
    features=TRITON.features - {Feature.META_UPDATE},
    dtypes=TRITON.dtypes,
    state_dtypes=TRITON.state_dtypes,
    max_head_dim=TRITON.max_head_dim,
    max_conv_width=TRITON.max_conv_width,
    notes=(*TRITON.notes, "metadata updated in place: with xpu/triton"),
)
"""Of the backend: Intel's operator where that can serve a call, and Triton elsewhere."""

SYCL = Capability(
    features=frozenset(
        (
            Feature.GDN_ATTENTION,
            Feature.SPECULATIVE,
            Feature.RAW_PROJECTIONS,
            Feature.STATE_V_FIRST,
            Feature.NO_HOST_READ,
        )
    ),
    dtypes=("bfloat16", "float16"),
    state_dtypes=("float32", "bfloat16", "float16"),
    head_dims_k=(32, 64, 128, 256),
    head_dims_v=(32, 64, 96, 128, 160, 192, 224, 256),
    max_conv_width=5,
    notes=(
        "states with V first, conv lines with channels last, HV a multiple of 4, silu, no custom "
        "scale: each refused by name",
    ),
)
"""Of the provider ``sycl``: what ``gdn_attention`` of vllm-xpu-kernels takes.

Its chunk kernels take fp16 and bf16 alone. K is 32 lanes times 1, 2, 4 or 8; V goes in groups of
32; other widths than W = 1..5 are a silent no-op there.
"""
