"""The backend as it would be on other machines: with another instruction set, or other threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gdn_dispatch_cpu import plugin
from gdn_dispatch_cpu.kernels import layer, rows, rule
from gdn_dispatch_cpu.kernels.library import PATHS, load_library
from gdn_dispatch_cpu.kernels.options import Options

from gdn_dispatch import Available, Unavailable, hookimpl
from gdn_dispatch.config import Config
from gdn_dispatch.plugins.registry import Registry
from gdn_dispatch.selection.dispatch import active_config, active_registry, install


class Forced:
    """A plugin that runs every call with some options."""

    def __init__(self, name, path="", num_threads=0, **limits):
        self.name, self.path, self.limits = name, path, limits
        self.options = Options(PATHS.get(path, 0), num_threads)

    @hookimpl
    def backend_info(self):
        info = plugin.backend_info()
        return replace(info, name=self.name, capability=replace(info.capability, **self.limits))

    @hookimpl
    def probe(self):
        if self.path and self.path not in load_library().paths:
            return Unavailable(f"no {self.path} on this machine")
        return Available(self.path)

    @hookimpl
    def build_chunk_meta(self, request):
        return rows.build_chunk_meta(request, backend=self.name)

    @hookimpl
    def gated_delta_rule(self, request):
        return rule.gated_delta_rule(request, self.options)

    @hookimpl
    def gdn_attention(self, request):
        return layer.gdn_attention(request, self.options)


@pytest.fixture(scope="module")
def forced_paths():
    """Every path, and some numbers of threads, as backends of their own."""
    registry, config = active_registry(), active_config()
    stand_in = Registry()
    others = (
        Forced("one_thread", num_threads=1),
        Forced("three_threads", num_threads=3),
        Forced("real_heads", head_dims_k=(128,), head_dims_v=(128,)),
    )
    for each in (*(Forced(path, path) for path in PATHS), *others):
        stand_in.register(each, each.name)
    install(stand_in, Config())
    yield
    install(registry, config)
