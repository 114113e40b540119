"""A sequence gets the same bits whatever else is in the batch, and wherever it stands in it."""

import random
from functools import cache

import pytest
import torch

from gdn_dispatch import build_chunk_meta, gdn_attention, plan_batch
from tests.support.layer_inputs import LayerDims, Tokens, random_layer, random_tokens
from tests.support.numbers import generator, same_bits
from tests.support.rule_calls import forms
from tests.support.rule_inputs import (
    Dims,
    RuleInputs,
    cu_seqlens,
    inputs_with,
    mild_gates,
    random_states,
    starts_of,
)
from tests.support.threads import torch_threads

ODD = LayerDims(H=1, HV=3, K=5, V=7, W=4)
MODEL = LayerDims(H=16, HV=32, K=128, V=128, W=4)
LENGTHS = (1, 2, 3, 7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 97, 128, 130, 255, 256, 300)
MODEL_LENGTHS = (1, 5, 8, 9, 32, 33, 100, 257)

threads = pytest.mark.parametrize("num_threads", [1, 2, 3], ids=lambda n: f"{n} threads")


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
    pieces = zip(starts, starts[1:], strict=False)
    return [(output[0, a:b], final[n]) for n, (a, b) in enumerate(pieces)]


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
    return [
        (output[starts[n] : starts[n + 1]], conv[slots[n]], ssm[slots[n]]) for n in range(N)
    ]


def batches(lengths, seed):
    """Every length in other company: shuffled, cut into batches of one to many."""
    rng = random.Random(seed)
    order = [*lengths, *lengths]
    rng.shuffle(order)
    while order:
        size = rng.choice([2, 3, 5, 11])
        batch, order = order[:size], order[size:]
        yield tuple(batch)


def assert_same_as_alone(run, dims, batch):
    for length, got in zip(batch, run(dims, batch), strict=True):
        for part, expected in zip(got, run(dims, (length,))[0], strict=True):
            assert same_bits(part, expected), f"length {length} in {batch}"


@forms
@threads
@pytest.mark.parametrize("seed", range(3))
def test_rule(form, num_threads, seed):
    with torch_threads(num_threads):
        for batch in batches(LENGTHS, seed):
            assert_same_as_alone(lambda *a: run_rule(form, *a), ODD, batch)


@threads
@pytest.mark.parametrize("seed", range(3))
def test_layer(num_threads, seed):
    with torch_threads(num_threads):
        for batch in batches(LENGTHS, seed):
            assert_same_as_alone(run_layer, ODD, batch)


@threads
def test_layer_of_decodes(num_threads):
    """Many single tokens: the widest batches there are."""
    dims = LayerDims(H=1, HV=3, K=5, V=7, W=4)
    with torch_threads(num_threads):
        for N in (2, 3, 8, 33, 64):
            assert_same_as_alone(run_layer, dims, (1,) * N)


@forms
@threads
def test_rule_with_real_head_dims(form, num_threads):
    with torch_threads(num_threads):
        for batch in (MODEL_LENGTHS, MODEL_LENGTHS[::-1], (1, 257, 1)):
            assert_same_as_alone(lambda *a: run_rule(form, *a), MODEL, batch)


@threads
def test_layer_with_real_head_dims(num_threads):
    with torch_threads(num_threads):
        for batch in (MODEL_LENGTHS, MODEL_LENGTHS[::-1], (1, 257, 1), (1,) * 9):
            assert_same_as_alone(run_layer, MODEL, batch)


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
