"""Run every kind of step a layer will see before it sees one, so that nothing compiles later.

Kernels that are compiled when first launched cost seconds in front of the first request, and what
a search for their configuration allocates can end a server whose memory is already given away.
The steps here consist of padding: everything is launched, no state is read or written, and pools of
one slot are enough. So a warm-up belongs before an engine allocates its pools.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
        gate_dtype: Of ``A_log`` and ``dt_bias``.
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
    ``max_num_tokens`` tokens, and of one row of 64. A backend that compiles by size buckets has
    then compiled for all of them.

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
    for lens, speculative in _steps(spec, max_num_seqs, max_num_tokens):
        _run(spec, layer, lens, speculative, backend)
        steps += 1
    if layer["conv_state"].device.type != "cpu":
        torch.get_device_module(layer["conv_state"].device).synchronize()
    return steps


def _steps(spec: LayerSpec, max_seqs: int, max_tokens: int) -> Iterator[tuple[list[int], bool]]:
    """Lengths of the rows of each step, and whether they are drafts."""
    drafts = 1 + spec.num_speculative_tokens
    rows = 1
    while rows <= min(max_seqs, max_tokens):
        yield [1] * rows, False
        if drafts > 1 and rows * drafts <= max_tokens:
            yield [drafts] * rows, True
        if (length := max_tokens // rows) > 1:
            yield [length] * rows, False
        rows *= 2
    if max_tokens >= 64:
        yield [64], False


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
        "dt_bias": zeros(HV, dtype=spec.gate_dtype),
    }
    if spec.conv_bias:
        layer["conv_bias"] = zeros(D)
    return layer


def _run(
    spec: LayerSpec,
    layer: dict[str, Any],
    lens: list[int],
    speculative: bool,
    backend: str | None,
) -> None:
    rows, tokens = len(lens), sum(lens)
    device, D = layer["conv_state"].device, layer["conv_weight"].shape[0]
    starts = [0]
    for length in lens:
        starts.append(starts[-1] + length)
    columns = 1 + spec.num_speculative_tokens
    shape = (rows, columns) if speculative else (rows,)
    plan = plan_batch(
        starts,
        speculative=[True] * rows if speculative else None,
        has_initial_state=None if max(lens) == 1 or speculative else [False] * rows,
    )
    # as engines do, slots and counts lie on the device, and all of them are padding
    slots = torch.full(shape, -1, dtype=torch.int32, device=device)
    accepted = torch.ones(rows, dtype=torch.int32, device=device) if speculative else None
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
