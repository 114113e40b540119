"""The hooks of the CPU backend: what it is, whether it can run here, and what runs a call."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from gdn_dispatch import Available, BackendInfo, GDNOutput, Unavailable, hookimpl
from gdn_dispatch_cpu import meta
from gdn_dispatch_cpu.capability import CAPABILITY

if TYPE_CHECKING:
    from collections.abc import Callable

    from gdn_dispatch.plan.layout import TablesRequest
    from gdn_dispatch.types import GDNRequest, MetaRequest, RuleRequest
    from gdn_dispatch_cpu.kernels.rows import CpuChunkMeta
    from gdn_dispatch_cpu.kernels.tables import CompiledTables

__all__ = [
    "backend_info",
    "build_chunk_meta",
    "chunk_tables",
    "gated_delta_rule",
    "gdn_attention",
    "probe",
]


@hookimpl
def backend_info() -> BackendInfo:
    """See ``gdn_dispatch.hookspecs``."""
    return BackendInfo(
        name="cpu",
        device_types=("cpu",),
        capability=CAPABILITY,
        priority=50,
        hook_api=1,  # a number, not the installed core's: this is what the hooks were written for
        chunk_size=meta.CHUNK_SIZE,
        block_sizes=meta.BLOCK_SIZES,
        conv_block_size=meta.CONV_BLOCK_SIZE,
        block_size_multiple=meta.BLOCK_SIZE_MULTIPLE,
        summary="native CPU kernels",
    )


@hookimpl
def probe() -> Available | Unavailable:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch_cpu.probe import probe_machine

    return probe_machine()


@hookimpl
def build_chunk_meta(request: MetaRequest) -> CpuChunkMeta:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch_cpu.kernels import rows

    return rows.build_chunk_meta(request, backend="cpu")


@hookimpl
def chunk_tables(request: TablesRequest) -> CompiledTables:
    """See ``gdn_dispatch.hookspecs``."""
    return _tables()(request)


@hookimpl
def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """See ``gdn_dispatch.hookspecs``."""
    return _rule()(request)


@hookimpl
def gdn_attention(request: GDNRequest) -> GDNOutput:
    """See ``gdn_dispatch.hookspecs``."""
    return _layer()(request)


# Kernels are imported when they are first called, and once: an import statement takes a
# microsecond every time, a fiftieth of a decode step.


@cache
def _tables() -> Callable[[TablesRequest], CompiledTables]:
    from gdn_dispatch_cpu.kernels.tables import CompiledTables

    return CompiledTables


@cache
def _rule() -> Callable[[RuleRequest], GDNOutput]:
    from gdn_dispatch_cpu.kernels.rule import gated_delta_rule

    return gated_delta_rule


@cache
def _layer() -> Callable[[GDNRequest], GDNOutput]:
    from gdn_dispatch_cpu.kernels.layer import gdn_attention

    return gdn_attention
