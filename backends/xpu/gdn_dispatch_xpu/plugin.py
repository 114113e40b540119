"""The hooks of the XPU backend: what it is, and whether it can run here.

No compute hook: the kernels come with a later version, and until then nothing is declared.
"""

from __future__ import annotations

from gdn_dispatch import BackendInfo, Unavailable, hookimpl
from gdn_dispatch_xpu import meta
from gdn_dispatch_xpu.capability import CAPABILITY

__all__ = ["backend_info", "probe"]


@hookimpl
def backend_info() -> BackendInfo:
    """See ``gdn_dispatch.hookspecs``."""
    return BackendInfo(
        name="xpu",
        device_types=("xpu",),
        capability=CAPABILITY,
        priority=50,
        hook_api=1,  # a number, not the installed core's: this is what the hooks were written for
        chunk_size=meta.CHUNK_SIZE,
        block_sizes=meta.BLOCK_SIZES,
        conv_block_size=meta.CONV_BLOCK_SIZE,
        block_size_multiple=meta.BLOCK_SIZE_MULTIPLE,
        summary="Intel GPUs; no kernels yet",
    )


@hookimpl
def probe() -> Unavailable:
    """See ``gdn_dispatch.hookspecs``."""
    from gdn_dispatch_xpu.probe import probe_machine

    return probe_machine()
