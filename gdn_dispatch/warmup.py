"""Run every kind of step a layer will see before it sees one, so that nothing compiles later.

Kernels that are compiled when first launched cost seconds in front of the first request, and what
a search for their configuration allocates can end a server whose memory is already given away.
The steps here consist of padding: everything is launched, no state is read or written, and pools of
one slot are enough. So a warm-up belongs before an engine allocates its pools.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from gdn_dispatch.api import build_chunk_meta, gdn_attention, plan_batch
from gdn_dispatch.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LayerSpec", "warmup"]


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What a layer looks like on one rank; see ``gdn_attention`` for the terms.

    Attributes:
        num_heads, num_v_heads, head_dim_k, head_dim_v: H, HV, K, V of this rank.
        dtype: Of activations, of the convolution's weight and of its state.
        state_dtype: Of the state pool.
        conv_width: W.
        conv_bias: Whether the convolution has one.
        conv_dim_first: Whether a slot of the conv pool is ``[D, L]`` in memory; else ``[L, D]``.
        gate_dtype: Of ``A_log``. dt_bias_dtype: Of ``dt_bias``, or None: the same.
        activation: ``"silu"`` or None.
        state_v_first: Layout of the state pool.
        allow_neg_eigval: See ``gdn_attention``.
        num_speculative_tokens: Draft tokens of a row, 0 without speculative decoding.
    """

    num_heads: int
    num_v_heads: int
    head_dim_k: int
    head_dim_v: int
    dtype: torch.dtype
    state_dtype: torch.dtype
    conv_width: int = 4
    conv_bias: bool = False
    conv_dim_first: bool = False
    gate_dtype: torch.dtype = torch.float32
    activation: str | None = "silu"
    state_v_first: bool = True
    allow_neg_eigval: bool = False
    num_speculative_tokens: int = 0
    dt_bias_dtype: torch.dtype | None = None


def warmup(
    spec: LayerSpec,
    device: torch.device | str,
    *,
    max_num_seqs: int = 256,
    max_num_tokens: int = 8192,
    backend: str | None = None,
) -> int:
    """Run padded steps of every kind and of all orders of size, and wait for them.

    Decodes and drafts of 1, 2, 4, … rows; prefills of 1, 2, 4, … rows that together have
    ``max_num_tokens`` tokens, and of one row of 64, with ``has_initial_state`` and without; where
    there are drafts, all of it with slots ``[N]`` and ``[N, S]``. A backend that compiles by size
    buckets and by what is given has then compiled for all of them.

    Args:
        spec: The layer. Layers alike need one warm-up.
        device: Where.
        max_num_seqs: Most rows of a step.
        max_num_tokens: Most tokens of a step.
        backend: As in ``gdn_attention``.

    Returns:
        How many steps were run.

    Raises:
        InvalidArgumentError: A limit is below 1.
        GDNDispatchError: As ``gdn_attention`` would, where no backend serves such a layer.
    """
    for name, limit in (("max_num_seqs", max_num_seqs), ("max_num_tokens", max_num_tokens)):
        if limit < 1:
            raise InvalidArgumentError(name, f"{limit}", "at least 1")
    layer = _layer(spec, torch.device(device))
    steps = 0
    for step in _steps(spec, max_num_seqs, max_num_tokens):
        _run(spec, layer, step, backend)
        steps += 1
    if layer["conv_state"].device.type != "cpu":
        torch.get_device_module(layer["conv_state"].device).synchronize()
    return steps


class _Step(NamedTuple):
    """A step of rows alike.

    Attributes:
        rows: How many. length: Tokens of each.
        speculative: Whether they are drafts.
        fresh: Whether ``has_initial_state`` is given (and False).
        columns: Slots of a row; 0: ``[N]``.
    """

    rows: int
    length: int
    speculative: bool = False
    fresh: bool = False
    columns: int = 0


def _steps(spec: LayerSpec, max_seqs: int, max_tokens: int) -> Iterator[_Step]:
    drafts = 1 + spec.num_speculative_tokens
    prefills = [(1, 64)] if max_tokens >= 64 else []
    rows = 1
    while rows <= min(max_seqs, max_tokens):
        if drafts > 1 and rows * drafts <= max_tokens:
            yield _Step(rows, drafts, speculative=True, columns=drafts)
        if (length := max_tokens // rows) > 1:
            prefills.append((rows, length))
        for columns in (0, drafts) if drafts > 1 else (0,):
            yield _Step(rows, 1, columns=columns)
        rows *= 2
    for rows, length in prefills:
        for columns in (0, drafts) if drafts > 1 else (0,):
            for fresh in (False, True):
                yield _Step(rows, length, fresh=fresh, columns=columns)


def _layer(spec: LayerSpec, device: torch.device) -> dict[str, Any]:
    """Weights, and pools of one slot."""
    H, HV, K, V, W = (
        spec.num_heads, spec.num_v_heads, spec.head_dim_k, spec.head_dim_v, spec.conv_width,
    )  # fmt: skip
    D, L = 2 * H * K + HV * V, W - 1 + spec.num_speculative_tokens

    def zeros(*shape: int, dtype: torch.dtype = spec.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    conv_state = zeros(1, D, L) if spec.conv_dim_first else zeros(1, L, D).transpose(1, 2)
    state = (HV, V, K) if spec.state_v_first else (HV, K, V)
    layer: dict[str, Any] = {
        "conv_state": conv_state,
        "ssm_state": zeros(1, *state, dtype=spec.state_dtype),
        "conv_weight": zeros(D, W),
        "A_log": zeros(HV, dtype=spec.gate_dtype),
        "dt_bias": zeros(HV, dtype=spec.dt_bias_dtype or spec.gate_dtype),
    }
    if spec.conv_bias:
        layer["conv_bias"] = zeros(D)
    return layer


def _run(
    spec: LayerSpec,
    layer: dict[str, Any],
    step: _Step,
    backend: str | None,
) -> None:
    rows, tokens = step.rows, step.rows * step.length
    device, D = layer["conv_state"].device, layer["conv_weight"].shape[0]
    shape = (rows, step.columns) if step.columns else (rows,)
    plan = plan_batch(
        range(0, tokens + 1, step.length),
        speculative=[True] * rows if step.speculative else None,
        has_initial_state=[False] * rows if step.fresh else None,
        pad_slot=0,  # the only slot: kernels that cannot skip a row need one to send it to
    )
    # as engines do, slots and counts lie on the device, and all of them are padding
    slots = torch.full(shape, -1, dtype=torch.int32, device=device)
    accepted = torch.ones(rows, dtype=torch.int32, device=device) if step.speculative else None
    meta = build_chunk_meta(
        plan,
        device,
        state_indices=slots,
        num_accepted_tokens=accepted,
        num_v_heads=spec.num_v_heads,
        backend=backend,
    )
    gates = torch.zeros(2, tokens, spec.num_v_heads, dtype=spec.dtype, device=device)
    gdn_attention(
        torch.zeros(tokens, D, dtype=spec.dtype, device=device),
        gates[0],
        gates[1],
        meta=meta,
        activation=spec.activation,
        allow_neg_eigval=spec.allow_neg_eigval,
        state_v_first=spec.state_v_first,
        backend=backend,
        **layer,
    )
