"""Who takes part in a whole layer core: this package's one call, and vLLM's Triton pieces.

With everything an engine's layer does around the recurrence: the convolution on its pool, heads and
gates, states read from and written to the pool. vLLM's pieces are called in the order its layer
calls them in (version 0.33), for a step of prefills.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Final

import torch

from gdn_dispatch import api
from gdn_dispatch.cli.h200.contest import Contestant, Ready, missing, relative_error
from gdn_dispatch.cli.h200.inputs import LayerInputs
from gdn_dispatch.cli.h200.prefill import VLLM_OPS, Ours, chunk_tables, load

__all__ = ["LAYER", "VLLM_CONV", "OurLayer"]

VLLM_CONV: Final = "vllm.model_executor.layers.mamba.ops.causal_conv1d"

CONV_TILE: Final = 8
"""Tokens a program of vLLM's convolution works on."""

PADDING: Final = -1
"""What its tables hold past the last program."""


def _ready(x: LayerInputs, run: Any) -> Ready:
    return Ready([run], partial(_errors, x, run))


def _errors(x: LayerInputs, run: Any) -> dict[str, float]:
    """On the sample of ``LayerInputs.exact``; the pools are put back as they were."""
    sample = x.exact()
    before = x.conv_state.clone(), x.ssm_state.clone()
    output = run()
    got = output.reshape(*x.a.shape, x.ssm_state.shape[2])[sample.rows, sample.heads]
    found = {
        "output": relative_error(got, sample.output),
        "state": relative_error(x.ssm_state[sample.sequence, sample.heads].mT, sample.state),
    }
    x.conv_state.copy_(before[0])
    x.ssm_state.copy_(before[1])
    return found


@dataclass(frozen=True)
class OurLayer:
    """``gdn_attention`` of this package.

    Attributes:
        name: ``backend`` of the call.
    """

    name: str

    def unavailable(self) -> str:
        """See ``Contestant``."""
        return Ours(self.name).unavailable()

    def prepare(self, x: LayerInputs) -> Ready:
        """See ``Contestant``."""
        plan = api.plan_batch(list(x.starts))
        meta = api.build_chunk_meta(
            plan,
            x.a.device,
            state_indices=x.slots,
            has_initial_state=x.has_initial_state,
            backend=self.name,
        )
        run = partial(
            api.gdn_attention,
            x.mixed_qkv,
            x.a,
            x.b,
            meta=meta,
            conv_state=x.conv_state,
            ssm_state=x.ssm_state,
            conv_weight=x.conv_weight,
            A_log=x.A_log,
            dt_bias=x.dt_bias,
            state_v_first=True,
            out=x.a.new_empty(*x.a.shape, x.ssm_state.shape[2]),
            backend=self.name,
        )
        return _ready(x, run)


class VLLMLayer:
    """vLLM's pieces: convolution, preparation, gather, chunk rule, scatter."""

    name = "vLLM Triton"

    def unavailable(self) -> str:
        """See ``Contestant``."""
        return missing("vllm", "vllm")

    def prepare(self, x: LayerInputs) -> Ready:
        """See ``Contestant``."""
        conv = load(VLLM_CONV, "causal_conv1d_fn")
        prepare = load(VLLM_OPS + ".fused_gdn_prefill_post_conv", "fused_post_conv_prep")
        rule = load(VLLM_OPS + ".chunk", "chunk_gated_delta_rule")
        tables = _conv_tables(x)
        indices, offsets = chunk_tables(x.starts, x.a.device)
        K, V = x.ssm_state.shape[3], x.ssm_state.shape[2]
        slots, fresh = x.slots.long(), x.has_initial_state

        @torch.no_grad()
        def run() -> torch.Tensor:
            mixed = conv(
                x.mixed_qkv.transpose(0, 1),
                x.conv_weight,
                None,
                conv_states=x.conv_state,
                query_start_loc=x.cu_seqlens,
                cache_indices=x.slots,
                has_initial_state=x.has_initial_state,
                activation="silu",
                metadata=tables,
            ).transpose(0, 1)
            q, k, v, g, beta = prepare(
                mixed, x.a, x.b, x.A_log, x.dt_bias, x.shape.H, K, V, apply_l2norm=True
            )
            initial = x.ssm_state[slots]
            initial[~fresh, ...] = 0
            output, final = rule(
                *(y.unsqueeze(0) for y in (q, k, v, g, beta)),
                initial_state=initial,
                output_final_state=True,
                cu_seqlens=x.cu_seqlens,
                chunk_indices=indices,
                chunk_offsets=offsets,
                use_qk_l2norm_in_kernel=False,
            )
            x.ssm_state[slots] = final.to(x.ssm_state.dtype)
            found: torch.Tensor = output
            return found

        return _ready(x, run)


def _conv_tables(x: LayerInputs) -> Any:
    """The metadata vLLM's convolution reads: sequence and tile of every program, padded."""
    tiles = [-(-(b - a) // CONV_TILE) for a, b in pairwise(x.starts)]
    programs = [(n, i) for n, count in enumerate(tiles) for i in range(count)]
    size = max(1024, len(programs)) * 2
    sequences, numbers = (
        torch.full((size,), PADDING, dtype=torch.int32, device=x.a.device) for _ in range(2)
    )
    found = torch.tensor(programs, dtype=torch.int32)
    sequences[: len(programs)] = found[:, 0].to(x.a.device)
    numbers[: len(programs)] = found[:, 1].to(x.a.device)
    per_tile = {
        "nums": torch.tensor(tiles),
        "tot": len(programs),
        "mlist": found[:, 0],
        "mlist_len": len(programs),
        "offsetlist": found[:, 1],
        "batch_ptr": sequences,
        "token_chunk_offset_ptr": numbers,
    }
    return SimpleNamespace(
        nums_dict={CONV_TILE: per_tile}, batch_ptr=sequences, token_chunk_offset_ptr=numbers
    )


LAYER: Final[tuple[Contestant[LayerInputs], ...]] = (OurLayer("cuda"), VLLMLayer())
