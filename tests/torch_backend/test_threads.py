"""Calls from two threads at once: the same results."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

from gdn_dispatch import build_chunk_meta, gdn_attention, plan_batch
from gdn_dispatch.testing.layer_inputs import LayerDims, random_layer, random_tokens
from gdn_dispatch.testing.numbers import same_bits
from gdn_dispatch.testing.rule_inputs import Dims, random_inputs
from tests.support.rule_calls import forms, run_packed

DIMS = LayerDims(H=2, HV=4, K=32, V=24, W=4)
LENGTHS = (40, 1, 100, 0, 7)
ROUNDS = 12


def at_once(function, arguments):
    """``function`` of each argument, in as many threads, started together, many times over."""
    barrier = Barrier(len(arguments))

    def work(argument):
        barrier.wait()
        return [function(argument) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(work, arguments))


def assert_alone_and_at_once_agree(function):
    alone = [function(seed) for seed in range(3)]
    for expected, results in zip(alone, at_once(function, range(3)), strict=True):
        for result in results:
            assert all(map(same_bits, result, expected))


@forms
def test_rule(form):
    def call(seed):
        inputs = random_inputs(sum(LENGTHS), Dims(DIMS.H, DIMS.HV, DIMS.K, DIMS.V), seed=seed)
        return run_packed(form, inputs, LENGTHS)

    assert_alone_and_at_once_agree(call)


def test_layer():
    starts = [0, 40, 41, 141, 141, 148]
    layer = random_layer(DIMS)

    def call(seed):
        tokens = random_tokens(sum(LENGTHS), DIMS, rng=seed)
        conv, ssm = torch.zeros(5, DIMS.D, 3), torch.zeros(5, DIMS.HV, DIMS.K, DIMS.V)
        meta = build_chunk_meta(plan_batch(starts, state_indices=[0, 1, 2, 3, 4]), "cpu")
        output = gdn_attention(
            **tokens.arguments, **layer.arguments, meta=meta, conv_state=conv, ssm_state=ssm
        )
        return output, conv, ssm

    assert_alone_and_at_once_agree(call)
