"""A backend of the CUDA package's kernels and table, on CPU tensors, for ``compile_only``."""

from __future__ import annotations

from gdn_dispatch_cuda import meta
from gdn_dispatch_cuda.capability import CAPABILITY
from gdn_dispatch_cuda.kernels.table import CudaTable

from gdn_dispatch import Available, BackendInfo, hookimpl
from gdn_dispatch.triton_kernels import attention, rule
from gdn_dispatch.triton_kernels.specialized_config import gluon_is_there

NAME = "compiled"


class Plugin:
    """The hooks, for one architecture; ``gluon``: with the kernels that want it."""

    def __init__(self, arch, *, gluon=True):
        self.table = CudaTable(arch=arch, gluon=gluon and gluon_is_there())

    @hookimpl
    def backend_info(self):
        return BackendInfo(
            name=NAME, device_types=("cpu",), capability=CAPABILITY, chunk_size=meta.CHUNK_SIZE
        )

    @hookimpl
    def probe(self):
        return Available("compiles, and launches nothing")

    @hookimpl
    def gdn_attention(self, request):
        return attention.gdn_attention(request, self.table)

    @hookimpl
    def gated_delta_rule(self, request):
        return rule.gated_delta_rule(request, self.table)
