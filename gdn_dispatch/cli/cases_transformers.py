"""The torch backend against transformers' own torch functions: prefill, packed, decode."""

from __future__ import annotations

import inspect
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from gdn_dispatch import api
from gdn_dispatch.cli import MissingExtraError, require
from gdn_dispatch.cli.bench import Check, Prepared, timed
from gdn_dispatch.cli.cases_inputs import (
    HV,
    WANTED,
    H,
    Inputs,
    K,
    V,
    layer_inputs,
    rule_inputs,
    run_layer,
    states,
)
from gdn_dispatch.torch_backend.reference import reference_gated_delta_rule, reference_gdn_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

__all__ = ["Timed", "decode", "layer", "packed", "prefill"]

Outputs = tuple[torch.Tensor, torch.Tensor]
Timed: TypeAlias = "Callable[[Callable[[], object]], Callable[[], float]]"
"""Makes a sampler, as ``bench.timed`` does."""
Run = Any
"""``run(inputs, state, lens) -> Outputs``; ``lens`` of the packed sequences, or None."""


def _fallback(name: str) -> Any:
    """Transformers' pure torch function, without the wrapper that may replace it by a kernel."""
    path = "transformers.models.qwen3_next.modeling_qwen3_next"
    module = require(path, extra="transformers", purpose="this suite")
    if not hasattr(module, name):
        raise MissingExtraError(f"transformers has no {name}: pip install 'transformers>=5.15'")
    return inspect.unwrap(getattr(module, name))


def _ours(function: Any, inputs: Inputs, state: torch.Tensor | None, lens: Any) -> Outputs:
    q, k, v, g, beta = inputs
    packed = {} if lens is None else {"cu_seqlens": _starts(lens)}
    result: Outputs = function(q, k, v, g=g, beta=beta, initial_state=state, **packed, **WANTED)
    return result


def _theirs(function: Any, inputs: Inputs, state: torch.Tensor | None, lens: Any) -> Outputs:
    """It knows no packed sequences, so they go one by one."""
    if lens is None:
        result: Outputs = function(*inputs, initial_state=state, **WANTED)
        return result
    ends = _starts(lens).tolist()
    results = [
        function(
            *(x[:, start:end] for x in inputs),
            initial_state=None if state is None else state[n : n + 1],
            **WANTED,
        )
        for n, (start, end) in enumerate(pairwise(ends))
    ]
    return torch.cat([o for o, _ in results], 1), torch.cat([s for _, s in results])


def _starts(lens: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lens)], dtype=torch.int32)


def _rule(
    op: str,
    fallback: str,
    B: int,
    T: int,
    lens: Any,
    with_state: bool,
    small: Any,
    timed: Timed = timed,
) -> Prepared:
    """``small`` is the (B, T, lens) on which both are held against the fp64 recurrence."""
    ours = partial(_ours, getattr(api, op))
    theirs = partial(_theirs, _fallback(fallback))
    inputs, state = rule_inputs(B, T), states(len(lens or range(B))) if with_state else None
    return Prepared(
        timed(lambda: ours(inputs, state, lens)),
        timed(lambda: theirs(inputs, state, lens)),
        lambda: _check_rule(ours, theirs, with_state, *small),
    )


def _check_rule(ours: Run, theirs: Run, with_state: bool, B: int, T: int, lens: Any) -> Check:
    inputs = rule_inputs(B, T, 2, 4)
    state = states(len(lens or range(B)), 4) if with_state else None
    ends = _starts(lens or [T] * B).tolist()
    flat = [x.flatten(0, 1) for x in inputs]
    runs = [
        reference_gated_delta_rule(
            *(x[start:end] for x in flat),
            initial_state=None if state is None else state[n],
            use_qk_l2norm=True,
        )
        for n, (start, end) in enumerate(pairwise(ends))
    ]
    right = torch.cat([o for o, _ in runs]), torch.stack([s for _, s in runs])
    error, peer_error = (_distance(run(inputs, state, lens), right) for run in (ours, theirs))
    return _no_worse(error, peer_error)


