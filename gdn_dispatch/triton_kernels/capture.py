"""Whether launches are being captured in a graph, whose replays have lengths of their own."""

from __future__ import annotations

import torch

__all__ = ["is_capturing"]


def is_capturing(device: torch.device) -> bool:
    """Whether the current stream of ``device`` is being captured."""
    if device.type == "cpu":
        return False
    ask = getattr(torch.get_device_module(device), "is_current_stream_capturing", None)
    return ask is not None and bool(ask())
