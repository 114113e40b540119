"""Metadata of the torch backend: the core's, and slots where its loops can read them.

The kernels take views of the state pools, so they need slots as numbers. What the plan holds is on
the host anyway. What an engine gives as a CPU tensor is read through a numpy view of the same
memory, at every call, so that a buffer updated in place is seen. Only tensors of an accelerator,
where this backend runs on request alone, are copied to the host once, when the metadata is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gdn_dispatch.meta import ChunkMeta, MetaSpec, build
from gdn_dispatch.torch_backend.capability import CHUNK
from gdn_dispatch.types import MetaRequest

if TYPE_CHECKING:
    import torch

__all__ = ["SPEC", "HostSlots", "TorchChunkMeta", "build_chunk_meta"]

SPEC = MetaSpec(chunk_size=CHUNK)

_FIELDS = ("state_indices", "initial_state_indices", "has_initial_state", "num_accepted_tokens")

_Array = npt.NDArray[Any]


class HostSlots(NamedTuple):
    """Slots of the step's rows as arrays; see ``BatchPlan`` for their meaning."""

    write: _Array  # [N] or [N, S]
    read: _Array
    has_initial_state: _Array | None
    accepted: _Array | None


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class TorchChunkMeta(ChunkMeta):
    """``ChunkMeta`` with ``host_slots``."""

    _given: dict[str, _Array] = field(default_factory=dict)

    def host_slots(self) -> HostSlots:
        """Where each row reads and writes, as of now."""
        write, read, has_state, accepted = (
            self._given.get(name, getattr(self.plan, name)) for name in _FIELDS
        )
        return HostSlots(write, write if read is None else read, has_state, accepted)


def build_chunk_meta(request: MetaRequest, *, backend: str) -> TorchChunkMeta:
    """The core's metadata for chunks of 32, plus numpy views of what the engine gave."""
    meta = build(request, SPEC, backend=backend, cls=TorchChunkMeta)
    for name in _FIELDS:
        tensor = getattr(request, name)
        if tensor is not None:
            meta._given[name] = _on_host(tensor)
    return meta


def _on_host(tensor: torch.Tensor) -> _Array:
    array: _Array = np.asarray(
        tensor.detach().numpy() if tensor.device.type == "cpu" else tensor.cpu()
    )
    return array
