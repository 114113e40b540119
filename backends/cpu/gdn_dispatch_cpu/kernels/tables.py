"""The core's chunk tables and conv tiles, counted and written by the library.

For a short step the two calls take less time than what Python does around them, so that is little.
"""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gdn_dispatch_cpu.kernels.library import TABLES_CALL, load_library

if TYPE_CHECKING:
    from gdn_dispatch.plan.layout import Layout, TablesRequest

__all__ = ["CompiledTables"]

_Int32Array = npt.NDArray[np.int32]
_OFFSET = itemgetter(0)  # of a Section


class CompiledTables:
    """``gdn_dispatch.plan.layout.Tables`` of the library."""

    __slots__ = ("_call", "_lens", "_places", "nonempty", "num_chunks", "num_tiles", "request")

    def __init__(self, request: TablesRequest) -> None:
        self.request = request
        lens, sizes, tile = request
        memory = _memory(sizes, tile)
        self._places = memory.places
        counts = memory.counts()
        self._call = TABLES_CALL.pack(lens.size, memory.sizes, len(sizes), tile)
        # as bytes: to copy a few numbers takes less time than to ask numpy where they lie
        self._lens = lens.tobytes()
        load_library().count_tables(self._call, self._lens, ctypes.addressof(counts))
        *self.num_chunks, self.num_tiles, num_nonempty = counts[:]
        self.nonempty: _Int32Array | None = None
        if num_nonempty < lens.size:
            self.nonempty = np.flatnonzero(lens).astype(np.int32)

    def write(self, layout: Layout, flat: _Int32Array) -> None:
        """See ``gdn_dispatch.plan.layout.Tables``."""
        places = self._places
        # the tables' sections are the first, in the order of gdn_write_tables
        first = islice(layout.sections.values(), places.size // 8)
        load_library().write_tables(
            self._call,
            self._lens,
            places.pack(*map(_OFFSET, first)),
            ctypes.addressof(ctypes.c_char.from_buffer(flat.data)),
        )


class _Memory(NamedTuple):
    """What calls for the same block sizes share.

    Attributes:
        sizes: Where the sizes lie. kept: Keeps them there.
        counts: Type of what ``gdn_count_tables`` fills.
        places: Layout of what ``gdn_write_tables`` is told.
    """

    sizes: int
    kept: ctypes.Array[Any]
    counts: type[ctypes.Array[Any]]
    places: struct.Struct


@lru_cache(maxsize=64)
def _memory(sizes: tuple[int, ...], tile: int) -> _Memory:
    array = (ctypes.c_int64 * len(sizes))(*sizes)
    places = struct.Struct(f"={4 * len(sizes) + 2 * bool(tile)}q")
    return _Memory(ctypes.addressof(array), array, ctypes.c_int64 * (len(sizes) + 2), places)
