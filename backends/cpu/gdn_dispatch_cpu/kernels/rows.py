"""Metadata whose slots the kernels read where they lie.

What the plan holds is on the host anyway; what an engine gives as a CPU tensor is read from the
engine's own memory, at every call, so that a buffer updated in place is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from gdn_dispatch.meta import ChunkMeta, MetaSpec, build
from gdn_dispatch_cpu.meta import BLOCK_SIZES, CHUNK_SIZE, CONV_BLOCK_SIZE

if TYPE_CHECKING:
    from gdn_dispatch.plan.batch import BatchPlan
    from gdn_dispatch.types import MetaRequest

__all__ = ["CpuChunkMeta", "build_chunk_meta"]

_FIELDS = ("state_indices", "initial_state_indices", "has_initial_state", "num_accepted_tokens")
_NOT_GIVEN = (0, 0, 0, 0)

_Array = npt.NDArray[Any]


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class CpuChunkMeta(ChunkMeta):
    """``ChunkMeta`` with ``rows``."""

    _given: dict[str, _Array] = field(default_factory=dict)
    _rows: tuple[int, ...] | None = None

    def rows(self) -> tuple[int, ...]:
        """The members of ``gdn_layer_call`` that describe rows: addresses, strides and counts."""
        if self._rows is None:
            self._rows = self._describe()
        return self._rows

    def update_(self, plan: BatchPlan) -> None:
        """See ``ChunkMeta.update_``."""
        ChunkMeta.update_(self, plan)
        self._rows = None

    def _describe(self) -> tuple[int, ...]:
        plan = self.plan
        write, read, has_state, accepted = (
            self._given.get(name, getattr(plan, name)) for name in _FIELDS
        )
        kept = plan.checkpoints
        return (
            plan.num_seqs, plan.total_tokens, _address(plan.query_start_loc),
            _address(plan.speculative),
            *_numbers(write), *_numbers(write if read is None else read),
            *_numbers(has_state), *_numbers(accepted),
            1 if write.ndim == 1 else write.shape[1], plan.pad_slot,
            *((0, 0, 0, 0) if kept is None else
              (kept.slots.size, *map(_address, (kept.sequences, kept.offsets, kept.slots)))),
        )  # fmt: skip


def build_chunk_meta(request: MetaRequest, *, backend: str) -> CpuChunkMeta:
    """The core's metadata, plus views of what the engine gave."""
    spec = MetaSpec(CHUNK_SIZE, BLOCK_SIZES, CONV_BLOCK_SIZE)
    meta = build(request, spec, backend=backend, cls=CpuChunkMeta)
    for name in _FIELDS:
        tensor = getattr(request, name)
        if tensor is not None:
            meta._given[name] = tensor.detach().numpy()
    return meta


def _address(array: _Array | None) -> int:
    return 0 if array is None else int(array.__array_interface__["data"][0])


def _numbers(array: _Array | None) -> tuple[int, int, int, int]:
    """A ``gdn_row_numbers``: address, bits, and strides in elements."""
    if array is None:
        return _NOT_GIVEN
    row, column = (*(stride // array.itemsize for stride in array.strides), 0)[:2]
    return (_address(array), 8 * array.itemsize, row, column)
