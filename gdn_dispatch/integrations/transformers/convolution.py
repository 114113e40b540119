"""The causal convolution between projections and delta rule, as transformers' layers call it.

On a CPU it is computed here, because transformers' own function is slow there and, where the
causal_conv1d package is installed, fails; on an accelerator transformers' choice stands. Packed
sequences are kept apart here on every device, and no length is read on the host.

Tensors arrive as ``[B, D, T]`` transposed from ``[B, T, D]``. Seen as an image of height one, that
is channels-last memory: one depthwise ``conv2d`` runs at the speed of memory, gives the numbers of
transformers' ``conv1d``, and leaves the result token by token, as the delta rule reads it best.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from gdn_dispatch.calls.validation import describe
from gdn_dispatch.errors import InvalidArgumentError, MetadataError
from gdn_dispatch.meta import ChunkMeta

__all__ = ["causal_conv", "update"]

_Original = Callable[..., torch.Tensor]

_REFUSED = ("initial_states", "return_final_states", "final_states_out")
"""Options of the causal_conv1d package that change the result; layers keep their own history."""


def causal_conv(
    original: _Original,
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    seq_idx: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    gdn_meta: Any = None,
    **model_kwargs: Any,
) -> torch.Tensor:
    """Convolve ``[B, D, T]`` along T; boundaries of packed sequences hide what lies before them.

    The sequences are the last columns; columns before the first, which a cache puts there, are its
    history. ``seq_idx`` says the same as ``cu_seq_lens_q``, which decides.

    Args:
        original: transformers' function.
        hidden_states: ``[B, D, T]``, any strides.
        weight: ``[D, W]``.
        bias: ``[D]``.
        activation: A name transformers knows, or None.
        seq_idx: Number of the sequence each token belongs to.
        cu_seq_lens_q: ``[N+1]`` boundaries.
        gdn_meta: The same as metadata.
        **model_kwargs: Keywords of the model's call, meant for others.
    """
    for name in _REFUSED:
        value = model_kwargs.get(name)
        if value is not None and value is not False:
            raise InvalidArgumentError(
                name, describe(value), "nothing: layers keep their own history"
            )
    starts = _boundaries(hidden_states, seq_idx, cu_seq_lens_q, gdn_meta)
    if starts is None and hidden_states.device.type != "cpu":
        return original(hidden_states, weight, bias, activation=activation, **model_kwargs)
    x = hidden_states.to(weight.dtype)
    out = _depthwise(x, weight, bias)
    if starts is not None and starts.shape[0] > 2 and weight.shape[1] > 1:
        _separate(out, x, weight, bias, starts)
    return _activate(out[:, :, : x.shape[2]], activation).to(hidden_states.dtype)


def update(
    original: _Original,
    hidden_states: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """Convolve one more token ``[B, D, 1]``; shifts ``conv_state [B, D, >= W-1]`` in place."""
    if hidden_states.device.type != "cpu" or hidden_states.shape[2] != 1:
        return original(hidden_states, conv_state, weight, bias, activation)
    columns = torch.cat([conv_state, hidden_states], dim=-1)
    conv_state.copy_(columns[:, :, 1:])
    # fp32, as a convolution accumulates; nothing is copied where it is fp32 already
    window, taps = columns[:, :, -weight.shape[1] :].float().unbind(2), weight.float().unbind(1)
    out = window[0] * taps[0]
    for column, tap in zip(window[1:], taps[1:], strict=True):
        out = torch.addcmul(out, column, tap)
    if bias is not None:
        out = out + bias
    return _activate(out, activation).to(hidden_states.dtype).unsqueeze(2)


def _boundaries(
    hidden_states: torch.Tensor,
    seq_idx: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None,
    gdn_meta: Any,
) -> torch.Tensor | None:
    if gdn_meta is not None:
        if not isinstance(gdn_meta, ChunkMeta):
            raise MetadataError("gdn_meta", describe(gdn_meta), "a ChunkMeta from build_chunk_meta")
        starts = gdn_meta.cu_seqlens
    elif cu_seq_lens_q is not None:
        starts = cu_seq_lens_q
    elif seq_idx is not None:
        raise MetadataError(
            "cu_seq_lens_q", "None, with seq_idx", "the boundaries of the packed sequences",
            hint="seq_idx reaches the convolution but not the recurrence",
        )  # fmt: skip
    else:
        return None
    if hidden_states.shape[0] != 1:
        raise InvalidArgumentError(
            "input_ids", f"{hidden_states.shape[0]} rows", "one row of packed sequences"
        )
    return starts.to(hidden_states.device, non_blocking=True)


def _depthwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``[B, D, T + W-1]``: the last W-1 columns lie past the end."""
    D, W = weight.shape
    image = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    return F.conv2d(image, weight[:, None, None], bias, padding=(0, W - 1), groups=D).squeeze(2)


def _separate(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    starts: torch.Tensor,
) -> None:
    """Write the first W-1 columns of every sequence but the first again, without what lies before.

    Shapes follow from N alone and places are computed on the device. Columns that a sequence is too
    short to have go to the column past the end, which nobody reads.
    """
    columns, head = x.shape[2], weight.shape[1] - 1
    places = starts + (columns - starts[-1])
    place = places[1:-1, None] + torch.arange(head, device=x.device, dtype=places.dtype)
    source = place.clamp(max=columns - 1).flatten().long()
    target = torch.where(place < places[2:, None], place, columns).flatten().long()
    heads = x[0].t().index_select(0, source).unflatten(0, (-1, head)).transpose(1, 2)
    again = _depthwise(heads, weight, bias)[:, :, :head]
    out[0].t().index_copy_(0, target, again.transpose(1, 2).flatten(0, 1))


def _activate(x: torch.Tensor, activation: str | None) -> torch.Tensor:
    if activation is None:
        return x
    if activation in ("silu", "swish"):
        return F.silu(x)
    from transformers.activations import ACT2FN

    activated: torch.Tensor = ACT2FN[activation](x)
    return activated
