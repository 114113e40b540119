"""torch.compile: one graph around any backend, the same bits, the operators as they should be."""

from __future__ import annotations

import pytest
import torch

from gdn_dispatch import gdn_attention
from gdn_dispatch.capability import Feature
from gdn_dispatch.testing.conformance.accuracy import packed_case
from gdn_dispatch.testing.conformance.base import Conformance, forms, layer_test, needs
from gdn_dispatch.testing.layer_inputs import on_device, random_layer, random_tokens
from gdn_dispatch.testing.numbers import same_bits
from gdn_dispatch.testing.subject import call_rule

LENGTHS = (40, 0, 7)


class CompileTests(Conformance):
    """Inside a compiled function."""

    @pytest.fixture
    def compiled(self):
        """Compiles into one graph; the compiler forgets everything before and after."""
        torch._dynamo.reset()
        yield lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")
        torch._dynamo.reset()

    @forms
    @needs(Feature.VARLEN)
    def test_rule_is_one_graph(self, subject, form, compiled):
        inputs, states = packed_case(subject, lengths=LENGTHS)
        inputs = inputs.map(lambda x: x.to(subject.device)).packed()
        states = states.to(subject.device)

        def function(q, k, v, g, beta, state, meta):
            o, final = call_rule(
                form, (q * 2, k, v, g, beta), initial_state=state, output_final_state=True,
                meta=meta,
            )  # fmt: skip
            return o + 1, final

        run = compiled(function)
        for lengths in (LENGTHS, (3, 20, 24)):
            meta = subject.meta(lengths)
            expected = function(*inputs, states, meta)
            assert all(map(same_bits, run(*inputs, states, meta), expected))

    @layer_test()
    def test_layer_is_one_graph(self, subject, compiled):
        dims = subject.layer_dims()
        layer = on_device(random_layer(dims, dtype=subject.dtype).arguments, subject.device)
        tokens = random_tokens(47, dims, dtype=subject.dtype)

        def function(inputs, pools, meta):
            return gdn_attention(**inputs, **layer, **pools, meta=meta) * 2

        run = compiled(function)
        inputs = on_device(tokens.arguments, subject.device)
        for lengths, slots in ((LENGTHS, [1, 2, 0]), ((3, 20, 24), [0, 1, 2])):
            meta = subject.meta(lengths, state_indices=slots, has_initial_state=[False] * 3)
            results = []
            for call in (run, function):
                pools = subject.pools(3, dims).arguments
                # of their own: the compiler does not follow two dtypes in one page of bytes
                pools |= {name: pools[name].clone() for name in ("conv_state", "ssm_state")}
                with torch.no_grad():
                    output = call(inputs, pools, meta)
                results.append((output, pools["conv_state"], pools["ssm_state"]))
            assert all(map(same_bits, *results))

    @forms
    @needs(Feature.VARLEN)
    def test_operator_of_the_rule(self, subject, form):
        inputs, states = packed_case(subject, lengths=LENGTHS)
        inputs = inputs.map(lambda x: x.to(subject.device)).packed()
        meta = subject.meta(LENGTHS)
        arguments = (
            form == "recurrent", *inputs, None, states.to(subject.device), True, False, False,
            False, False, None, None, False, None, None, meta.handle, subject.name,
        )  # fmt: skip
        torch.library.opcheck(torch.ops.gdn_dispatch.gated_delta_rule.default, arguments)

    @layer_test()
    def test_operator_of_the_layer(self, subject):
        dims = subject.layer_dims()
        layer = on_device(random_layer(dims, dtype=subject.dtype).arguments, subject.device)
        inputs = on_device(random_tokens(47, dims, dtype=subject.dtype).arguments, subject.device)
        pools = subject.pools(3, dims)
        pools.pages.zero_()
        meta = subject.meta(LENGTHS, state_indices=[1, 2, 0])
        out = torch.empty(47, dims.HV, dims.V, dtype=subject.dtype, device=subject.device)
        arguments = (
            inputs["mixed_qkv"], inputs["a"], inputs["b"], meta.handle, pools.conv, pools.ssm,
            layer["conv_weight"], layer["conv_bias"], layer["A_log"], layer["dt_bias"], "silu",
            None, False, False, out, subject.name, None, None, None, False,
        )  # fmt: skip
        torch.library.opcheck(
            torch.ops.gdn_dispatch.gdn_attention.default, arguments,
            test_utils=("test_schema", "test_faketensor"),
        )  # fmt: skip
