"""Launches of ``device_tables_kernel``: two, whatever the step."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
import triton

from gdn_dispatch_ascend.metadata.device_tables_kernel import fill_kernel, scan_kernel
from gdn_dispatch_ascend.metadata.tables import CHUNK_SIZE, LARGE_BLOCK_SIZE, cumsum_block_size

if TYPE_CHECKING:
    from gdn_dispatch_ascend.metadata.tables import AscendTables

__all__ = ["fill"]

_SCAN_BLOCK = 1024
_FILL_BLOCK = 256
_CORES_ELSEWHERE = 4
"""Programs where there is no NPU to ask: in Triton's interpreter they run one after the other."""


def fill(tables: AscendTables, scratch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """Write the tables of ``tables.cu_seqlens``; see ``DeviceTablePool.fill``."""
    large_offsets, cumsum_offsets, numbers = scratch
    cu = tables.cu_seqlens
    n = cu.shape[0] - 1
    cores = _cores(cu.device)
    scan_kernel[grid(1, cores)](
        cu, tables.chunk_offsets_chunk64, tables.update_chunk_offsets_chunk64,
        tables.final_chunk_indices_chunk64, large_offsets, cumsum_offsets, numbers,
        tables.keep_meta.view(torch.int8), n,
        CHUNK=CHUNK_SIZE, LARGE=LARGE_BLOCK_SIZE, CUMSUM=cumsum_block_size(tables.num_v_heads),
        BLOCK=min(_SCAN_BLOCK, max(16, triton.next_power_of_2(n))),
    )  # fmt: skip
    indices = (
        tables.chunk_indices_chunk64, tables.chunk_indices_large_block, tables.block_indices_cumsum,
    )  # fmt: skip
    fill_kernel[grid(max(n, triton.cdiv(indices[0].shape[0], _FILL_BLOCK)), cores)](
        cu, tables.chunk_offsets_chunk64, large_offsets, cumsum_offsets, numbers,
        *indices, tables.cu_seqlens_kern, tables.nonempty,
        n, *(rows.shape[0] for rows in indices), BLOCK=_FILL_BLOCK,
    )  # fmt: skip


def grid(tasks: int, cores: int) -> tuple[int]:
    """A program for every core, and no more than there are tasks."""
    return (max(1, min(tasks, cores)),)


@cache
def _cores(device: torch.device) -> int:
    """Vector cores of an NPU: one program each."""
    if device.type != "npu":
        return _CORES_ELSEWHERE
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
    cores: int = properties["num_vectorcore"]
    return cores
