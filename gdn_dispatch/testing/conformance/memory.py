"""Memory: free strides, pools past 32-bit addresses, nothing read before it is written."""

from __future__ import annotations

import math
import mmap

import pytest
import torch

from gdn_dispatch import gdn_attention
from gdn_dispatch.capability import Feature
from gdn_dispatch.testing.conformance.accuracy import LENGTHS, assert_close, packed_case
from gdn_dispatch.testing.conformance.base import Conformance, forms, layer_test, needs
from gdn_dispatch.testing.host_reads import record_host_reads
from gdn_dispatch.testing.layer_inputs import on_device, random_layer, random_tokens
from gdn_dispatch.testing.numbers import relative_error, same_bits
from gdn_dispatch.testing.poison import in_new_thread, with_poisoned_memory
from gdn_dispatch.testing.rule_inputs import oracle
from gdn_dispatch.testing.subject import call_rule


def every_other_column(x):
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), math.nan, dtype=x.dtype, device=x.device)
    return wide[..., ::2].copy_(x)


def time_outermost(x):
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def heads_before_time(x):
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def slice_of_a_projection(x):
    shape = (*x.shape[:2], 3, *x.shape[2:])
    wide = torch.full(shape, math.nan, dtype=x.dtype, device=x.device)
    return wide[:, :, 1].copy_(x)


def unaligned(x):
    flat = torch.full((x.numel() + 1,), math.nan, dtype=x.dtype, device=x.device)
    return flat[1:].view_as(x).copy_(x)


STRIDES = [every_other_column, time_outermost, heads_before_time, slice_of_a_projection, unaligned]
MIXED = (1, 40, 0, 1, 70, 5)


def mixed_step(subject, dims):
    """A step of prefills and decodes on fresh pools: a function that runs it, and its pools."""
    layer = random_layer(dims, dtype=subject.dtype)
    tokens = random_tokens(sum(MIXED), dims, dtype=subject.dtype)
    pools = subject.pools(len(MIXED), dims)
    plan = {"state_indices": list(range(len(MIXED))), "has_initial_state": [False] * len(MIXED)}
    return lambda: subject.serve(pools, layer, tokens, MIXED, **plan), pools


