"""The core of a vLLM layer on ``gdn_dispatch.gdn_attention``, for the classes that mix it in.

Projections, norm, weights, quantisation, LoRA and tensor parallelism stay vLLM's. What is replaced
lies between the projections and the norm: the method ``_forward_core``, which vLLM calls inside an
operator of its own, where graph compilation splits anyway.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first
from vllm.platforms import current_platform

from gdn_dispatch.api import gdn_attention
from gdn_dispatch.errors import MetadataError
from gdn_dispatch.integrations.vllm.blocks import check_block_size
from gdn_dispatch.integrations.vllm.choice import backend_argument, choose
from gdn_dispatch.integrations.vllm.metadata import DispatchGDNBackend, DispatchGDNMetadata
from gdn_dispatch.integrations.vllm.observability import count
from gdn_dispatch.warmup import LayerSpec, warmup

if TYPE_CHECKING:
    from gdn_dispatch.selection.resolver import Selection

__all__ = ["DispatchCore"]


class DispatchCore:
    """To be mixed in before vLLM's layer class."""

    # vLLM's layer has these.
    prefix: str
    kv_cache: tuple[torch.Tensor, ...]
    activation: str
    conv1d: Any
    A_log: torch.Tensor
    dt_bias: torch.Tensor
    num_spec: int
    get_state_shape: Any
    get_state_dtype: Any
    gdn_selection: Selection
    gdn_limits: tuple[int, int]

    def check_backend(self, vllm_config: Any) -> None:
        """Raise, before weights are loaded, where no backend here can serve this layer."""
        self.gdn_selection = choose(
            current_platform.device_type,
            self.get_state_shape(),
            self.get_state_dtype(),
            num_spec=self.num_spec,
            conv_dim_first=is_conv_state_dim_first(),
            dtype=vllm_config.model_config.dtype,
        )
        scheduler = vllm_config.scheduler_config
        self.gdn_limits = (scheduler.max_num_seqs, scheduler.max_num_batched_tokens)

    def get_kv_cache_spec(self, vllm_config: Any) -> Any:
        """vLLM's; by now the block size is final, and a wrong one is refused."""
        check_block_size(self.gdn_selection, vllm_config.cache_config)
        return super().get_kv_cache_spec(vllm_config)  # type: ignore[misc]

    def get_attn_backend(self) -> type[Any]:
        """Whose metadata builder this layer wants."""
        return DispatchGDNBackend

    def get_prefill_checkpoint_alignment(self) -> int | None:
        """None: no states are kept inside a prefill; the scheduler ends a chunk where it wants one.

        Keeping them needs slots on the host, which vLLM's metadata has on the device alone.
        """
        return None

    def _forward_core(
        self,
        mixed_qkv: torch.Tensor,
        b: torch.Tensor,
        a: torch.Tensor,
        core_attn_out: torch.Tensor,
    ) -> None:
        """Convolution, gates and recurrence of this rank's heads for the whole step.

        Args:
            mixed_qkv: ``[T, D]``, activation dtype, row stride free; rows past the step's are
                padding of a compiled graph.
            b: ``[T, HV]`` raw write strength.
            a: ``[T, HV]`` raw gate.
            core_attn_out: ``[T, HV, V]``, written in full.
        """
        metadata = self._step_metadata()
        if metadata is None:
            # vLLM runs the model like this once before it gives the memory to its pools.
            self._warm_up(mixed_qkv)
            core_attn_out.zero_()
            count("layer:profile")
            return
        meta = metadata.chunk_meta
        if meta is None:
            raise MetadataError(
                "chunk_meta", f"None in the metadata of {self.prefix}",
                "what DispatchGDNMetadataBuilder.build attaches",
                hint="metadata made by something else than that builder",
            )  # fmt: skip
        tokens = meta.plan.total_tokens
        conv_state, ssm_state = self.kv_cache
        if not is_conv_state_dim_first():
            conv_state = conv_state.transpose(-1, -2)
        gdn_attention(
            mixed_qkv[:tokens],
            a[:tokens],
            b[:tokens],
            meta=meta,
            conv_state=conv_state,
            ssm_state=ssm_state,
            conv_weight=self._conv_weight(),
            conv_bias=self.conv1d.bias,
            A_log=self.A_log,
            dt_bias=self.dt_bias,
            activation=self.activation,
            allow_neg_eigval=bool(getattr(self, "allow_neg_eigval", False)),  # OLMo-Hybrid
            state_v_first=True,
            out=core_attn_out[:tokens],
            backend=metadata.gdn_backend,
        )
        core_attn_out[tokens:].zero_()
        count("layer")

    def _warm_up(self, mixed_qkv: torch.Tensor) -> None:
        facts = self.gdn_selection.facts
        spec = LayerSpec(
            num_heads=facts.num_heads,
            num_v_heads=facts.num_v_heads,
            head_dim_k=facts.head_dim_k,
            head_dim_v=facts.head_dim_v,
            dtype=mixed_qkv.dtype,
            state_dtype=self.get_state_dtype()[1],
            conv_width=facts.conv_width,
            conv_bias=self.conv1d.bias is not None,
            conv_dim_first=is_conv_state_dim_first(),
            gate_dtype=self.A_log.dtype,
            dt_bias_dtype=self.dt_bias.dtype,
            activation=self.activation,
            allow_neg_eigval=bool(getattr(self, "allow_neg_eigval", False)),
            num_speculative_tokens=self.num_spec,
        )
        _warm_up_once(
            spec, mixed_qkv.device, *self.gdn_limits, backend_argument(self.gdn_selection)
        )

    def _step_metadata(self) -> DispatchGDNMetadata | None:
        """This layer's, or None in a profile or warm-up run, when there may be no pools yet."""
        by_layer = get_forward_context().attn_metadata
        if not isinstance(by_layer, dict):
            return None
        found = by_layer.get(self.prefix)
        if isinstance(found, DispatchGDNMetadata):
            return found
        # vLLM warms other kernels up with steps that leave layers like this one out, all of them.
        if found is None and not any(
            isinstance(other, DispatchGDNMetadata) for other in by_layer.values()
        ):
            return None
        raise MetadataError(
            f"attn_metadata[{self.prefix!r}]", type(found).__name__, "DispatchGDNMetadata",
            hint="vLLM did not build this step's metadata with the layer's get_attn_backend()",
        )  # fmt: skip

    def _conv_weight(self) -> torch.Tensor:
        """``[D, W]``."""
        # On CPUs with bf16 instructions vLLM packs the parameter for its own kernel, in place, and
        # keeps the original aside.
        unpacked = getattr(self.conv1d, "_cpu_unpacked_conv_weight", None)
        weight: torch.Tensor = self.conv1d.weight if unpacked is None else unpacked
        return weight.view(weight.shape[0], weight.shape[-1])


@lru_cache(maxsize=16)
def _warm_up_once(
    spec: LayerSpec, device: torch.device, max_num_seqs: int, max_num_tokens: int, backend: str
) -> None:
    """All layers of a model are alike, and a model is run without metadata more than once."""
    warmup(
        spec,
        device,
        max_num_seqs=max_num_seqs,
        max_num_tokens=max_num_tokens,
        backend=backend,
    )
