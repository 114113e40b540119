"""``cuda/flashinfer``: FlashInfer's prefill, in CuTe DSL for Hopper and Blackwell.

Takes *linear* decay alpha = exp(g), states with V first, packed sequences only. Context parallelism
over the multiprocessors is left to FlashInfer (``use_cp="auto"``), bounded by the host's longest
sequence.

Copies and casts made here:

* q, k, v to contiguous memory on 16 bytes, where they are not.
* q, k normalised here where that is asked for: ``use_qk_l2norm_in_kernel`` was accepted and ignored
  by some versions, and is left False.
* decay to fp32 alpha = exp(g), which is 0 for g = -inf. beta to fp32, where it is not. Raw gates
  and logits are computed here. One launch for all of this, q and k included.
* initial states to contiguous fp32 with V first: a copy for ``[N, HV, K, V]``, and another of the
  final states.
* Rows past the last sequence are cut off and added as zeros; sequences of length zero are left out
  and their states carried over.

Refused: scale 0.0, which FlashInfer takes for "not given".

Not seen here, because that would read the device: FlashInfer works with log2(alpha + 1e-10), so a
decay below 1e-10 (g < -23) counts as 1e-10, g = -inf too. Its inverse is fp16 (less accurate than
the other libraries' on strongly correlated keys). A NaN in one sequence reaches the sequences
beside it (seen on an H200, FlashInfer 0.7.2). Where its own rule wants context parallelism and
cannot have it, it warns and goes on without. The first call of a kind compiles for seconds.

Its pools (``state_indices``), checkpoints and decode kernels are not adapted, and not declared.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch

from gdn_dispatch.capability import Capability, Feature
from gdn_dispatch_cuda.providers.convert import (
    Batch,
    aligned,
    initial_states,
    operands,
    result,
    without_tokens,
)
from gdn_dispatch_cuda.providers.library import Library

if TYPE_CHECKING:
    from gdn_dispatch.types import GDNOutput, RuleRequest

__all__ = ["LIBRARY", "capability", "check", "gated_delta_rule", "unavailable"]

LIBRARY: Final = Library(
    "flashinfer",
    "FlashInfer",
    "flashinfer-python",
    "flashinfer",
    oldest="0.7.2",
    newer="0.8.0",
    capabilities=((9, 0), (10, 0), (10, 3), (12, 0), (12, 1)),
)

_CAPABILITY: Final = Capability(
    features=frozenset(
        (
            Feature.CHUNK_RULE,
            Feature.VARLEN,
            Feature.STATE_V_FIRST,
            Feature.RAW_GATE,
            Feature.NO_HOST_READ,
        )
    ),
    dtypes=("bfloat16", "float16"),
    state_dtypes=("float32", "bfloat16", "float16"),
    head_dims_k=(128,),
    head_dims_v=(128,),
    notes=(
        "decay of less than 1e-10 a token, g = -inf too, counts as 1e-10",
        "the inverse within a chunk is fp16",
        "a NaN in one sequence reaches the sequences beside it",
    ),
)


def capability() -> Capability:
    """What ``cuda/flashinfer`` can do."""
    return _CAPABILITY


def unavailable() -> str:
    """Why FlashInfer cannot be used here; empty if it can. Imports nothing of it."""
    return LIBRARY.unavailable()


@cache
def _prefill() -> Any:
    return LIBRARY.load("flashinfer.gdn_prefill:chunk_gated_delta_rule")[0]


def check(request: RuleRequest) -> None:
    """Refuse what FlashInfer cannot run, or would silently get wrong.

    Raises:
        UnsupportedRequestError: Says what, why, and the way out.
    """
    LIBRARY.check(request, _CAPABILITY)
    if request.scale == 0.0:
        raise LIBRARY.refuse(
            "scale=0.0", "FlashInfer takes 0.0 for its default", "pass another scale"
        )


def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """Run the chunk rule; see ``gdn_dispatch.hookspecs`` for what may be assumed.

    Raises:
        UnsupportedRequestError: See ``check``.
        BackendUnavailableError: FlashInfer cannot be used here.
    """
    check(request)
    batch = Batch.of(request)
    nothing = without_tokens(request, batch)
    if nothing is not None:
        return nothing
    T = batch.num_tokens
    q, k, alpha, beta = operands(request, linear=True)
    q, k, v, alpha, beta = (aligned(x.flatten(0, 1)[:T]) for x in (q, k, request.v, alpha, beta))
    if batch.meta is None:
        length = request.q.shape[1]
        cu_seqlens = torch.arange(0, T + 1, length, dtype=torch.int32, device=q.device)
    else:
        cu_seqlens = aligned(batch.meta.cu_seqlens_nonempty[: len(batch.lengths) + 1])
    HV, V = v.shape[1:]
    states = q.new_empty(len(batch.lengths), HV, V, q.shape[2], dtype=torch.float32)
    returned = _prefill()(
        q=q,
        k=k,
        v=v,
        g=alpha,
        beta=beta,
        scale=request.scale,
        initial_state=initial_states(request, batch, v_first=True),
        output_final_state=request.output_final_state,
        cu_seqlens=cu_seqlens,
        use_qk_l2norm_in_kernel=False,
        output_state=states if request.output_final_state else None,
        use_cp="auto",
        max_seqlen=max(batch.lengths),
    )
    output, final = returned if request.output_final_state else (returned, None)
    return result(request, batch, output, final, v_first=True)
