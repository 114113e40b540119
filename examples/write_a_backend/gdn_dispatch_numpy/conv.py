"""The causal depthwise convolution in front of the recurrence."""

from __future__ import annotations

from gdn_dispatch_numpy.arrays import Array
from gdn_dispatch_numpy.rule import sigmoid


def causal_conv(h: Array, weight: Array, bias: Array | None, activation: str | None) -> Array:
    """``c_t = act(bias + sum_i w[:, i] h_{t+i})``.

    Args:
        h: ``[W-1+T, D]``: the history, oldest first, then the T tokens.
        weight: ``[D, W]``. bias: ``[D]`` or None.
        activation: ``"silu"`` or None.

    Returns:
        ``[T, D]``.
    """
    W = weight.shape[1]
    T = h.shape[0] - (W - 1)
    c = weight[:, 0] * h[:T]
    for i in range(1, W):
        c = c + weight[:, i] * h[i : i + T]
    if bias is not None:
        c = c + bias
    return c if activation is None else c * sigmoid(c)
