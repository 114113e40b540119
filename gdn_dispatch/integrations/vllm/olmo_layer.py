"""The layer of OLMo-Hybrid, for vLLM to make in the place of its own."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.mamba.gdn.olmo_gdn_linear_attn import (
    OlmoHybridGatedDeltaNetAttention,
)

from gdn_dispatch.integrations.vllm.core import DispatchCore

__all__ = ["DispatchOlmoHybridAttention"]


class DispatchOlmoHybridAttention(DispatchCore, OlmoHybridGatedDeltaNetAttention):
    """vLLM's layer, and our core."""

    def __init__(self, config: Any, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(config, vllm_config, prefix)
        self.check_backend(vllm_config)