class MemoryTests(Conformance):
    """What is touched, and how."""

    @forms
    @pytest.mark.parametrize("strides", STRIDES, ids=lambda f: f.__name__)
    def test_strides_of_inputs_are_free(self, subject, form, strides):
        lengths = (40, 40, 40)
        inputs, states = packed_case(subject, lengths=lengths)
        given = inputs.map(lambda x: strides(x.to(subject.device).unflatten(0, (3, 40))))
        output, final = subject.rule(form, given, initial_state=states)
        got = output.flatten(0, 1).unsqueeze(0), final
        assert_close(got, oracle(inputs, lengths, states), lengths, subject.tolerance())

    @forms
    @needs(Feature.VARLEN)
    def test_inputs_are_not_written(self, subject, form):
        inputs, states = packed_case(subject)
        inputs = inputs.map(lambda x: x.to(subject.device))
        before = inputs.map(torch.clone)
        subject.rule(
            form, inputs, LENGTHS, initial_state=states, use_qk_l2norm_in_kernel=True,
            use_beta_sigmoid_in_kernel=True, allow_neg_eigval=True,
        )  # fmt: skip
        assert all(map(same_bits, inputs, before))

    @forms
    @pytest.mark.parametrize("lengths", [LENGTHS, (1,), (5, 1, 0), (32,), (200,)], ids=str)
    @needs(Feature.VARLEN)
    def test_rule_reads_nothing_uninitialised(self, subject, form, lengths):
        inputs, _ = packed_case(subject, lengths=lengths)
        expected = subject.rule(form, inputs, lengths)
        got = with_poisoned_memory(lambda: subject.rule(form, inputs, lengths))
        assert all(map(same_bits, got, expected))

    @layer_test()
    def test_layer_reads_nothing_uninitialised(self, subject):
        dims = subject.layer_dims()
        run, pools = mixed_step(subject, dims)
        expected = run()
        states = [pools.state(slot) for slot in (0, 1, 3, 4, 5)]
        again, others = mixed_step(subject, dims)
        assert same_bits(with_poisoned_memory(again), expected)
        assert all(
            same_bits(others.state(slot), state)
            for slot, state in zip((0, 1, 3, 4, 5), states, strict=True)
        )

    @forms
    @needs(Feature.VARLEN)
    def test_memory_of_the_call_before_does_not_matter(self, subject, form):
        inputs, _ = packed_case(subject)
        expected = in_new_thread(lambda: subject.rule(form, inputs, LENGTHS))
        sick, _ = packed_case(subject, lengths=(200,))
        sick = sick.map(lambda x: torch.full_like(x, math.nan))
        assert subject.rule(form, sick, (200,))[0].isnan().all()
        assert all(map(same_bits, subject.rule(form, inputs, LENGTHS), expected))

    @pytest.mark.parametrize("which", ["conv_state", "ssm_state"])
    @layer_test()
    def test_pools_past_the_reach_of_32_bits(self, subject, which):
        """The offset of the slot used, in elements, is more than an int32 can hold."""
        dims = subject.layer_dims()
        pools = subject.pools(1, dims)
        far = {name: x for name, x in pools.arguments.items() if isinstance(x, torch.Tensor)}
        slots, stride = 4, 2**30
        far[which] = _spread(far[which], slots, stride)
        for name in far.keys() - {which}:
            far[name] = _spread(far[name], slots, far[name][0].numel())
        layer = random_layer(dims, dtype=subject.dtype)
        tokens = random_tokens(41, dims, dtype=subject.dtype)
        expected, _, state = layer.reference(tokens)
        outputs = []
        for lengths, has_state, rows in (((40,), False, (0, 40)), ((1,), True, (40, 41))):
            meta = subject.meta(lengths, state_indices=[3], has_initial_state=[has_state])
            inputs = on_device(tokens.rows(*rows).arguments, subject.device)
            result = gdn_attention(
                **inputs, **on_device(layer.arguments, subject.device), **far, meta=meta,
                state_v_first=pools.layout.state_v_first,
            )  # fmt: skip
            outputs.append(result.cpu())
        assert relative_error(torch.cat(outputs), expected) <= subject.tolerance()
        final = far["ssm_state"][3].cpu()
        final = final.transpose(1, 2) if pools.layout.state_v_first else final
        assert relative_error(final, state) <= subject.tolerance()

    @layer_test(Feature.NO_HOST_READ)
    def test_layer_reads_no_device_tensor_on_the_host(self, subject):
        dims = subject.layer_dims()
        layer = random_layer(dims, dtype=subject.dtype)
        tokens = random_tokens(sum(MIXED), dims, dtype=subject.dtype)
        pools = subject.pools(len(MIXED), dims)
        given = {
            "state_indices": torch.arange(len(MIXED)),
            "has_initial_state": torch.zeros(len(MIXED), dtype=torch.bool),
        }
        meta = subject.meta(MIXED, device=given)
        out = torch.empty(sum(MIXED), dims.HV, dims.V, dtype=subject.dtype, device=subject.device)
        inputs = on_device(tokens.arguments | layer.arguments, subject.device)
        with record_host_reads(subject.device) as reads:
            gdn_attention(**inputs, **pools.arguments, meta=meta, out=out)
        assert not reads

    @forms
    @needs(Feature.VARLEN, Feature.NO_HOST_READ)
    def test_rule_reads_no_device_tensor_on_the_host(self, subject, form):
        inputs, states = packed_case(subject)
        inputs = inputs.map(lambda x: x.to(subject.device)).packed()
        states, meta = states.to(subject.device), subject.meta(LENGTHS)
        with record_host_reads(subject.device) as reads:
            call_rule(form, inputs, initial_state=states, output_final_state=True, meta=meta)
        assert not reads


def _spread(pool, slots, stride):
    """A pool of the same slot shape, its slots ``stride`` elements apart; most is never touched."""
    size = ((slots - 1) * stride + pool[0].numel()) * pool.element_size()
    device = pool.device
    if device.type == "cpu":
        # address space without memory: pages come when they are touched
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        memory = mmap.mmap(-1, size, flags=flags)
        flat = torch.frombuffer(memory, dtype=pool.dtype)
    else:
        free, _ = torch.get_device_module(device).mem_get_info(device)
        if free < size + 2**30:
            pytest.skip(f"needs {size >> 30} GiB on {device}, {free >> 30} GiB are free")
        flat = torch.empty(size // pool.element_size(), dtype=pool.dtype, device=device)
    return flat.as_strided((slots, *pool.shape[1:]), (stride, *pool.stride()[1:]))
