"""Tiny random models of every family: three Gated DeltaNet layers and one of full attention."""

from __future__ import annotations

import os
from contextlib import contextmanager

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

pytest.importorskip("transformers", minversion="5.15")

from transformers import AutoConfig, AutoModelForCausalLM

from gdn_dispatch import hookimpl
from gdn_dispatch.selection.dispatch import active_registry

_COMMON = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 32,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.1,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
_EXPERTS = {
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4,
    "num_experts_per_tok": 2,
}  # fmt: skip
_LAYERS = {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
_INDEXER = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 128,
    "indexer_compress_ratio": 16,
}  # fmt: skip

FAMILIES = {
    "qwen3_next": _EXPERTS,
    "qwen3_5_text": {},
    "qwen3_5_moe_text": _EXPERTS,
    "olmo_hybrid": _LAYERS | {"linear_allow_neg_eigval": True},
    "qwen4_exp_text": _EXPERTS | _INDEXER,
}


def make_model(family: str = "qwen3_next", seed: int = 0, **options):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(_COMMON | FAMILIES[family] | options))
    return AutoModelForCausalLM.from_config(config).eval()


def gdn_layers(model):
    return [module for module in model.modules() if type(module).__name__.endswith("DeltaNet")]


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 64, shape, generator=torch.Generator().manual_seed(seed))


class Calls:
    """Counts what the selected backend runs."""

    def __init__(self) -> None:
        self.requests = []

    @hookimpl(wrapper=True)
    def gated_delta_rule(self, request):
        self.requests.append(request)
        return (yield)

    @property
    def chunked(self) -> int:
        return sum(not request.recurrent for request in self.requests)

    @property
    def stepped(self) -> int:
        return sum(request.recurrent for request in self.requests)


@contextmanager
def counted():
    calls = Calls()
    active_registry().register_wrapper(calls, "calls_of_a_test")
    try:
        yield calls
    finally:
        active_registry().unregister("calls_of_a_test")


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Largest difference, relative to the largest value: what rounding in fp32 grows to here."""
    difference = (found - expected).abs().max().item()
    assert difference <= tolerance * expected.abs().max().item() + 1e-8, difference


def checkpoint_activations(model) -> None:
    # transformers 5.2x renamed the method
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()
