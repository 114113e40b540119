"""The step's metadata: vLLM's, with a ``ChunkMeta`` beside it that all layers of the group share.

vLLM splits a step with draft tokens into speculative and other rows and gathers their tokens apart.
Here the rows stay where they are: one plan over the step's own ``query_start_loc``, in which a row
is speculative or is not, so a layer hands over its tensors as they came.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first
from vllm.v1.attention.backends.gdn_attn import (
    GDNAttentionBackend,
    GDNAttentionMetadata,
    GDNAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.utils import NULL_BLOCK_ID, mamba_get_block_table_tensor

from gdn_dispatch.api import build_chunk_meta, plan_batch
from gdn_dispatch.errors import MetadataError
from gdn_dispatch.integrations.vllm.choice import backend_argument, choose
from gdn_dispatch.integrations.vllm.observability import announce, count, count_step
from gdn_dispatch.integrations.vllm.versions import vllm_version
from gdn_dispatch.meta import ChunkMeta
from gdn_dispatch.plan.batch import BatchPlan

__all__ = ["DispatchGDNBackend", "DispatchGDNMetadata", "DispatchGDNMetadataBuilder"]


@dataclass
class DispatchGDNMetadata(GDNAttentionMetadata):
    """vLLM's metadata of a step, and this package's.

    Attributes:
        chunk_meta: What every layer of the KV cache group passes to ``gdn_attention``.
        gdn_backend: ``name`` or ``name/provider`` of the backend it was built for.
    """

    chunk_meta: ChunkMeta | None = None
    gdn_backend: str | None = None


class DispatchGDNBackend(GDNAttentionBackend):
    """vLLM's backend of Gated DeltaNet layers with this package's metadata builder."""

    @staticmethod
    def get_builder_cls() -> type[Any]:
        """See vLLM's ``AttentionBackend``."""
        return DispatchGDNMetadataBuilder


