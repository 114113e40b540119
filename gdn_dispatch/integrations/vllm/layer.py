"""The layer of Qwen3-Next and Qwen3.5, for vLLM to make in the place of its own."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn import QwenGatedDeltaNetAttention

from gdn_dispatch.integrations.vllm.core import DispatchCore

__all__ = ["DispatchGatedDeltaNetAttention"]


class DispatchGatedDeltaNetAttention(DispatchCore, QwenGatedDeltaNetAttention):
    """vLLM's layer, and our core."""

    def __init__(
        self,
        config: Any,
        vllm_config: Any,
        prefix: str = "",
        gqa_interleaved_layout: bool = False,
        reduce_results: bool = True,
    ) -> None:
        super().__init__(config, vllm_config, prefix, gqa_interleaved_layout, reduce_results)
        # One way through the layer on every device. It leaves _forward_core to us, where those for
        # CPUs, ROCm and XPUs would call operators of their own.
        self._forward_method = self.forward_cuda
        # That way has a branch which fuses the core with the norm and skips _forward_core.
        self.enable_fused_gdn_spec_decode = False
        # vLLM's FlashInfer path keeps states inside a prefill; see DispatchCore.
        self._checkpoint_alignment = None
        self.check_backend(vllm_config)
