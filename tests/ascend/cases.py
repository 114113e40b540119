"""Calls that between them launch every kernel in every configuration of the models served.

What a kernel is compiled for is told by the launches themselves; calls that differ in nothing a
kernel is compiled for come out as one.
"""

from __future__ import annotations

import lowering
import plugins
import torch
from gdn_dispatch_ascend.metadata.device_tables import DeviceTablePool

import gdn_dispatch
from gdn_dispatch import LayerSpec

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
HEADS = ((16, 16), (16, 32), (16, 48), (16, 64))
"""(H, HV) of the Qwen3-Next and Qwen3.5 family, before tensor parallelism."""
TENSOR_PARALLEL = (1, 2, 4, 8)
DIMS = (128, 64)


def served():
    """Layers as they are served: bf16, states in fp32 or bf16, all head counts of all ranks."""
    for K in DIMS:
        for H, HV in HEADS:
            for tp in TENSOR_PARALLEL:
                yield LayerSpec(H // tp, HV // tp, K, K, BF16, FP32, num_speculative_tokens=3)
        for v_first in (True, False):
            for state in (FP32, BF16):
                yield LayerSpec(
                    4, 8, K, K, BF16, state, state_v_first=v_first, num_speculative_tokens=3
                )


def other():
    """What else the backend declares: dtypes, layouts of pools, options of a layer."""
    for K in DIMS:
        for dtype in (FP16, FP32):
            for H, HV in HEADS:
                yield LayerSpec(H // 4, HV // 4, K, K, dtype, FP32, num_speculative_tokens=3)
            for v_first in (True, False):
                for state in (FP32, FP16, BF16):
                    yield LayerSpec(
                        4, 8, K, K, dtype, state, state_v_first=v_first, num_speculative_tokens=3
                    )
        yield LayerSpec(4, 8, K, K, BF16, FP16, num_speculative_tokens=3)
    for dtype in (BF16, FP16, FP32):
        yield LayerSpec(
            4, 8, 128, 128, dtype, FP32, conv_bias=True, conv_dim_first=True, activation=None,
            gate_dtype=dtype, allow_neg_eigval=True, num_speculative_tokens=3,
        )  # fmt: skip
    for W in (2, 3, 5, 8):
        yield LayerSpec(4, 8, 128, 128, BF16, FP32, conv_width=W, num_speculative_tokens=3)


def layer(spec, backend):
    """Prefills, decodes and drafts of all orders of size; then one with checkpoints."""
    gdn_dispatch.warmup(spec, "cpu", max_num_seqs=2, max_num_tokens=1300, backend=backend)
    H, HV, K, V = spec.num_heads, spec.num_v_heads, spec.head_dim_k, spec.head_dim_v
    D = 2 * H * K + HV * V
    plan = gdn_dispatch.plan_batch(
        [0, 200], state_indices=[0], checkpoint_offsets=[[64, 128]], checkpoint_indices=[[1, 2]]
    )
    meta = gdn_dispatch.build_chunk_meta(plan, "cpu", num_v_heads=HV, backend=backend)
    conv_state = torch.zeros(3, spec.conv_width - 1, D, dtype=spec.dtype).transpose(1, 2)
    if spec.conv_dim_first:
        conv_state = conv_state.contiguous()
    gdn_dispatch.gdn_attention(
        torch.zeros(200, D, dtype=spec.dtype), *torch.zeros(2, 200, HV, dtype=spec.dtype),
        meta=meta, conv_state=conv_state,
        ssm_state=torch.zeros(
            3, HV, *((V, K) if spec.state_v_first else (K, V)), dtype=spec.state_dtype
        ),
        conv_weight=torch.zeros(D, spec.conv_width, dtype=spec.dtype),
        conv_bias=torch.zeros(D, dtype=spec.dtype) if spec.conv_bias else None,
        A_log=torch.zeros(HV, dtype=spec.gate_dtype),
        dt_bias=torch.zeros(HV, dtype=spec.gate_dtype),
        activation=spec.activation, allow_neg_eigval=spec.allow_neg_eigval,
        state_v_first=spec.state_v_first, backend=backend,
    )  # fmt: skip


def engine(slot_dtype, backend):
    """A step of all kinds of rows whose slots an engine holds, with others to read from."""
    H, HV, K, S = 4, 8, 128, 3
    D = 2 * H * K + HV * K
    slots = torch.full((3, S), -1, dtype=slot_dtype)
    meta = gdn_dispatch.build_chunk_meta(
        gdn_dispatch.plan_batch([0, 70, 71, 74], speculative=[False, False, True]), "cpu",
        state_indices=slots, initial_state_indices=slots, num_v_heads=HV,
        has_initial_state=torch.ones(3, dtype=torch.bool),
        num_accepted_tokens=torch.ones(3, dtype=slot_dtype), backend=backend,
    )  # fmt: skip
    gdn_dispatch.gdn_attention(
        torch.zeros(74, D, dtype=BF16), *torch.zeros(2, 74, HV, dtype=BF16), meta=meta,
        conv_state=torch.zeros(1, 5, D, dtype=BF16).transpose(1, 2),
        ssm_state=torch.zeros(1, HV, K, K), conv_weight=torch.zeros(D, 4, dtype=BF16),
        A_log=torch.zeros(HV), dt_bias=torch.zeros(HV), state_v_first=True, backend=backend,
    )  # fmt: skip


def rules(dtypes, backend):
    """The recurrence alone, as transformers and FLA's callers ask for it."""
    for dtype in dtypes:
        for K in DIMS:
            q, k = torch.zeros(2, 1, 200, 2, K, dtype=dtype)
            v, g = torch.zeros(1, 200, 4, K, dtype=dtype), torch.zeros(1, 200, 4)
            for call in (
                gdn_dispatch.chunk_gated_delta_rule,
                gdn_dispatch.fused_recurrent_gated_delta_rule,
            ):
                for l2norm, initial, final in (
                    (True, True, True), (False, False, True), (False, False, False),
                ):  # fmt: skip
                    call(
                        q, k, v, g=g, beta=g,
                        initial_state=torch.zeros(1, 4, K, K) if initial else None,
                        output_final_state=final, use_qk_l2norm_in_kernel=l2norm, backend=backend,
                    )  # fmt: skip


def tables():
    """Chunk tables on the device, for every number of value heads."""
    for HV in sorted({HV // tp for _, HV in HEADS for tp in TENSOR_PARALLEL}):
        pool = DeviceTablePool(
            max_seqs=256, max_tokens=8192, num_v_heads=HV, device="cpu", mode="triton"
        )
        for dtype in (torch.int32, torch.int64):
            pool.fill(torch.zeros(257, dtype=dtype))


def launches(everything=False):
    """Every compiled kernel once, in the order of its first launch; and all launches."""
    specs = [*served(), *other()] if everything else list(served())
    plugin = plugins.Plugin(plugins.OF_910B3)
    with plugins.registered(plugin) as backend, lowering.recorded() as made:
        for spec in specs:
            layer(spec, backend)
        for slot_dtype in (torch.int32, torch.int64) if everything else (torch.int32,):
            engine(slot_dtype, backend)
        rules((BF16, FP16, FP32) if everything else (BF16,), backend)
        tables()
    return list({launch.key: launch for launch in reversed(made)}.values())[::-1], made
