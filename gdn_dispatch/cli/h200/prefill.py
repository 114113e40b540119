"""Who takes part in the chunk rule: this package, FLA, FlashInfer, FlashQLA, and vLLM's pipeline.

Everybody is given what is native to them, outside the clock: normalised q and k, linear or
logarithmic decay, chunk tables, metadata. What is timed is the library's own public function,
initial states none, final states wanted, as in the published table. The adapters of this package,
``cuda/flashinfer`` and so on, are given what its own kernels are given, and convert inside the
clock; in another part, ``calls``, that includes the normalisation.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final

import torch

from gdn_dispatch import api
from gdn_dispatch.cli.h200.contest import Contestant, Ready, missing, relative_error
from gdn_dispatch.cli.h200.inputs import PrefillInputs
from gdn_dispatch.selection.dispatch import active_registry

__all__ = ["CALLS", "PREFILL", "VLLM_OPS", "Ours", "chunk_tables", "load"]


def _ready(x: PrefillInputs, run: Any, *, v_first: bool, states: bool = False) -> Ready:
    """``run`` returns the output, leading 1s or not, and the final states."""
    return Ready([run], partial(_errors, x, run, v_first, states))


def _errors(x: PrefillInputs, run: Any, v_first: bool, states: bool) -> dict[str, float]:
    """Of the output and the final states, on the sample that ``PrefillInputs.exact`` takes."""
    output, final = run()
    sample = x.exact(initial_states=states)
    state = final[sample.sequence, sample.heads]
    return {
        "output": relative_error(
            output.reshape(x.v.shape)[sample.rows, sample.heads], sample.output
        ),
        "state": relative_error(state.mT if v_first else state, sample.state),
    }


@dataclass(frozen=True)
class Ours:
    """The public function of this package, on one backend or provider.

    Attributes:
        name: ``backend`` of the call.
        whole: A caller's view: q and k are normalised in the call, initial states are given.
    """

    name: str
    whole: bool = False

    def unavailable(self) -> str:
        """See ``Contestant``."""
        backend, _, provider = self.name.partition("/")
        status = next((s for s in active_registry().status() if s.name == backend), None)
        if status is None:
            return f"there is no backend {backend!r}"
        if status.status != "available":
            return f"{status.status}: {status.why}"
        known = () if status.info is None else status.info.providers
        found = next((p for p in known if p.name == provider), None)
        if provider and found is None:
            return f"{backend} has no provider {provider!r}"
        return "" if found is None else found.unavailable

    def prepare(self, x: PrefillInputs) -> Ready:
        """See ``Contestant``."""
        plan = api.plan_batch(list(x.starts), total_tokens=x.starts[-1])
        meta = api.build_chunk_meta(plan, x.q.device, backend=self.name)
        rule: Any = api.chunk_gated_delta_rule
        run: Any = partial(
            rule,
            *(y.unsqueeze(0) for y in (x.q, x.k, x.v, x.g, x.beta)),
            initial_state=x.states if self.whole else None,
            output_final_state=True,
            use_qk_l2norm_in_kernel=self.whole,
            state_v_first=True,
            meta=meta,
            backend=self.name,
        )
        return _ready(x, run, v_first=True, states=self.whole)


class FLA:
    """fla-core's chunk rule, as its own kernels: not what its dispatcher may put in their place."""

    name = "FLA"

    def unavailable(self) -> str:
        """See ``Contestant``."""
        return missing("fla-core", "fla")

    def prepare(self, x: PrefillInputs) -> Ready:
        """See ``Contestant``."""
        rule = load("fla.ops.gated_delta_rule", "chunk_gated_delta_rule")
        table = _chunk_indices(x)
        run: Any = partial(
            inspect.unwrap(rule),
            *(y.unsqueeze(0) for y in (x.q, x.k, x.v, x.g, x.beta)),
            scale=x.q.shape[2] ** -0.5,
            output_final_state=True,
            cu_seqlens=x.cu_seqlens,
            chunk_indices=table,
        )
        return _ready(x, run, v_first=False)


