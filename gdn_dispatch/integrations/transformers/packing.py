"""Packed inputs for a model: everything that says where a sequence ends, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gdn_dispatch.api import build_chunk_meta, plan_batch
from gdn_dispatch.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["packed"]


def packed(
    lengths: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    num_v_heads: int | None = None,
    backend: str | None = None,
) -> dict[str, Any]:
    """Keywords for a model's call on sequences laid one after another in one row.

    ``model(input_ids, **packed([3, 5]))`` with ``input_ids [1, 8]`` gives what two calls would.
    ``gdn_meta`` among them is a ``ChunkMeta``, built once and shared by all layers. It travels as a
    keyword, not in a context, so it is also there when gradient checkpointing computes a layer
    again, in whichever thread.

    Args:
        lengths: Tokens of each sequence.
        device: The model's.
        num_v_heads: As in ``build_chunk_meta``.
        backend: The one given to ``inject``, if one was: metadata belongs to a backend.

    Returns:
        ``position_ids`` and ``use_cache=False``; ``cu_seq_lens_q``, ``cu_seq_lens_k``,
        ``max_length_q`` and ``max_length_k`` for attention kernels; and ``gdn_meta``.

    Raises:
        InvalidPlanError: Lengths make no sense.
        GDNDispatchError: No backend for ``device``.
    """
    sizes = np.asarray(lengths)
    if sizes.ndim != 1 or not sizes.size or sizes.dtype.kind not in "iu" or sizes.min() < 0:
        raise InvalidArgumentError("lengths", repr(lengths), "a list of lengths, at least one")
    starts = np.concatenate(([0], np.cumsum(sizes)))
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes)
    boundaries = torch.from_numpy(starts).to(device=device, dtype=torch.int32)
    longest = int(sizes.max())
    return {
        "position_ids": torch.from_numpy(positions)[None].to(device),
        "use_cache": False,
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": longest,
        "max_length_k": longest,
        "gdn_meta": build_chunk_meta(
            plan_batch(starts), device, num_v_heads=num_v_heads, backend=backend
        ),
    }
