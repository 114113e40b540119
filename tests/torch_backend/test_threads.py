"""Calls from two threads at once: the same results, and nothing left behind."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from gdn_dispatch import build_chunk_meta, gdn_attention, plan_batch
from gdn_dispatch.torch_backend.kernels.gemm import fast_fp32_products
from tests.support.layer_inputs import LayerDims, random_layer, random_tokens
from tests.support.numbers import same_bits
from tests.support.rule_calls import chunk, forms, run_packed
from tests.support.rule_inputs import Dims, random_inputs

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


@pytest.fixture
def matmul():
    """The process's setting, at a value that no kernel sets."""
    settings = torch.backends.mkldnn.matmul
    before, settings.fp32_precision = settings.fp32_precision, "ieee"
    yield settings
    settings.fp32_precision = before


def test_matmul_precision_is_restored_by_the_last_to_leave(matmul):
    first, second = fast_fp32_products("cpu"), fast_fp32_products("cpu")
    first.__enter__()
    inside = matmul.fp32_precision
    second.__enter__()
    first.__exit__(None, None, None)
    assert matmul.fp32_precision == inside
    second.__exit__(None, None, None)
    assert matmul.fp32_precision == "ieee"


def test_matmul_precision_is_restored_after_calls_at_once(matmul):
    inputs = random_inputs(100, Dims(H=2, HV=4, K=32, V=24))
    at_once(lambda _: run_packed(chunk, inputs, (100,)), range(4))
    assert matmul.fp32_precision == "ieee"
