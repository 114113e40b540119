"""Inputs of the benchmark's cases: Qwen3-Next's geometry, values of a trained model's ranges."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Final

import torch

from gdn_dispatch import api

__all__ = [
    "HV",
    "SHAPE",
    "WANTED",
    "H",
    "Inputs",
    "K",
    "V",
    "layer_inputs",
    "rule_inputs",
    "run_layer",
    "states",
]

H, HV, K, V, W = 16, 32, 128, 128, 4
SHAPE: Final = f"H={H} HV={HV} K={K} V={V}, q/k/v/beta bfloat16, g and states float32"
WANTED: Final = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}

Inputs = tuple[torch.Tensor, ...]


def rule_inputs(B: int, T: int, h: int = H, hv: int = HV) -> Inputs:
    """q, k, v, g, beta of a trained model's ranges: decay of exp(A_log) 0..16 and dt 1e-3..1e-1."""
    draw = torch.Generator().manual_seed(0)
    rand = partial(torch.rand, generator=draw)
    q, k, v = (torch.randn(B, T, n, K, generator=draw).bfloat16() for n in (h, h, hv))
    dt = torch.exp(math.log(1e-3) + math.log(1e2) * rand(B, T, hv))
    return q, k, v, -16 * rand(hv) * dt, rand(B, T, hv).bfloat16()


def states(N: int, hv: int = HV) -> torch.Tensor:
    """``[N, hv, K, V]`` fp32."""
    return torch.randn(N, hv, K, V, generator=torch.Generator().manual_seed(1))


def layer_inputs(B: int, h: int, hv: int) -> dict[str, torch.Tensor]:
    """A whole layer core in decode: B sequences, pools included."""
    draw = torch.Generator().manual_seed(0)
    D = 2 * h * K + hv * V
    shapes = {
        "x": (B, D), "a": (B, hv), "b": (B, hv), "weight": (D, W), "conv": (B, D, W - 1),
    }  # fmt: skip
    tensors = {n: torch.randn(*shape, generator=draw).bfloat16() for n, shape in shapes.items()}
    A_log, dt_bias = torch.randn(2, hv, generator=draw)
    return {**tensors, "A_log": A_log, "dt_bias": dt_bias, "state": states(B, hv)}


def run_layer(x: dict[str, torch.Tensor], meta: Any, backend: str | None = None) -> torch.Tensor:
    """``gdn_attention`` on ``layer_inputs``."""
    return api.gdn_attention(
        x["x"], x["a"], x["b"], meta=meta, conv_state=x["conv"], ssm_state=x["state"],
        conv_weight=x["weight"], A_log=x["A_log"], dt_bias=x["dt_bias"], out=x.get("out"),
        backend=backend,
    )  # fmt: skip
