"""``cuda/flash_qla``: Qwen's FlashQLA, in TileLang for Hopper and Blackwell.

Takes natural-log decay and both state layouts. Its plan of context parallelism and its chunk tables
are made once a step from the host's lengths and kept with the metadata; left to itself it would
read cu_seqlens back from the device. A dense batch runs without context parallelism.

Copies and casts made here:

* q, k normalised here where that is asked for: FlashQLA's own flag runs torch.compile at first use.
* decay to fp32, and to no less than e^-60 a token (``SMALLEST_DECAY``): g = -inf gives NaN there.
* beta to fp32, where it is not. Raw gates and logits are computed here. One launch for all of this,
  q and k included.
* initial states to contiguous fp32, where they are not.
* Once a step and head count: chunk tables and the parallel plan to the device, a few small copies
  from pageable memory; not while a CUDA graph is captured, so run the step once before.
* Rows past the last sequence are cut off and added as zeros; sequences of length zero are left out
  and their states carried over: FlashQLA's chunk numbers do not count them.

FlashQLA itself copies inputs that are not contiguous.

Refused: scale 0.0, which FlashQLA takes for "not given"; what does not compile: an odd number of
value heads above 1 (TileLang finds no layout for the decay's running sum), and fp16 on compute
capability 12.x.

Known limits: importing it creates a CUDA context, and it reads the number of multiprocessors of one
device, once. ``scale`` is compiled in, as are both head counts: the first call of a kind compiles
for tens of seconds. Ten processes of the conformance kit at once, on one cache of kernels, failed
72 of 123 tests, many of which pass where two share a cache or each process has one of its own
(``TILELANG_CACHE_DIR``): why was not found out. Backward exists in FlashQLA and is not declared.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch

from gdn_dispatch.capability import Capability, Feature
from gdn_dispatch_cuda.providers.convert import (
    Batch,
    Derived,
    initial_states,
    operands,
    result,
    without_tokens,
)
from gdn_dispatch_cuda.providers.library import Library, compute_capability

if TYPE_CHECKING:
    from gdn_dispatch.meta import ChunkMeta
    from gdn_dispatch.types import GDNOutput, RuleRequest

__all__ = ["LIBRARY", "capability", "check", "gated_delta_rule", "unavailable"]

LIBRARY: Final = Library(
    "flash_qla",
    "FlashQLA",
    "flash-qla",
    "flash_qla",
    oldest="0.1.3",
    newer="0.2.0",
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
        "decay of less than e^-60 a token counts as e^-60",
        "context parallelism in packed batches only",
        "HV is 1 or even",
        "float16 not on compute capability 12.x",
    ),
)

_CHUNK = "flash_qla.ops.gated_delta_rule.chunk"

_derived: Final = Derived()


def capability() -> Capability:
    """What ``cuda/flash_qla`` can do."""
    return _CAPABILITY


def unavailable() -> str:
    """Why FlashQLA cannot be used here; empty if it can. Imports nothing of it."""
    return LIBRARY.unavailable()


@cache
def _functions() -> tuple[Any, ...]:
    return LIBRARY.load(
        "flash_qla:chunk_gated_delta_rule",
        f"{_CHUNK}:build_cp_context",
        f"{_CHUNK}:CHUNK_SIZE",
        "flash_qla.utils.index:prepare_varlen_metadata",
    )


def check(request: RuleRequest) -> None:
    """Refuse what FlashQLA cannot run, or would silently get wrong.

    Raises:
        UnsupportedRequestError: Says what, why, and the way out.
    """
    LIBRARY.check(request, _CAPABILITY)
    if request.scale == 0.0:
        raise LIBRARY.refuse(
            "scale=0.0", "FlashQLA takes 0.0 for its default", "pass another scale"
        )
    HV = request.v.shape[2]
    if HV > 1 and HV % 2:
        raise LIBRARY.refuse(
            f"HV={HV}",
            "one or an even number of value heads compiles",
            'pass backend="cuda/triton"',
        )
    major, minor = compute_capability(request.q.device)
    if major == 12 and request.q.dtype == torch.float16:
        raise LIBRARY.refuse(
            f"float16 on compute capability {major}.{minor}", "does not compile", "use bfloat16"
        )


def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """Run the chunk rule; see ``gdn_dispatch.hookspecs`` for what may be assumed.

    Raises:
        UnsupportedRequestError: See ``check``.
        BackendUnavailableError: FlashQLA cannot be used here.
    """
    check(request)
    batch = Batch.of(request)
    nothing = without_tokens(request, batch)
    if nothing is not None:
        return nothing
    rule, build_context, chunk_size, prepare = _functions()
    (q, k, g, beta), v = operands(request), request.v
    cu_seqlens = None
    if batch.meta is None:
        context = build_context(None)
    else:
        heads = v.shape[2]
        context = _derived.get(
            batch.meta,
            heads,
            lambda: _context(batch, heads, build_context, chunk_size, prepare),
        )
        cu_seqlens = context.cu_seqlens
        if batch.num_tokens < q.shape[1]:
            q, k, v, g, beta = (x[:, : batch.num_tokens] for x in (q, k, v, g, beta))
    with torch.no_grad():
        output, final = rule(
            q,
            k,
            v,
            g,
            beta,
            scale=request.scale,
            initial_state=initial_states(request, batch, v_first=request.state_v_first),
            output_final_state=request.output_final_state,
            use_qk_l2norm_in_kernel=False,
            cu_seqlens=cu_seqlens,
            state_v_first=request.state_v_first,
            cp_context=context,
        )
    return result(request, batch, output, final, v_first=request.state_v_first)


def _context(
    batch: Batch, num_v_heads: int, build_context: Any, chunk_size: int, prepare: Any
) -> Any:
    """FlashQLA's plan of a packed step, worked out on the host and sent to the device."""
    meta: ChunkMeta | None = batch.meta
    if meta is None:
        raise TypeError("a dense batch has no plan")
    device = meta.cu_seqlens.device
    starts = torch.tensor(batch.starts, dtype=torch.int32)
    context = build_context(
        starts,
        enable_intra=True,
        num_v_heads=num_v_heads,
        chunk_size=chunk_size,
        is_train=False,
    )
    # a view of our own: prepare() attaches an attribute to the tensor it is given
    own = meta.cu_seqlens_nonempty[: len(batch.lengths) + 1]
    sent: dict[str, Any] = {"cu_seqlens": prepare(own, starts)}
    for field in fields(context):
        value = getattr(context, field.name)
        if field.name != "cu_seqlens" and isinstance(value, torch.Tensor):
            sent[field.name] = value.to(device, non_blocking=True)
    parts = context.intra_cp_cu_seqlens
    if parts is not None:
        sent["intra_cp_cu_seqlens"] = prepare(sent["intra_cp_cu_seqlens"], parts)
    return replace(context, **sent)
