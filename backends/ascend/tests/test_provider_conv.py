"""The adapter of the convolution, against an operator of the documented schema."""

from __future__ import annotations

import pytest
import torch
from gdn_dispatch_ascend.meta import build_chunk_meta
from gdn_dispatch_ascend.providers import aclnn_conv, operators

from gdn_dispatch.errors import UnsupportedRequestError
from gdn_dispatch.plan.batch import plan_batch
from gdn_dispatch.testing.numbers import generator, relative_error
from gdn_dispatch.types import MetaRequest

HV = 2
CPU = torch.device("cpu")


class TestConvolution:
    KINDS = ("prefill", "decode")

    def inputs(self, kind, *, W=3, D=256, dtype=torch.bfloat16, slots=torch.int32):
        rng = generator(4)
        lengths = (5, 0, 2) if kind == "prefill" else (1, 1)
        starts = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
        chosen = torch.tensor([3, 5, 1][: len(lengths)], dtype=slots)
        meta = build_chunk_meta(
            MetaRequest(plan_batch(starts), CPU, state_indices=chosen, num_v_heads=HV)
        )  # fmt: skip
        x = torch.randn(starts[-1], D, generator=rng).to(dtype)
        weight = torch.randn(D, W, generator=rng).to(dtype)
        pool = torch.randn(7, W - 1, D, generator=rng).to(dtype).transpose(1, 2)
        return x, weight, pool, meta.arguments[kind]

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("activation", [None, "silu"])
    def test_numbers(self, calls, kind, activation):
        x, weight, pool, arguments = self.inputs(kind)
        before = pool.clone()
        expected = torch.zeros(x.shape, dtype=torch.float64)
        starts = arguments.query_start_loc.tolist()
        lines = before.clone()
        for n, slot in enumerate(arguments.cache_indices.tolist()):
            a, b = starts[n], starts[n + 1]
            line = torch.cat([before[slot].t(), x[a:b]]).double()
            for t in range(a, b):
                expected[t] = (line[t - a : t - a + 3] * weight.t().double()).sum(0)
            lines[slot] = line[-2:].t().to(pool.dtype)
        if activation == "silu":
            expected = torch.nn.functional.silu(expected)
        got = aclnn_conv.causal_conv1d(x, weight, pool, arguments, activation=activation)
        assert relative_error(got, expected) < 1e-2
        assert torch.equal(pool, lines)

    def refused(self, calls, words, x, weight, pool, arguments, **rest):
        before = pool.clone()
        with pytest.raises(UnsupportedRequestError) as caught:
            aclnn_conv.causal_conv1d(x, weight, pool, arguments, **rest)
        assert words in str(caught.value)
        assert "npu_fused_causal_conv1d" in str(caught.value)
        assert calls == []
        assert torch.equal(pool, before)

    def test_qwens_width(self, calls):
        self.refused(calls, "a convolution of width 4", *self.inputs("prefill", W=4))

    def test_channels(self, calls):
        self.refused(calls, "192 channels", *self.inputs("prefill", D=192))

    def test_dtypes(self, calls):
        self.refused(calls, "x of torch.float32", *self.inputs("prefill", dtype=torch.float32))
        x, weight, pool, arguments = self.inputs("prefill")
        self.refused(calls, "conv_weight of torch.float16", x, weight.half(), pool, arguments)
        self.refused(calls, "conv_state of torch.float16", x, weight, pool.half(), arguments)
        self.refused(calls, "state_indices of", *self.inputs("prefill", slots=torch.int64))

    def test_a_pool_with_tokens_last(self, calls):
        x, weight, pool, arguments = self.inputs("prefill")
        self.refused(calls, "channels lie side by side", x, weight, pool.contiguous(), arguments)

    def test_wide_lines(self, calls):
        x, weight, _, arguments = self.inputs("prefill")
        pool = torch.zeros(7, 5, 256, dtype=x.dtype).transpose(1, 2)
        self.refused(calls, "lines of 5 columns", x, weight, pool, arguments)

    def test_what_it_does_not_support_yet(self, calls):
        x, weight, pool, arguments = self.inputs("prefill")
        self.refused(calls, "a bias", x, weight, pool, arguments, bias=torch.zeros(256))
        self.refused(calls, "'relu'", x, weight, pool, arguments, activation="relu")
        arguments.initial_state_mode = torch.tensor([True, False, True])
        self.refused(calls, "has_initial_state", x, weight, pool, arguments)

    def test_rows_without_slots_and_drafts(self, calls):
        x, weight, pool, arguments = self.inputs("prefill")
        arguments.num_accepted_tokens = torch.ones(3, dtype=torch.int32)
        self.refused(calls, "speculative rows", x, weight, pool, arguments)
        arguments.num_accepted_tokens = arguments.cache_indices = None
        self.refused(calls, "rows without slots", x, weight, pool, arguments)

    def test_another_device(self, calls, monkeypatch):
        monkeypatch.setattr(operators, "DEVICE_TYPES", ("npu",))
        self.refused(calls, "tensors on cpu", *self.inputs("prefill"))
