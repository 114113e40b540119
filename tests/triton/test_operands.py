"""What the adapters of the CUDA package convert with, against the torch arithmetic beside it."""

import math
from types import SimpleNamespace

import pytest
import torch

from gdn_dispatch.testing.numbers import generator, relative_error
from gdn_dispatch.torch_backend.kernels.gates import decay_from_gate, write_strength
from tests.triton.step_inputs import DEVICE

operands = pytest.importorskip("gdn_dispatch_cuda.kernels.operands")
convert = pytest.importorskip("gdn_dispatch_cuda.providers.convert")


@pytest.mark.parametrize(("H", "K"), [(1, 128), (3, 64), (2, 24)])
@pytest.mark.parametrize("rows", [0, 1, 37])
def test_heads_get_unit_length(rows, H, K):
    wide = torch.randn(1, rows, H + 2, 3 * K, generator=generator(0)).to(DEVICE)
    q, k = wide[:, :, 1 : H + 1, :K], wide[:, :, 2:, K : 2 * K]
    k[:, 1:2] = 0.0
    g = -torch.rand(1, rows, 5, generator=generator(1)).to(DEVICE)
    gates = operands.Gates(g, g.half(), None, None, True, -60.0, False, False)
    units, decay, strength = operands.converted((q, k), gates)
    torch.testing.assert_close(decay.cpu(), g.cpu().exp(), rtol=1e-5, atol=1e-6)
    assert torch.equal(strength, g.half().float())
    for x, unit in zip((q, k), units, strict=True):
        expected = x.double() / (x.double().square().sum(-1, keepdim=True) + 1e-6).sqrt()
        assert unit.is_contiguous()
        assert (unit.dtype, unit.shape) == (x.dtype, x.shape)
        assert rows == 0 or relative_error(unit.cpu(), expected.cpu()) < 1e-6


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(("logit", "negative"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("flat", [False, True])
def test_gates(flat, linear, raw, logit, negative):
    HV, smallest = 6, -60.0
    wide = torch.randn(2, 129, 3 * HV, generator=generator(1)) * 8
    A_log, dt_bias = torch.randn(2, HV, generator=generator(2))
    if not raw:
        wide[..., :HV] = -wide[..., :HV].abs()
        wide[0, :4, 0] = torch.tensor([-math.inf, -1e4, 0.0, -61.0])
    expected = wide[..., :HV]
    if raw:
        expected = decay_from_gate(expected.double(), A_log, dt_bias)
    expected = expected.exp() if linear else expected.clamp(min=smallest)
    there = wide.to(DEVICE)
    g, beta = there[..., :HV], there[..., HV : 2 * HV]
    if flat:
        g, beta = g.contiguous(), beta.contiguous()
    units, decay, strength = operands.converted(
        None,
        operands.Gates(
            g,
            beta,
            A_log=A_log.to(DEVICE) if raw else None,
            dt_bias=dt_bias.to(DEVICE) if raw else None,
            linear=linear,
            smallest=smallest,
            beta_is_logit=logit,
            allow_neg_eigval=negative,
        ),
    )
    assert units is None
    assert (strength is beta) == (flat and not logit)
    beta = beta.cpu()
    wanted = write_strength(beta, is_logit=logit, allow_neg_eigval=negative)
    for found, right in ((decay, expected), (strength, wanted)):
        assert found.is_contiguous()
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.cpu(), right.float(), rtol=1e-5, atol=1e-6)


class Counted:
    """A kernel that counts its launches."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid):
        self.launches += 1
        return self.kernel[grid]


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("linear", [True, False])
def test_an_adapter_launches_once_for_all_it_converts(monkeypatch, heads, linear):
    counted = Counted(operands.operands_kernel)
    monkeypatch.setattr(operands, "operands_kernel", counted)
    q, k = torch.randn(2, 1, 70, 2, 32, generator=generator(0)).to(DEVICE)
    g, beta = -torch.rand(2, 1, 70, 4, generator=generator(1)).to(DEVICE)
    request = SimpleNamespace(
        q=q, k=k, g=g, beta=beta.half(), A_log=None, dt_bias=None,
        use_beta_sigmoid_in_kernel=True, allow_neg_eigval=False,
    )  # fmt: skip
    found = convert._launched(request, linear, heads=heads)
    assert counted.launches == 1
    expected = (
        convert._unit(q) if heads else q,
        convert._unit(k) if heads else k,
        g.exp() if linear else g,
        beta.half().float().sigmoid(),
    )
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
