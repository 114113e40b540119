"""The core's chunk tables and conv tiles, counted and written by the library."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gdn_dispatch.plan.layout import table_names
from gdn_dispatch_cpu.kernels.library import TABLES_CALL, load_library

if TYPE_CHECKING:
    from gdn_dispatch.plan.layout import Layout, TablesRequest

__all__ = ["CompiledTables"]

_Int32Array = npt.NDArray[np.int32]


class CompiledTables:
    """``gdn_dispatch.plan.layout.Tables`` of the library."""

    __slots__ = ("_lens", "nonempty", "num_chunks", "num_tiles", "request")

    def __init__(self, request: TablesRequest) -> None:
        self.request = request
        lens, sizes, tile = request
        self._lens = address(lens)
        block_sizes, counts_type = _sizes(sizes)
        counts = counts_type()
        call = TABLES_CALL.pack(
            self._lens, lens.size, ctypes.addressof(block_sizes), len(sizes), tile, 0, 0, 0
        )
        load_library().count_tables(call, ctypes.addressof(counts))
        *self.num_chunks, self.num_tiles, num_nonempty = counts
        self.nonempty: _Int32Array | None = None
        if num_nonempty < lens.size:
            self.nonempty = np.flatnonzero(lens).astype(np.int32)

    def write(self, layout: Layout, flat: _Int32Array) -> None:
        """See ``gdn_dispatch.plan.layout.Tables``."""
        lens, sizes, tile = self.request
        sections, names = layout.sections, table_names(sizes)
        block_sizes, _ = _sizes(sizes)
        places = (ctypes.c_int64 * (4 * len(sizes)))(
            *(sections[name].offset for one in zip(*names, strict=True) for name in one)
        )
        tiles = (
            (sections["conv_tile_sequences"].offset, sections["conv_tile_offsets"].offset)
            if tile
            else (0, 0)
        )
        call = TABLES_CALL.pack(
            self._lens, lens.size, ctypes.addressof(block_sizes), len(sizes), tile,
            ctypes.addressof(places), *tiles,
        )  # fmt: skip
        load_library().write_tables(call, address(flat))


def address(array: _Int32Array) -> int:
    """Where the array's first element lies."""
    return int(array.__array_interface__["data"][0])


@lru_cache(maxsize=64)
def _sizes(sizes: tuple[int, ...]) -> tuple[ctypes.Array[Any], type[ctypes.Array[Any]]]:
    """The sizes in memory, and the type of what ``gdn_count_tables`` fills."""
    return (ctypes.c_int64 * len(sizes))(*sizes), ctypes.c_int64 * (len(sizes) + 2)
