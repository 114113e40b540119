"""Steps of a serving engine on Qwen-like layers, for calls of the adapter."""

from __future__ import annotations

from typing import Any

import torch

from gdn_dispatch import build_chunk_meta, gdn_attention, plan_batch
from gdn_dispatch.testing.layer_inputs import Layer, LayerDims, random_layer, random_tokens
from gdn_dispatch.testing.pools import PoolLayout, Pools
from gdn_dispatch.testing.rule_inputs import starts_of

DIMS = LayerDims(H=2, HV=4, K=32, V=32, W=4)
DTYPE = torch.bfloat16
DRAFTS = 4
SLOTS = 12

STEPS: dict[str, dict[str, Any]] = {
    "prefill": {"lengths": (5, 70, 3), "state_indices": [4, 7, 2]},
    "continued": {
        "lengths": (5, 70), "state_indices": [4, 7], "has_initial_state": [True, False],
    },
    "decode": {"lengths": (1, 1, 1), "state_indices": [4, 7, 2]},
    "mixed": {"lengths": (1, 33, 1, 8), "state_indices": [4, 7, 2, 5],
              "has_initial_state": [True, False, True, True]},
    "padded": {"lengths": (1, 9, 0, 33), "state_indices": [4, -1, 5, 7], "total_tokens": 50},
    "speculative": {
        "lengths": (4, 2, 1), "speculative": [True] * 3, "num_accepted_tokens": [1, 4, 2],
        "state_indices": [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 0]],
    },
    "all kinds": {
        "lengths": (4, 20, 3, 1), "speculative": [True, False, True, False],
        "num_accepted_tokens": [3, 1, 1, 1], "has_initial_state": [True, False, True, True],
        "state_indices": [[1, 2, 3, 4], [0, -1, -1, -1], [5, 6, 7, 8], [9, -1, -1, -1]],
        "total_tokens": 31,
    },
}  # fmt: skip

FORMS = ("columns", "apart", "flat", "interleaved")
"""How an engine passes its projections: columns of one, tensors of their own, or whole ones."""


def layer_of(dims: LayerDims = DIMS, dtype: torch.dtype = DTYPE, **options: Any) -> Layer:
    return random_layer(dims, dtype=dtype).with_options(**options)


def pools_of(dims: LayerDims = DIMS, slots: int = SLOTS, **layout: Any) -> Pools:
    """Pools that hold numbers, in the layout of the operator."""
    layout = {
        "state_v_first": True, "channels_last": True, "extra_columns": DRAFTS - 1, "padding": 40,
        "dtype": DTYPE,
    } | layout  # fmt: skip
    pools = Pools(slots, dims, PoolLayout(**layout))
    rng = torch.Generator().manual_seed(1)
    for pool in (pools.conv, pools.ssm):
        pool.copy_(torch.randn(pool.shape, generator=rng))
    return pools


def meta_of(step: dict[str, Any], **given: Any) -> Any:
    plan = {name: value for name, value in step.items() if name != "lengths"}
    backend = given.pop("backend", "xpu")
    return build_chunk_meta(
        plan_batch(starts_of(step["lengths"]), **plan), "cpu", backend=backend, **given
    )


def inputs_of(form: str, tokens: int, dims: LayerDims = DIMS, dtype: torch.dtype = DTYPE) -> Any:
    """Arguments of ``gdn_attention`` in a form; z among them only with whole projections."""
    split = random_tokens(tokens, dims, dtype=dtype)
    if form == "apart":
        return split.arguments
    gate = torch.randn(tokens, dims.HV, dims.V, generator=torch.Generator().manual_seed(2))
    whole = split.projections(dims, gate.to(dtype), interleaved=form == "interleaved")
    if form != "columns":
        return whole | {"z": torch.full((tokens, dims.HV, dims.V), torch.nan, dtype=dtype)}
    ba = whole["projected_states_ba"]
    return {
        "mixed_qkv": whole["projected_states_qkvz"][:, : dims.D],
        "b": ba[:, : dims.HV],
        "a": ba[:, dims.HV :],
    }


def call(step: dict[str, Any], form: str = "apart", **changes: Any) -> tuple[torch.Tensor, Pools]:
    """One public call; ``changes`` replace arguments or say ``pools``, ``layer``, ``meta``."""
    tokens = step.get("total_tokens", sum(step["lengths"]))
    pools = changes.pop("pools", None) or pools_of()
    layer = changes.pop("layer", None) or layer_of()
    backend = changes.pop("backend", "xpu")
    meta = changes.pop("meta", None) or meta_of(step, backend=backend)
    arguments = inputs_of(form, tokens) | layer.arguments | pools.arguments | changes
    return gdn_attention(**arguments, meta=meta, backend=backend), pools
