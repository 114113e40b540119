"""Calls that between them launch every kernel in every configuration of the CUDA table."""

from __future__ import annotations

import torch
from gdn_dispatch_cuda.kernels import operands

import gdn_dispatch
from gdn_dispatch import LayerSpec

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

# (H, HV) on one rank: what matters to a kernel is HV / H, and how much there is to do at once
HEADS = ((16, 16), (16, 32), (8, 24), (2, 8))


def specs():
    """Layers: sizes of groups at K = V = 128 in bf16, then what else differs."""
    for H, HV in HEADS:
        yield LayerSpec(H, HV, 128, 128, BF16, FP32, num_speculative_tokens=3)
    yield LayerSpec(4, 8, 128, 128, BF16, BF16, state_v_first=False, num_speculative_tokens=3)
    yield LayerSpec(4, 8, 256, 256, BF16, FP32)
    yield LayerSpec(4, 8, 64, 64, FP32, FP32)
    yield LayerSpec(4, 8, 128, 128, FP16, FP32, conv_bias=True, conv_dim_first=True)
    yield LayerSpec(4, 8, 256, 256, FP16, FP32)


def layer(spec, backend):
    """Prefills, decodes and drafts of all orders of size."""
    gdn_dispatch.warmup(spec, "cpu", max_num_seqs=64, max_num_tokens=4096, backend=backend)


def rules(backend):
    """The recurrence alone, as transformers and FLA's callers ask for it."""
    for dtype, v_first, l2norm in ((BF16, True, True), (BF16, False, False), (FP32, False, True)):
        q, k = (torch.zeros(1, 200, 2, 128, dtype=dtype) for _ in range(2))
        v = torch.zeros(1, 200, 4, 128, dtype=dtype)
        g = torch.zeros(1, 200, 4)
        for call in (
            gdn_dispatch.chunk_gated_delta_rule,
            gdn_dispatch.fused_recurrent_gated_delta_rule,
        ):
            call(
                q, k, v, g=g, beta=g,
                initial_state=torch.zeros(1, 4, 128, 128),
                output_final_state=True,
                use_qk_l2norm_in_kernel=l2norm,
                state_v_first=v_first,
                backend=backend,
            )  # fmt: skip


def rows(backend):
    """Prefills beyond a warm-up's: a long row of 24 heads; many heads; without any state."""
    for H, HV, T in ((8, 24, 8192), (16, 80, 256), (2, 4, 256)):
        q, k = (torch.zeros(1, T, H, 128, dtype=BF16) for _ in range(2))
        v = torch.zeros(1, T, HV, 128, dtype=BF16)
        g = torch.zeros(1, T, HV)
        for l2norm in (False, True):
            gdn_dispatch.chunk_gated_delta_rule(
                q, k, v, g=g, beta=g, use_qk_l2norm_in_kernel=l2norm, backend=backend
            )


def conversions():
    """What the adapters to libraries convert with, in every form they ask for."""
    q = torch.zeros(1, 200, 2, 128, dtype=BF16)
    g = torch.zeros(1, 200, 4, dtype=BF16)
    apart = torch.cat([g, g], 2)[:, :, :4]

    def convert(heads, decay, beta, raw, linear, logit):
        gates = operands.Gates(decay, beta, raw, raw, linear, -60.0, logit, False)
        operands.converted(heads, gates)

    for linear in (False, True):
        for logit in (False, True):
            for raw in (None, torch.zeros(4)):
                convert(None, g if logit else g.float(), g, raw, linear, logit)
        convert(None, apart.float(), apart, None, linear, False)
        convert((q, q), apart, apart, torch.zeros(4), linear, True)
        convert((q, q), g.float(), g.float(), None, linear, False)
