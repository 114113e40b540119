"""The Triton provider's table and the packing kernel, in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch
from engine_steps import STEPS, call, inputs_of, layer_of, meta_of, pools_of

from gdn_dispatch import Available, BackendInfo, hookimpl
from gdn_dispatch.config import Config
from gdn_dispatch.plugins.registry import Registry
from gdn_dispatch.selection import dispatch
from gdn_dispatch.testing.numbers import relative_error
from gdn_dispatch.torch_backend import plugin as torch_backend

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 (make xpu)", allow_module_level=True)

from gdn_dispatch_xpu.capability import TRITON
from gdn_dispatch_xpu.kernels.pack import pack
from gdn_dispatch_xpu.kernels.table import XpuTable

from gdn_dispatch.triton_kernels import attention
from gdn_dispatch.triton_kernels.config import LaunchShape

pytestmark = pytest.mark.filterwarnings("ignore")  # the interpreter's numpy, behind masks


@pytest.mark.parametrize("wanted", ["both", "projection", "gates"])
def test_the_packing_kernel_copies_columns(wanted):
    x = torch.randn(7, 2500)[:, 100:1500]
    a, b = torch.randn(24, 7).t(), torch.randn(7, 48)[:, ::2]
    packed = torch.full((7, 2000), 9.0) if wanted != "gates" else None
    gates = torch.full((7, 48), 9.0) if wanted != "projection" else None
    pack(x, a, b, packed, gates)
    if packed is not None:
        assert torch.equal(packed[:, :1400], x)
        assert (packed[:, 1400:] == 9).all()
    if gates is not None:
        assert torch.equal(gates, torch.cat([b, a], dim=1))


class Portable:
    """The provider's kernels, for CPU tensors."""

    @hookimpl
    def backend_info(self):
        return BackendInfo(name="portable", device_types=("cpu",), capability=TRITON, priority=-1)

    @hookimpl
    def probe(self):
        return Available("Triton's interpreter")

    @hookimpl
    def gdn_attention(self, request):
        return attention.gdn_attention(request, XpuTable())


@pytest.fixture
def _portable():
    registry, config = dispatch.active_registry(), dispatch.active_config()
    fresh = Registry()
    fresh.register(Portable(), "portable")
    fresh.register(torch_backend, "torch")
    dispatch.install(fresh, Config())
    yield
    dispatch.install(registry, config)


@pytest.mark.usefixtures("_portable")
@pytest.mark.parametrize("name", ["mixed", "all kinds"])
@pytest.mark.parametrize("v_first", [True, False])
def test_the_portable_kernels_with_the_xpu_table(name, v_first):
    """In fp32: products of bf16 are wrong in the interpreter."""
    step, layer, results = STEPS[name], layer_of(dtype=torch.float32), []
    tokens = step.get("total_tokens", sum(step["lengths"]))
    for backend in ("portable", "torch"):
        pools = pools_of(dtype=torch.float32, state_v_first=v_first)
        given = inputs_of("apart", tokens, dtype=torch.float32)
        meta = meta_of(step, backend=backend)
        output, _ = call(step, layer=layer, pools=pools, meta=meta, backend=backend, **given)
        results.append((output, pools))
    (ours, our_pools), (theirs, their_pools) = results
    assert relative_error(ours, theirs) <= 1e-5
    assert relative_error(our_pools.ssm, their_pools.ssm) <= 1e-5
    assert torch.equal(our_pools.conv, their_pools.conv)


def test_every_shape_has_a_configuration():
    table = XpuTable()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for rows in (1, 64, 4096):
            shape = LaunchShape(
                torch.device("xpu"), rows, rows, 1, 16, 32, 128, 128, dtype, torch.float32
            )
            assert table.prefill(shape).inverse_precision != "fp16"
            assert table.prefill(shape).segments is None
            assert table.steps(shape).block_values in (8, 16)
            assert table.conv_prefill(shape).block_tokens <= 64
            assert table.conv_update(shape).num_warps >= 2
