"""Metadata as a tensor, for compiled graphs, whose operators take tensors and numbers only.

A handle is a CPU tensor of N+1 elements, of which the first is the number under which the metadata
is known here; its length tells an operator's fake how many sequences there are. Metadata is held
weakly: a handle does not keep a step alive.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

import torch

from gdn_dispatch.errors import MetadataError

if TYPE_CHECKING:
    from gdn_dispatch.meta import ChunkMeta

__all__ = ["make_handle", "meta_of", "remember"]

_numbers = itertools.count(1)
_known: weakref.WeakValueDictionary[int, ChunkMeta] = weakref.WeakValueDictionary()


def make_handle(num_seqs: int) -> torch.Tensor:
    """A new handle, not yet of any metadata."""
    return torch.full((num_seqs + 1,), next(_numbers), dtype=torch.int64)


def remember(meta: ChunkMeta) -> None:
    """Make ``meta.handle`` lead to ``meta``, as long as it lives."""
    _known[int(meta.handle[0])] = meta


def meta_of(handle: torch.Tensor | None) -> ChunkMeta | None:
    """The metadata of a handle."""
    if handle is None:
        return None
    meta = _known.get(int(handle[0]))
    if meta is None:
        raise MetadataError(
            "meta", "the handle of metadata that is gone", "metadata that is still alive",
            hint="keep the ChunkMeta for as long as graphs that take it run",
        )  # fmt: skip
    return meta
