"""What the adapters of the CUDA package convert with, against the torch arithmetic beside it."""

import math

import pytest
import torch

from gdn_dispatch.testing.numbers import generator, relative_error
from gdn_dispatch.torch_backend.kernels.gates import decay_from_gate, write_strength
from tests.triton.step_inputs import DEVICE

operands = pytest.importorskip("gdn_dispatch_cuda.kernels.operands")


@pytest.mark.parametrize(("H", "K"), [(1, 128), (3, 64), (2, 24)])
@pytest.mark.parametrize("rows", [0, 1, 37])
def test_heads_get_unit_length(rows, H, K):
    wide = torch.randn(1, rows, H + 2, 3 * K, generator=generator(0)).to(DEVICE)
    q, k = wide[:, :, 1 : H + 1, :K], wide[:, :, 2:, K : 2 * K]
    k[:, 1:2] = 0.0
    for x, unit in zip((q, k), operands.unit_heads(q, k), strict=True):
        expected = x.double() / (x.double().square().sum(-1, keepdim=True) + 1e-6).sqrt()
        assert unit.is_contiguous()
        assert (unit.dtype, unit.shape) == (x.dtype, x.shape)
        assert rows == 0 or relative_error(unit.cpu(), expected.cpu()) < 1e-6


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(("logit", "negative"), [(False, False), (True, False), (True, True)])
def test_gates(linear, raw, logit, negative):
    HV, smallest = 6, -60.0
    wide = torch.randn(2, 129, 3 * HV, generator=generator(1)) * 8
    g, beta = wide[..., :HV], wide[..., HV : 2 * HV]
    A_log, dt_bias = torch.randn(2, HV, generator=generator(2))
    if raw:
        expected = decay_from_gate(g.double(), A_log, dt_bias)
    else:
        g = -g.abs()
        g[0, :4, 0] = torch.tensor([-math.inf, -1e4, 0.0, -61.0])
        expected = g
    expected = expected.exp() if linear else expected.clamp(min=smallest)
    decay, strength = operands.gates(
        g.to(DEVICE),
        beta.to(DEVICE),
        A_log=A_log.to(DEVICE) if raw else None,
        dt_bias=dt_bias.to(DEVICE) if raw else None,
        linear=linear,
        smallest=smallest,
        beta_is_logit=logit,
        allow_neg_eigval=negative,
    )
    wanted = write_strength(beta, is_logit=logit, allow_neg_eigval=negative)
    for found, right in ((decay, expected), (strength, wanted)):
        assert found.is_contiguous()
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.cpu(), right.float(), rtol=1e-5, atol=1e-6)