def _no_worse(error: float, peer_error: float) -> Check:
    """Less accurate than the peer is a failure; 2 % is for both rounding the output to bf16."""
    text = f"{error:.1e}, peer {peer_error:.1e}"
    return Check(error <= 1.02 * peer_error, text, error, peer_error)


def _distance(got: Outputs, right: Outputs) -> float:
    """Relative Frobenius distance of output or state, whichever is further off."""
    pairs = [(x.double().reshape(y.shape), y) for x, y in zip(got, right, strict=True)]
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)


# A whole layer core in decode, on pools, against the same steps of transformers' model.


def _layer_theirs(conv: Any, rule: Any, x: dict[str, torch.Tensor]) -> torch.Tensor:
    B, hv = x["a"].shape
    h = (x["x"].shape[1] - hv * V) // (2 * K)
    mixed = conv(x["x"][:, :, None], x["conv"], x["weight"], None, "silu").transpose(1, 2)
    q, k, v = mixed.split([h * K, h * K, hv * V], -1)
    g = -x["A_log"].exp() * torch.nn.functional.softplus(x["a"].float() + x["dt_bias"])
    q, k, v = q.view(B, 1, h, K), k.view(B, 1, h, K), v.view(B, 1, hv, V)
    beta = x["b"].sigmoid()[:, None]
    out, x["state"] = rule(q, k, v, g[:, None], beta, initial_state=x["state"], **WANTED)
    return out[:, 0]  # type: ignore[no-any-return]


def layer(B: int, _: ExitStack) -> Prepared:
    """``gdn_attention`` in place, against conv, gates and recurrence out of place."""
    theirs = partial(
        _layer_theirs, _fallback("causal_conv1d_update"),
        _fallback("torch_recurrent_gated_delta_rule"),
    )  # fmt: skip

    def meta(B: int) -> Any:
        plan = api.plan_batch(range(B + 1), state_indices=range(B))
        return api.build_chunk_meta(plan, "cpu", num_v_heads=HV)

    def check() -> Check:
        small = [layer_inputs(2, 2, 4) for _ in range(3)]
        got = run_layer(small[0], meta(2)), small[0]["state"]
        peer = theirs(small[1]), small[1]["state"]
        x = small[2]
        rows = [
            reference_gdn_layer(
                x["x"][n : n + 1], x["a"][n : n + 1], x["b"][n : n + 1], conv_weight=x["weight"],
                conv_bias=None, A_log=x["A_log"], dt_bias=x["dt_bias"], num_heads=2, head_dim_k=K,
                head_dim_v=V, conv_history=x["conv"][n], initial_state=x["state"][n],
            )
            for n in range(2)
        ]  # fmt: skip
        right = torch.cat([row[0] for row in rows]), torch.stack([row[2] for row in rows])
        return _no_worse(_distance(got, right), _distance(peer, right))

    ours, peer, step = layer_inputs(B, H, HV), layer_inputs(B, H, HV), meta(B)
    return Prepared(timed(lambda: run_layer(ours, step)), timed(lambda: theirs(peer)), check)


_LENS = tuple(np.random.default_rng(0).integers(17, 601, 32).tolist())
_CHUNK = partial(_rule, "chunk_gated_delta_rule", "torch_chunk_gated_delta_rule")
_STEP = partial(_rule, "fused_recurrent_gated_delta_rule", "torch_recurrent_gated_delta_rule")


def prefill(T: int, _: ExitStack, timed: Timed = timed) -> Prepared:
    """One sequence of T tokens, from zero."""
    return _CHUNK(1, T, None, False, (1, 200, None), timed)


def packed(_: ExitStack, timed: Timed = timed) -> Prepared:
    """32 sequences of 17 to 600 tokens, with states."""
    return _CHUNK(1, sum(_LENS), _LENS, True, (1, 150, (17, 70, 63)), timed)


def decode(B: int, _: ExitStack, timed: Timed = timed) -> Prepared:
    """One token for each of B sequences; both sides return new states."""
    return _STEP(B, 1, None, True, (2, 1, None), timed)
