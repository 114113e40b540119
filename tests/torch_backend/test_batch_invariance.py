"""A sequence gets the same bits whatever else is in the batch, and wherever it stands in it."""

import random
from functools import cache
from itertools import pairwise

import pytest
import torch

from gdn_dispatch import build_chunk_meta, gdn_attention, plan_batch
from gdn_dispatch.testing.layer_inputs import LayerDims, Tokens, random_layer, random_tokens
from gdn_dispatch.testing.numbers import generator, same_bits
from gdn_dispatch.testing.rule_inputs import (
    Dims,
    RuleInputs,
    cu_seqlens,
    inputs_with,
    mild_gates,
    random_states,
    starts_of,
)
from tests.support.rule_calls import forms
from tests.support.threads import torch_threads

ODD = LayerDims(H=1, HV=3, K=5, V=7, W=4)
MODEL = LayerDims(H=16, HV=32, K=128, V=128, W=4)
LENGTHS = (1, 2, 3, 7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 97, 128, 130, 255, 256, 300)
MODEL_LENGTHS = (1, 5, 9, 33, 100, 257)

threads = pytest.mark.parametrize("num_threads", [2, 3])


def rule_dims(dims):
    return Dims(dims.H, dims.HV, dims.K, dims.V)


@cache
def sequence(dims, length):
    """The sequence of that length: always the same numbers."""
    return inputs_with(mild_gates, length, rule_dims(dims), seed=length)


@cache
def start_state(dims, length):
    return random_states(1, rule_dims(dims), seed=length)[0]


def pack(sequences):
    return RuleInputs(*(torch.cat(parts) for parts in zip(*sequences, strict=True)))


def run_rule(form, dims, lengths, **options):
    """Output and final state of each sequence of a packed batch."""
    inputs = pack([sequence(dims, n) for n in lengths])
    output, final = form(
        *inputs.packed(), cu_seqlens=cu_seqlens(lengths), output_final_state=True,
        initial_state=torch.stack([start_state(dims, n) for n in lengths]),
        use_qk_l2norm_in_kernel=True, **options,
    )  # fmt: skip
    starts = starts_of(lengths)
    return [(output[0, a:b], final[n]) for n, (a, b) in enumerate(pairwise(starts))]


@cache
def layer_tokens(dims, length):
    return random_tokens(length, dims, rng=length)


@cache
def conv_line(dims, length):
    return torch.randn(dims.D, dims.W - 1, generator=generator(length))


@cache
def layer_of(dims):
    return random_layer(dims)


def run_layer(dims, lengths):
    """The same of ``gdn_attention``; slots are given from the back of the pools."""
    N = len(lengths)
    tokens = [layer_tokens(dims, n) for n in lengths]
    step = Tokens(*(torch.cat([getattr(t, x) for t in tokens]) for x in ("mixed_qkv", "a", "b")))
    slots = list(reversed(range(N)))
    conv = torch.stack([conv_line(dims, n) for n in reversed(lengths)])
    ssm = torch.stack([start_state(dims, n) for n in reversed(lengths)])
    starts = starts_of(lengths)
    meta = build_chunk_meta(plan_batch(starts, state_indices=slots), "cpu")
    output = gdn_attention(
        **step.arguments, meta=meta, conv_state=conv, ssm_state=ssm, **layer_of(dims).arguments
    )
    return [(output[starts[n] : starts[n + 1]], conv[slots[n]], ssm[slots[n]]) for n in range(N)]


def batches(lengths, seed):
    """Every length in other company: shuffled, cut into batches of one to many."""
    rng = random.Random(seed)
    order = [*lengths, *lengths]
    rng.shuffle(order)
    while order:
        size = rng.choice([2, 3, 5, 11])
        batch, order = order[:size], order[size:]
        yield tuple(batch)


def assert_same_as_alone(run, dims, batches):
    alone = cache(lambda length: run(dims, (length,))[0])
    for batch in batches:
        for length, got in zip(batch, run(dims, batch), strict=True):
            for part, expected in zip(got, alone(length), strict=True):
                assert same_bits(part, expected), f"length {length} in {batch}"


def rule(form):
    return lambda dims, lengths: run_rule(form, dims, lengths)


@forms
@pytest.mark.parametrize("seed", range(3))
def test_rule(form, seed):
    assert_same_as_alone(rule(form), ODD, batches(LENGTHS, seed))


@pytest.mark.parametrize("seed", range(3))
def test_layer(seed):
    assert_same_as_alone(run_layer, ODD, batches(LENGTHS, seed))


DECODES = [(1,) * N for N in (2, 3, 8, 33, 64)]


def test_layer_of_decodes():
    assert_same_as_alone(run_layer, ODD, DECODES)


@forms
@threads
def test_rule_with_more_threads(form, num_threads):
    with torch_threads(num_threads):
        assert_same_as_alone(rule(form), ODD, [(300, 9, 130, 1, 64)])


@threads
def test_layer_with_more_threads(num_threads):
    with torch_threads(num_threads):
        assert_same_as_alone(run_layer, ODD, [(300, 9, 130, 1, 64), DECODES[-1]])


@forms
def test_rule_with_many_heads_and_chunks(form):
    """So many gates that torch cuts them for three threads, not at a vector's end."""
    dims = LayerDims(H=1, HV=64, K=4, V=4, W=1)
    with torch_threads(3):
        assert_same_as_alone(rule(form), dims, [(n, 1024) for n in range(1000, 1003)])


REAL = [MODEL_LENGTHS, MODEL_LENGTHS[::-1], (1, 257, 1)]


@forms
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_rule_with_real_head_dims(form, num_threads):
    with torch_threads(num_threads):
        assert_same_as_alone(rule(form), MODEL, REAL)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_layer_with_real_head_dims(num_threads):
    with torch_threads(num_threads):
        assert_same_as_alone(run_layer, MODEL, [*REAL, (1,) * 9])


@forms
def test_dense_rows_equal_packed_sequences(form):
    T = 70
    lengths = (T, T, T)
    states = torch.stack([start_state(ODD, n) for n in (1, 2, 3)])
    inputs = inputs_with(mild_gates, 3 * T, rule_dims(ODD))
    packed = form(
        *inputs.packed(), cu_seqlens=cu_seqlens(lengths), initial_state=states,
        output_final_state=True,
    )  # fmt: skip
    dense = form(
        *inputs.map(lambda x: x.unflatten(0, (3, T))), initial_state=states,
        output_final_state=True,
    )  # fmt: skip
    assert same_bits(dense[0].flatten(0, 1), packed[0][0])
    assert same_bits(dense[1], packed[1])


@forms
def test_strided_gates_get_the_same_bits_in_any_company(form):
    """Elementwise kernels take another path over strided memory than over gathered rows."""

    def run(lengths):
        inputs = pack([sequence(ODD, n) for n in lengths])
        wide = [torch.zeros(sum(lengths), 2 * ODD.HV)[:, ::2] for _ in range(2)]
        g, beta = (w.copy_(x) for w, x in zip(wide, (inputs.g, inputs.beta), strict=True))
        output, _ = form(
            *RuleInputs(inputs.q, inputs.k, inputs.v, g, beta).packed(),
            cu_seqlens=cu_seqlens(lengths),
        )
        return output[0].split(lengths)

    for batch in ((5, 40, 3), (2, 0, 4), (3, 7, 1, 70, 8)):
        for length, got in zip(batch, run(batch), strict=True):
            if length:
                assert same_bits(got, run((length,))[0]), f"length {length} in {batch}"
