"""``cuda/fla``: the chunk rule of fla-core (flash-linear-attention), in Triton.

Takes natural-log decay, both state layouts, and gradients. Called so that it runs FLA's own
kernels: its public function would hand over to FlashQLA, unasked, wherever that is installed, and
then drop the metadata; the function behind the dispatcher is called instead.

Copies and casts made here:

* decay to fp32, and to no less than e^-60 a token (``SMALLEST_DECAY``): g = -inf gives NaN there.
* ``use_gate_in_kernel`` and ``use_beta_sigmoid_in_kernel`` are computed here, in fp32; FLA's own
  gate takes the activation's precision.
* beta to fp32, where it is not. One launch for both gates.
* initial states to fp32, where they are not.
* Rows past the last sequence are cut off and added as zeros; sequences of length zero are left out
  and their states carried over: FLA's chunk numbers do not count them.

FLA itself copies inputs that are not contiguous. l2norm is FLA's: two launches more.

Declared less than FLA takes: fp32 inputs (their products run in tf32 there) and decode (not
adapted). The first call for a head count autotunes for seconds: warm it up.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from gdn_dispatch.capability import Capability, Feature
from gdn_dispatch_cuda.providers.convert import (
    Batch,
    Derived,
    gates,
    initial_states,
    result,
    without_tokens,
)
from gdn_dispatch_cuda.providers.library import Library

if TYPE_CHECKING:
    import torch

    from gdn_dispatch.types import GDNOutput, RuleRequest

__all__ = ["LIBRARY", "capability", "check", "gated_delta_rule", "unavailable"]

LIBRARY: Final = Library("fla", "FLA", "fla-core", "fla", oldest="0.6.0", newer="0.7.0")

CHUNK_SIZE: Final = 64
"""FLA's default; the table of chunks of this size is what its kernels read."""

_CAPABILITY: Final = Capability(
    features=frozenset(
        (
            Feature.CHUNK_RULE,
            Feature.VARLEN,
            Feature.STATE_V_FIRST,
            Feature.RAW_GATE,
            Feature.AUTOGRAD,
            Feature.NO_HOST_READ,
        )
    ),
    dtypes=("bfloat16", "float16"),
    state_dtypes=("float32", "bfloat16", "float16"),
    max_head_dim=256,
    notes=("decay of less than e^-60 a token counts as e^-60",),
)

_derived: Final = Derived()


def capability() -> Capability:
    """What ``cuda/fla`` can do."""
    return _CAPABILITY


def unavailable() -> str:
    """Why FLA cannot be used here; empty if it can. Imports nothing of it."""
    return LIBRARY.unavailable()


@cache
def _chunk_rule() -> Any:
    (rule,) = LIBRARY.load("fla.ops.gated_delta_rule:chunk_gated_delta_rule")
    return inspect.unwrap(rule)


def check(request: RuleRequest) -> None:
    """Refuse what FLA cannot run, or would silently get wrong.

    Raises:
        UnsupportedRequestError: Says what, why, and the way out.
    """
    LIBRARY.check(request, _CAPABILITY)


def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """Run the chunk rule; see ``gdn_dispatch.hookspecs`` for what may be assumed.

    Raises:
        UnsupportedRequestError: See ``check``.
        BackendUnavailableError: FLA cannot be used here.
    """
    check(request)
    batch = Batch.of(request)
    nothing = without_tokens(request, batch)
    if nothing is not None:
        return nothing
    (q, k, v), (g, beta) = (request.q, request.k, request.v), gates(request)
    cu_seqlens = chunk_indices = None
    if batch.meta is not None:
        cu_seqlens, chunk_indices = _derived.get(batch.meta, "tables", lambda: _tables(batch))
        if batch.num_tokens < q.shape[1]:
            q, k, v, g, beta = (x[:, : batch.num_tokens] for x in (q, k, v, g, beta))
    output, final = _chunk_rule()(
        q,
        k,
        v,
        g,
        beta,
        scale=request.scale,
        initial_state=initial_states(request, batch, v_first=request.state_v_first),
        output_final_state=request.output_final_state,
        use_qk_l2norm_in_kernel=request.use_qk_l2norm_in_kernel,
        state_v_first=request.state_v_first,
        cu_seqlens=cu_seqlens,
        chunk_indices=chunk_indices,
    )
    return result(request, batch, output, final, v_first=request.state_v_first)


def _tables(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """FLA's metadata, which is ours: cu_seqlens without empty sequences, and the chunks.

    As new views: FLA keeps what it derives from a tensor by the tensor's identity, and an update in
    place of the metadata would go unnoticed.
    """
    meta = batch.meta
    if meta is None:
        raise TypeError("a dense batch has no tables")
    if CHUNK_SIZE not in meta.chunks:
        raise LIBRARY.refuse(
            f"metadata with chunks of {meta.chunk_size}",
            f"FLA's kernels read chunks of {CHUNK_SIZE}",
            "build it with the cuda backend",
        )
    table = meta.chunks[CHUNK_SIZE]
    used = table.chunk_indices[: table.num_chunks]
    return meta.cu_seqlens_nonempty[: len(batch.lengths) + 1], used