class DispatchGDNMetadataBuilder(GDNAttentionMetadataBuilder):
    """Builds vLLM's metadata, then plans the same step and builds the ``ChunkMeta``."""

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        selection = choose(
            device.type,
            kv_cache_spec.shapes,
            kv_cache_spec.dtypes,
            num_spec=self.num_spec,
            conv_dim_first=is_conv_state_dim_first(),
            dtype=vllm_config.model_config.dtype,
        )
        self._backend = backend_argument(selection)
        announce(selection, vllm_version() or "", captured=self.use_full_cuda_graph)
        self._num_v_heads = int(kv_cache_spec.shapes[1][0])
        self._capturing = False
        # What captured graphs read, by number of rows and whether they are speculative.
        self._captured: dict[tuple[int, bool], ChunkMeta] = {}

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: Any,
        num_accepted_tokens: torch.Tensor | None = None,
        num_decode_draft_tokens_cpu: torch.Tensor | None = None,
        fast_build: bool = False,
    ) -> DispatchGDNMetadata:
        """See vLLM's ``AttentionMetadataBuilder.build``."""
        theirs = super().build(
            common_prefix_len,
            common_attn_metadata,
            num_accepted_tokens,
            num_decode_draft_tokens_cpu,
            fast_build,
        )
        if theirs.checkpoint is not None:
            # The layer asks for none (get_prefill_checkpoint_alignment): vLLM then ends a chunk of
            # the prompt wherever it wants a state, and a block written by nobody would be cached.
            raise MetadataError(
                "checkpoint",
                "checkpoints inside a prefill",
                "none, as the layer declares",
                hint="another layer class shares this attention group",
            )
        meta = self._chunk_meta(
            theirs, common_attn_metadata, num_accepted_tokens, num_decode_draft_tokens_cpu
        )
        count_step(meta)
        fields = {field.name: getattr(theirs, field.name) for field in dataclasses.fields(theirs)}
        return DispatchGDNMetadata(**fields, chunk_meta=meta, gdn_backend=self._backend)

    def build_for_cudagraph_capture(self, common_attn_metadata: Any) -> DispatchGDNMetadata:
        """See vLLM's ``AttentionMetadataBuilder``; what is built is kept and updated in place."""
        self._capturing = True
        try:
            metadata: DispatchGDNMetadata = super().build_for_cudagraph_capture(
                common_attn_metadata
            )
        finally:
            self._capturing = False
        return metadata

    def _build_chunk_metadata(
        self,
        prefill_query_start_loc: torch.Tensor,
        prefill_query_start_loc_cpu: torch.Tensor,
        device: torch.device,
    ) -> tuple[None, None]:
        # vLLM's chunk tables would be read by nobody; the plan has its own.
        return None, None

    def _chunk_meta(
        self,
        theirs: Any,
        step: Any,
        num_accepted_tokens: torch.Tensor | None,
        drafts: torch.Tensor | None,
    ) -> ChunkMeta:
        plan = self._plan(theirs, step, drafts)
        state_indices, accepted = self._slots(theirs, step, num_accepted_tokens, plan)
        key = (plan.num_seqs, accepted is not None)
        # Only where vLLM has put the slots into its own buffers can a graph be reading them.
        staged = theirs.num_prefills == 0 and self._is_staged(state_indices)
        if staged and not self._capturing and (held := self._captured.get(key)) is not None:
            held.update_(plan)
            count("metadata:updated")
            return held
        meta = build_chunk_meta(
            plan,
            step.query_start_loc.device,
            state_indices=state_indices,
            num_accepted_tokens=accepted,
            num_v_heads=self._num_v_heads,
            backend=self._backend,
        )
        if staged and self._capturing:
            self._captured[key] = meta
        return meta

    def _plan(self, theirs: Any, step: Any, drafts: torch.Tensor | None) -> BatchPlan:
        """The step in its own order; everything here is on the host already."""
        starts = _host("query_start_loc_cpu", step.query_start_loc_cpu)[: step.num_reqs + 1]
        lens = starts[1:] - starts[:-1]
        speculative = None
        if theirs.num_spec_decodes:
            speculative = _host("num_decode_draft_tokens_cpu", drafts)[: step.num_reqs] >= 0
            if not theirs.num_prefills:
                # Rows that pad a captured step: without tokens, but in the group it was captured
                # with, which is the only one.
                speculative = speculative | (lens == 0)
        has_initial_state = None
        if theirs.num_prefills:
            # Exact for prefills. For decodes it is an upper bound, and they always have a state.
            upper = _host("seq_lens_cpu_upper_bound", step.seq_lens_cpu_upper_bound)
            has_initial_state = upper[: step.num_reqs] > lens
        return plan_batch(
            starts,
            speculative=speculative,
            has_initial_state=has_initial_state,
            total_tokens=max(step.num_actual_tokens, int(starts[-1])),
            pad_slot=NULL_BLOCK_ID,
        )

    def _slots(
        self,
        theirs: Any,
        step: Any,
        num_accepted_tokens: torch.Tensor | None,
        plan: BatchPlan,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``[N]`` slots; or ``[N, S]`` and ``[N]`` accepted counts where rows are speculative.

        All of them vLLM's own device tensors. Where it staged them for a captured graph, its
        persistent buffers.
        """
        N = plan.num_seqs
        if plan.speculative is None:
            return theirs.non_spec_state_indices_tensor[:N], None
        if not theirs.num_prefills and theirs.spec_state_indices_tensor.shape[0] == N:
            return theirs.spec_state_indices_tensor, theirs.num_accepted_tokens
        if num_accepted_tokens is None:
            raise MetadataError(
                "num_accepted_tokens", "None with speculative rows", "one count per request"
            )
        block_table = mamba_get_block_table_tensor(
            step.block_table_tensor,
            step.seq_lens,
            self.kv_cache_spec,
            self.vllm_config.cache_config.mamba_cache_mode,
        )
        return block_table[:N, : self.num_spec + 1], num_accepted_tokens[:N]

    def _is_staged(self, state_indices: torch.Tensor) -> bool:
        buffers = (self.spec_state_indices_tensor, self.non_spec_state_indices_tensor)
        return self.use_full_cuda_graph and any(
            state_indices.data_ptr() == buffer.data_ptr() for buffer in buffers
        )


def _host(name: str, tensor: torch.Tensor | None) -> npt.NDArray[Any]:
    if tensor is None:
        raise MetadataError(
            name, "None", "a CPU tensor, one entry per request",
            hint="vLLM's CommonAttentionMetadata lacks it: a version that was not tested?",
        )  # fmt: skip
    return np.asarray(tensor.numpy())