class FlashInfer:
    """FlashInfer's prefill, with context parallelism where it thinks fit."""

    name = "FlashInfer"

    def unavailable(self) -> str:
        """See ``Contestant``."""
        return missing("flashinfer-python", "flashinfer")

    def prepare(self, x: PrefillInputs) -> Ready:
        """See ``Contestant``."""
        rule = load("flashinfer.gdn_prefill", "chunk_gated_delta_rule")
        hints = {"max_seqlen": x.shape.facts["longest"]} if _takes(rule, "max_seqlen") else {}
        run: Any = partial(
            rule,
            x.q,
            x.k,
            x.v,
            g=x.g.exp(),
            beta=x.beta,
            scale=x.q.shape[2] ** -0.5,
            output_final_state=True,
            cu_seqlens=x.cu_seqlens,
            output=torch.empty_like(x.v),
            output_state=torch.empty_like(x.states),
            use_cp="auto",
            **hints,
        )
        return _ready(x, run, v_first=True)


class FlashQLA:
    """FlashQLA's chunk rule, with context parallelism where it thinks fit.

    Its plan for these cu_seqlens is made by the first call and found again by the next: that reads
    the device once, and no captured or timed call does.
    """

    name = "FlashQLA"

    def unavailable(self) -> str:
        """See ``Contestant``."""
        return missing("flash-qla", "flash_qla")

    def prepare(self, x: PrefillInputs) -> Ready:
        """See ``Contestant``."""
        rule = load("flash_qla", "chunk_gated_delta_rule")
        run: Any = partial(
            torch.no_grad()(rule),
            *(y.unsqueeze(0) for y in (x.q, x.k, x.v, x.g, x.beta)),
            scale=x.q.shape[2] ** -0.5,
            output_final_state=True,
            cu_seqlens=x.cu_seqlens,
        )
        return _ready(x, run, v_first=False)


class VLLM:
    """vLLM's Triton pipeline, a copy of FLA's kernels, with the chunk tables its builder makes."""

    name = "vLLM Triton"

    def unavailable(self) -> str:
        """See ``Contestant``."""
        return missing("vllm", "vllm")

    def prepare(self, x: PrefillInputs) -> Ready:
        """See ``Contestant``."""
        rule = load(VLLM_OPS + ".chunk", "chunk_gated_delta_rule")
        indices, offsets = chunk_tables(x.starts, x.q.device)
        run: Any = partial(
            torch.no_grad()(rule),
            *(y.unsqueeze(0) for y in (x.q, x.k, x.v, x.g, x.beta)),
            scale=x.q.shape[2] ** -0.5,
            initial_state=None,
            output_final_state=True,
            cu_seqlens=x.cu_seqlens,
            chunk_indices=indices,
            chunk_offsets=offsets,
        )
        return _ready(x, run, v_first=True)


VLLM_OPS: Final = "vllm.third_party.flash_linear_attention.ops"

CHUNK: Final = 64
"""Tokens per chunk of FLA's kernels, and of vLLM's copy."""


def chunk_tables(
    starts: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """FLA's chunk_indices ``[NT, 2]`` and chunk_offsets ``[N+1]`` of sequences that have tokens."""
    counts = [-(-(b - a) // CHUNK) for a, b in pairwise(starts)]
    rows = [[n, i] for n, count in enumerate(counts) for i in range(count)]
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + count)
    return (
        torch.tensor(rows, dtype=torch.int32, device=device),
        torch.tensor(offsets, dtype=torch.int32, device=device),
    )


def _chunk_indices(x: PrefillInputs) -> torch.Tensor:
    return chunk_tables(x.starts, x.q.device)[0]


def load(module: str, name: str) -> Any:
    """An attribute of a module that may not be there."""
    return getattr(importlib.import_module(module), name)


def _takes(function: Any, parameter: str) -> bool:
    try:
        return parameter in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


PREFILL: Final[tuple[Contestant[PrefillInputs], ...]] = (
    Ours("cuda/triton"),
    Ours("cuda"),
    Ours("cuda/flashinfer"),
    Ours("cuda/flash_qla"),
    FLA(),
    FlashInfer(),
    FlashQLA(),
    VLLM(),
)
"""Kernels alone."""

CALLS: Final[tuple[Contestant[PrefillInputs], ...]] = tuple(
    Ours(name, whole=True)
    for name in ("cuda/triton", "cuda/fla", "cuda/flashinfer", "cuda/flash_qla")
)
"""A caller's view of the chunk rule; with the adapters of ``PREFILL``, what ``cuda`` chooses by."""
