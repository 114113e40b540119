"""What is refused: with a typed error that names the argument, and before anything is written."""

from __future__ import annotations

import pytest
import torch

from gdn_dispatch import GDNDispatchError, gdn_attention
from gdn_dispatch.capability import Feature
from gdn_dispatch.testing.conformance.accuracy import packed_case
from gdn_dispatch.testing.conformance.base import Conformance, forms, layer_test, needs
from gdn_dispatch.testing.layer_inputs import on_device, random_layer, random_tokens

LENGTHS = (40, 1, 5)


def wider(x):
    return torch.cat([x, x], dim=-1)


def as_ints(x):
    return x.to(torch.int32)


LAYER_MISTAKES = {
    "mixed_qkv of another width": ("mixed_qkv", wider),
    "mixed_qkv of ints": ("mixed_qkv", as_ints),
    "a token too few": ("a", lambda x: x[:-1]),
    "a of other heads": ("a", wider),
    "b of another dtype": ("b", lambda x: x.double()),
    "conv_state too narrow": ("conv_state", lambda x: x[:, :, :1]),
    "conv_state of other channels": ("conv_state", lambda x: x[:, 1:]),
    "ssm_state of other heads": ("ssm_state", lambda x: x[:, 1:]),
    "ssm_state of ints": ("ssm_state", as_ints),
    "ssm_state with too few slots": ("ssm_state", lambda x: x[:2]),
    "conv_weight of other channels": ("conv_weight", lambda x: x[1:]),
    "A_log of other heads": ("A_log", wider),
    "dt_bias is a number": ("dt_bias", lambda x: 1.0),
    "out of another shape": ("out", lambda x: x[:, 1:]),
    "an unknown activation": ("activation", lambda x: "relu6"),
    "a scale that is not a number": ("scale", lambda x: "1"),
    "no metadata": ("meta", lambda x: None),
}
RULE_MISTAKES = {
    "k of another K": ("k", wider),
    "v of no multiple of the heads": ("v", lambda x: torch.cat([x, x[:, :, :1]], dim=2)),
    "g of other heads": ("g", wider),
    "beta is a number": ("beta", lambda x: 1.0),
    "initial_state of other heads": ("initial_state", lambda x: x[:, 1:]),
    "initial_state of ints": ("initial_state", as_ints),
    "cu_seqlens_cpu past the end": ("cu_seqlens_cpu", lambda x: [*x[:-1], x[-1] + 1]),
    "cu_seqlens_cpu that falls": ("cu_seqlens_cpu", lambda x: [x[0], x[2], x[1], x[3]]),
}


class RefusalTests(Conformance):
    """Bad input."""

    def layer_call(self, subject):
        dims = subject.layer_dims()
        layer = random_layer(dims, dtype=subject.dtype)
        tokens = random_tokens(sum(LENGTHS), dims, dtype=subject.dtype)
        pools = subject.pools(4, dims)
        pools.ssm.fill_(0.25)  # not zero: that is what a backend may write too early
        pools.conv.fill_(0.25)
        shape = (sum(LENGTHS), dims.HV, dims.V)
        arguments = on_device(tokens.arguments | layer.arguments, subject.device)
        return pools, arguments | pools.arguments | {
            "meta": subject.meta(LENGTHS, state_indices=[3, 0, 1]),
            "out": torch.full(shape, 7.0, dtype=subject.dtype, device=subject.device),
        }  # fmt: skip

    @pytest.mark.parametrize("mistake", LAYER_MISTAKES)
    @layer_test()
    def test_refused_layer_call_leaves_everything_as_it_was(self, subject, mistake):
        pools, arguments = self.layer_call(subject)
        name, change = LAYER_MISTAKES[mistake]
        before, out = pools.pages.clone(), arguments["out"]
        arguments[name] = change(arguments.get(name))
        with pytest.raises(GDNDispatchError, match=name):
            gdn_attention(**arguments)
        assert torch.equal(pools.pages, before)
        assert (out == 7.0).all()

    @pytest.mark.parametrize("slot", [4, 2**31 - 1])
    @layer_test()
    def test_slot_outside_the_pools_is_refused_where_the_host_can_see_it(self, subject, slot):
        if subject.device.type != "cpu":
            pytest.skip("slots given as tensors cannot be looked at without stalling the device")
        pools, arguments = self.layer_call(subject)
        before = pools.pages.clone()
        given = {
            "state_indices": torch.tensor([3, 0, slot]),
            "has_initial_state": torch.zeros(3, dtype=torch.bool),
        }
        arguments["meta"] = subject.meta(LENGTHS, device=given)
        with pytest.raises(GDNDispatchError, match=f"slot {slot}"):
            gdn_attention(**arguments)
        assert torch.equal(pools.pages, before)
        assert (arguments["out"] == 7.0).all()

    @layer_test()
    def test_the_layer_call_is_good_before_it_is_spoilt(self, subject):
        _, arguments = self.layer_call(subject)
        assert gdn_attention(**arguments) is arguments["out"]

    @forms
    @pytest.mark.parametrize("mistake", RULE_MISTAKES)
    @needs(Feature.VARLEN)
    def test_refused_rule_call_names_the_argument(self, subject, form, mistake):
        inputs, states = packed_case(subject, lengths=LENGTHS)
        names = ("q", "k", "v", "g", "beta")
        arguments = dict(zip(names, inputs.packed(), strict=True))
        arguments |= {"initial_state": states, "cu_seqlens_cpu": [0, 40, 41, 46]}
        name, change = RULE_MISTAKES[mistake]
        arguments[name] = change(arguments[name])
        with pytest.raises(GDNDispatchError, match=name):
            subject.call(form, **arguments)
