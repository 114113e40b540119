"""Intel's wheel in an environment of its own: ``make xpu``. Elsewhere nothing here is collected."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import intel_wheel  # noqa: E402
from gdn_dispatch_xpu import plugin  # noqa: E402
from gdn_dispatch_xpu.capability import SYCL  # noqa: E402

from gdn_dispatch import Available, hookimpl  # noqa: E402
from gdn_dispatch.config import Config  # noqa: E402
from gdn_dispatch.plugins.registry import Registry  # noqa: E402
from gdn_dispatch.selection import dispatch  # noqa: E402
from gdn_dispatch.torch_backend import plugin as torch_backend  # noqa: E402

if not intel_wheel.INSTALLED:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header():
    missing = intel_wheel.why_not()
    return f"tests/xpu: {missing or 'the operator of vllm-xpu-kernels, with stub device libraries'}"


@pytest.fixture(scope="session")
def kernel(tmp_path_factory):
    """The operator of Intel's wheel, with a CPU kernel that tests choose."""
    missing = intel_wheel.why_not()
    if missing:
        pytest.skip(missing)
    return intel_wheel.Kernel(intel_wheel.load(tmp_path_factory.mktemp("stubs")))


class OnTheCpu:
    """The XPU backend's own hooks, for CPU tensors: nothing else of it is changed.

    Calls without a provider go to ``xpu/sycl`` alone. The kit has dt_bias in fp32, of values that
    bf16 holds; the operator takes the activation dtype, so it is cast, as an engine's would be.
    """

    def __init__(self) -> None:
        self.request = None  # the last one
        self.casts_dt_bias = True

    @hookimpl
    def backend_info(self):
        info = plugin.backend_info()
        return replace(info, device_types=("cpu",), capability=SYCL, priority=1)

    @hookimpl
    def probe(self):
        return Available("Intel's operator with a CPU kernel")

    @hookimpl
    def build_chunk_meta(self, request):
        return plugin.build_chunk_meta(request)

    @hookimpl
    def gdn_attention(self, request):
        request.provider = "sycl"
        if self.casts_dt_bias:
            request.dt_bias = request.dt_bias.to(request.out.dtype)
        self.request = request
        return plugin.gdn_attention(request)


@pytest.fixture(scope="module")
def registered(kernel):
    """The backend as the only one beside torch, for the tests of a module."""
    registry, config = dispatch.active_registry(), dispatch.active_config()
    fresh = Registry()
    kernel.plugin = OnTheCpu()
    fresh.register(kernel.plugin, "xpu")
    fresh.register(torch_backend, "torch")
    dispatch.install(fresh, Config())
    yield kernel
    dispatch.install(registry, config)
