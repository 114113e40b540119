"""A good call of every public function, to be spoilt one argument at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import gdn_dispatch
from gdn_dispatch import build_chunk_meta, plan_batch
from gdn_dispatch.testing.layer_inputs import LayerDims, random_layer, random_tokens
from gdn_dispatch.testing.numbers import generator

Arguments = dict[str, Any]

DIMS = LayerDims(H=2, HV=4, K=8, V=6, W=4)
STARTS = [0, 5, 5, 6, 8]
TOKENS = 9
SLOTS = 7


def rule(*, B: int = 2, T: int = 6) -> Arguments:
    rng = generator(0)
    H, HV, K, V = DIMS.H, DIMS.HV, DIMS.K, DIMS.V
    return {
        "q": torch.randn(B, T, H, K, generator=rng),
        "k": torch.randn(B, T, H, K, generator=rng),
        "v": torch.randn(B, T, HV, V, generator=rng),
        "g": -torch.rand(B, T, HV, generator=rng),
        "beta": torch.rand(B, T, HV, generator=rng),
        "initial_state": torch.randn(B, HV, K, V, generator=rng),
        "output_final_state": True,
    }


def packed_rule() -> Arguments:
    arguments = rule(B=1, T=TOKENS)
    arguments["initial_state"] = torch.randn(4, DIMS.HV, DIMS.K, DIMS.V, generator=generator(1))
    arguments["cu_seqlens"] = torch.tensor(STARTS)
    return arguments


def rule_with_meta() -> Arguments:
    arguments = packed_rule()
    del arguments["cu_seqlens"]
    arguments["meta"] = build_chunk_meta(plan_batch(STARTS, total_tokens=TOKENS), "cpu")
    return arguments


def rule_with_raw_gates() -> Arguments:
    gates = {"A_log": torch.zeros(DIMS.HV), "dt_bias": torch.zeros(DIMS.HV)}
    return rule() | gates | {"use_gate_in_kernel": True}


def attention() -> Arguments:
    rng = generator(2)
    layer = random_layer(DIMS)
    tokens = random_tokens(TOKENS, DIMS)
    return {
        **tokens.arguments,
        **layer.arguments,
        "meta": serving_meta(),
        "conv_state": torch.randn(SLOTS, DIMS.D, DIMS.W - 1, generator=rng),
        "ssm_state": torch.randn(SLOTS, DIMS.HV, DIMS.K, DIMS.V, generator=rng),
        "out": torch.randn(TOKENS, DIMS.HV, DIMS.V, generator=rng),
    }


def serving_meta(**plan: Any) -> gdn_dispatch.ChunkMeta:
    step = {"state_indices": [3, 1, -1, 6], "total_tokens": TOKENS} | plan
    return build_chunk_meta(plan_batch(STARTS, **step), "cpu")


def attention_from_projections() -> Arguments:
    arguments = attention()
    for name in ("mixed_qkv", "a", "b"):
        del arguments[name]
    z = torch.randn(TOKENS, DIMS.HV, DIMS.V, generator=generator(3))
    tokens = random_tokens(TOKENS, DIMS)
    return arguments | tokens.projections(DIMS, z, interleaved=False) | {"z": z}


SPECULATIVE = {
    "state_indices": [[3, 1], [2, -1], [-1, -1], [6, 5]],
    "speculative": [False, False, False, True],
    "num_accepted_tokens": [1, 1, 1, 2],
}


def speculative_attention() -> Arguments:
    """As ``attention``; the last row brings two draft tokens."""
    wide = torch.randn(SLOTS, DIMS.D, DIMS.W, generator=generator(4))
    return attention() | {"conv_state": wide, "meta": serving_meta(**SPECULATIVE)}


def plan() -> Arguments:
    return {
        "query_start_loc": STARTS,
        "state_indices": [3, 1, -1, 6],
        "initial_state_indices": [4, 1, -1, 6],
        "has_initial_state": [True, True, False, True],
        "total_tokens": TOKENS,
        "pad_slot": -1,
    }


def speculative_plan() -> Arguments:
    return {"query_start_loc": STARTS} | SPECULATIVE


def plan_with_checkpoints() -> Arguments:
    return {
        "query_start_loc": [0, 70, 75],
        "state_indices": [0, 1],
        "checkpoint_offsets": [[32, 64], []],
        "checkpoint_indices": [[2, 3], []],
    }


def meta() -> Arguments:
    return {
        "plan": plan_batch(STARTS),
        "device": "cpu",
        "state_indices": torch.tensor([3, 1, -1, 6]),
        "initial_state_indices": torch.tensor([4, 1, -1, 6]),
        "has_initial_state": torch.tensor([True, True, False, True]),
    }


def speculative_meta() -> Arguments:
    return {
        "plan": plan_batch(STARTS, speculative=SPECULATIVE["speculative"]),
        "device": "cpu",
        "state_indices": torch.tensor(SPECULATIVE["state_indices"]),
        "num_accepted_tokens": torch.tensor(SPECULATIVE["num_accepted_tokens"]),
    }


def explain() -> Arguments:
    return {"op": "gdn_attention", "device": "cpu", "dtype": "bfloat16", "head_dim_k": 128}


def use_backend() -> Arguments:
    return {"name": "torch"}


def enter_use_backend(name: str | None) -> None:
    with gdn_dispatch.use_backend(name):
        pass


FUNCTIONS: dict[Callable[[], Arguments], tuple[Callable[..., Any], ...]] = {
    rule: (
        gdn_dispatch.chunk_gated_delta_rule,
        gdn_dispatch.fused_recurrent_gated_delta_rule,
    ),
    attention: (gdn_dispatch.gdn_attention,),
    plan: (gdn_dispatch.plan_batch,),
    meta: (gdn_dispatch.build_chunk_meta,),
    use_backend: (enter_use_backend,),
    explain: (gdn_dispatch.explain,),
}
for alike, others in {
    rule: (packed_rule, rule_with_meta, rule_with_raw_gates),
    attention: (attention_from_projections, speculative_attention),
    plan: (speculative_plan, plan_with_checkpoints),
    meta: (speculative_meta,),
}.items():
    FUNCTIONS |= dict.fromkeys(others, FUNCTIONS[alike])
