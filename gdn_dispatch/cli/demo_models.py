"""The demo's models: real architectures, random weights, one token per byte.

Heads are as wide as in the published models and the Gated DeltaNet layers are as many in four;
everything around them is shrunk, so that a laptop can run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import torch

__all__ = ["MODELS", "DemoModel", "load_text", "make_model"]

_BYTES = 256


@dataclass(frozen=True, slots=True)
class DemoModel:
    """One architecture and its sizes.

    Attributes:
        title: What people call it.
        model_type: What transformers calls it.
        num_heads: H, query and key heads of a Gated DeltaNet layer.
        num_v_heads: HV, its value heads.
        options: Further fields of its configuration.
    """

    title: str
    model_type: str
    num_heads: int
    num_v_heads: int
    options: dict[str, Any]


MODELS: Final = (
    DemoModel(
        "Qwen3-Next", "qwen3_next", 8, 16,
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256,
         "shared_expert_intermediate_size": 256},
    ),
    DemoModel("Qwen3.5", "qwen3_5_text", 16, 32, {"intermediate_size": 1024}),
)  # fmt: skip

_SHRUNK: Final = {
    "vocab_size": _BYTES, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 64, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def load_text() -> bytes:
    """The first chapter of a novel everybody may copy."""
    return resources.files("gdn_dispatch.cli").joinpath("demo_text.txt").read_bytes()


def make_model(model: DemoModel, *, device: str = "cpu", seed: int = 0) -> Any:
    """Build it, with the same random fp32 weights every time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        model.model_type,
        linear_num_key_heads=model.num_heads,
        linear_num_value_heads=model.num_v_heads,
        **_SHRUNK,
        **model.options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().to(device)
