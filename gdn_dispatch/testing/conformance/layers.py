"""``gdn_attention`` at its edges: slots, padding, empty steps, convolutions, layouts of inputs."""

from __future__ import annotations

import pytest
import torch

from gdn_dispatch.capability import Feature
from gdn_dispatch.testing.conformance.base import Conformance, layer_test, needs_state_layout
from gdn_dispatch.testing.layer_inputs import random_layer, random_tokens
from gdn_dispatch.testing.numbers import relative_error, same_bits

LENGTHS = (40, 1, 33, 0, 5)
POOL_DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def case(subject, lengths=LENGTHS, *, dims=None, dtype=None, **options):
    """Dims, layer and tokens of a step, in the subject's dtype."""
    dims = dims or subject.layer_dims()
    dtype = dtype or subject.dtype
    layer = random_layer(dims, dtype=dtype).with_options(**options)
    return dims, layer, random_tokens(sum(lengths), dims, dtype=dtype)


def assert_step(subject, layer, tokens, lengths, pools, output, slots, *, limit):
    """Every row of a step that started from zeros, against the oracle of its own tokens."""
    start = 0
    for length, slot in zip(lengths, slots, strict=True):
        rows = tokens.rows(start, start + length)
        if length:
            expected, history, state = layer.reference(rows)
            got = output[start : start + length]
            assert relative_error(got, expected) <= limit, f"output of {length} tokens"
            assert relative_error(pools.state(slot), state) <= limit, f"state of {length} tokens"
            line = pools.line(slot, history.shape[1])
            assert torch.equal(line.double(), history.double()), f"history of {length} tokens"
        start += length


class LayerTests(Conformance):
    """One call of the whole layer core."""

    @needs_state_layout
    @pytest.mark.parametrize("state_dtype", POOL_DTYPES, ids=str)
    @pytest.mark.parametrize("channels_last", [False, True], ids=["D first", "D last"])
    @layer_test()
    def test_step_from_zeros(self, subject, v_first, state_dtype, channels_last):
        dims, layer, tokens = case(subject)
        pools = subject.pools(
            6, dims, state_v_first=v_first, state_dtype=state_dtype, padding=40,
            channels_last=channels_last,
        )  # fmt: skip
        slots = [4, 0, 5, 1, 2]
        output = subject.serve(
            pools, layer, tokens, LENGTHS, state_indices=slots, has_initial_state=[False] * 5
        )
        limit = max(subject.tolerance(), subject.tolerance(state_dtype))
        assert_step(subject, layer, tokens, LENGTHS, pools, output, slots, limit=limit)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @layer_test()
    def test_activation_dtypes_of_the_layer(self, subject, dtype):
        dims, layer, tokens = case(subject, dtype=dtype)
        pools = subject.pools(5, dims, dtype=dtype)
        slots = [4, 0, 3, 1, 2]
        output = subject.serve(
            pools, layer, tokens, LENGTHS, state_indices=slots, has_initial_state=[False] * 5
        )
        assert output.dtype is dtype
        limit = subject.tolerance(dtype)
        assert_step(subject, layer, tokens, LENGTHS, pools, output, slots, limit=limit)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @layer_test()
    def test_states_are_finer_than_the_activations(self, subject, dtype):
        """As fine as their pool: rounded in every step, they would drift away."""
        if subject.state_dtype is not torch.float32:
            pytest.skip("declares no fp32 states")
        dims, layer, tokens = case(subject, dtype=dtype)
        pools = subject.pools(5, dims, dtype=dtype)
        slots = [4, 0, 3, 1, 2]
        subject.serve(
            pools, layer, tokens, LENGTHS, state_indices=slots, has_initial_state=[False] * 5
        )
        for length, slot in zip(LENGTHS, slots, strict=True):
            state = pools.state(slot)
            assert not length or not torch.equal(state, state.to(dtype).float()), f"{length} tokens"

    @layer_test()
    def test_real_width_of_the_layer(self, subject):
        """Real head dims; and wide enough that a convolution in blocks of tokens takes several."""
        lengths, slots = (300, 1), [1, 0]
        dims, layer, tokens = case(
            subject, lengths, dims=subject.layer_dims(H=4, HV=8, K=128, V=128)
        )
        pools = subject.pools(2, dims)
        output = subject.serve(
            pools, layer, tokens, lengths, state_indices=slots, has_initial_state=[False] * 2
        )
        limit = subject.tolerance()
        assert_step(subject, layer, tokens, lengths, pools, output, slots, limit=limit)

    @layer_test()
    def test_autocast_does_not_change_the_arithmetic_of_the_layer(self, subject):
        dims, layer, tokens = case(subject)
        pools = subject.pools(5, dims)
        slots = [4, 0, 3, 1, 2]
        with torch.autocast(subject.device.type, dtype=torch.bfloat16):
            output = subject.serve(
                pools, layer, tokens, LENGTHS, state_indices=slots, has_initial_state=[False] * 5
            )
        limit = subject.tolerance()
        assert_step(subject, layer, tokens, LENGTHS, pools, output, slots, limit=limit)

    @pytest.mark.parametrize("cut", [1, 3, 32, 39])
    @layer_test()
    def test_continued_prefill_equals_one_prefill(self, subject, cut):
        dims, layer, tokens = case(subject, (40,))
        pools = subject.pools(1, dims)
        parts = [
            subject.serve(
                pools, layer, tokens.rows(a, b), (b - a,), state_indices=[0],
                has_initial_state=[a > 0],
            )
            for a, b in ((0, cut), (cut, 40))
        ]  # fmt: skip
        expected, history, state = layer.reference(tokens)
        assert relative_error(torch.cat(parts), expected) <= subject.tolerance()
        assert relative_error(pools.state(0), state) <= subject.tolerance()
        assert torch.equal(pools.line(0, history.shape[1]).double(), history.double())

    @layer_test()
    def test_decode_after_prefill(self, subject):
        dims, layer, tokens = case(subject, (45,))
        pools = subject.pools(1, dims)
        first = {"state_indices": [0], "has_initial_state": [False]}
        outputs = [subject.serve(pools, layer, tokens.rows(0, 40), (40,), **first)]
        outputs += [
            subject.serve(pools, layer, tokens.rows(t, t + 1), (1,), state_indices=[0])
            for t in range(40, 45)
        ]
        expected, _, state = layer.reference(tokens)
        assert relative_error(torch.cat(outputs), expected) <= subject.tolerance()
        assert relative_error(pools.state(0), state) <= subject.tolerance()

    @pytest.mark.parametrize("W", [1, 2, 3, 4, 5])
    @pytest.mark.parametrize("lengths", [(1,), (2, 1), (40, 1)], ids=str)
    @layer_test()
    def test_convolution_widths(self, subject, W, lengths):
        limit = subject.capability.max_conv_width
        if limit and limit < W:
            pytest.skip(f"declares W up to {limit}")
        dims, layer, tokens = case(subject, lengths, dims=subject.layer_dims(W=W))
        pools = subject.pools(3, dims)
        slots = [2, 0][: len(lengths)]
        output = subject.serve(
            pools, layer, tokens, lengths, state_indices=slots,
            has_initial_state=[False] * len(lengths),
        )  # fmt: skip
        limit = subject.tolerance()
        assert_step(subject, layer, tokens, lengths, pools, output, slots, limit=limit)

    @pytest.mark.parametrize(
        "options",
        [{"activation": None}, {"scale": 0.5}, {"allow_neg_eigval": True}, {"conv_bias": None}],
        ids=str,
    )
    @layer_test()
    def test_options(self, subject, options):
        dims, layer, tokens = case(subject, **options)
        pools = subject.pools(5, dims)
        slots = [4, 0, 3, 1, 2]
        output = subject.serve(
            pools, layer, tokens, LENGTHS, state_indices=slots, has_initial_state=[False] * 5
        )
        limit = subject.tolerance()
        assert_step(subject, layer, tokens, LENGTHS, pools, output, slots, limit=limit)

    @pytest.mark.parametrize(("H", "HV"), [(1, 1), (2, 6), (3, 3)])
    @pytest.mark.parametrize("interleaved", [False, True], ids=["flat", "interleaved"])
    @layer_test(Feature.RAW_PROJECTIONS)
    def test_raw_projections(self, subject, H, HV, interleaved):
        dims, layer, tokens = case(subject, dims=subject.layer_dims(H=H, HV=HV))
        gate = torch.randn(len(tokens), dims.HV, dims.V).to(subject.dtype)
        inputs = tokens.projections(dims, gate, interleaved=interleaved)
        z = torch.full_like(gate, torch.nan, device=subject.device)
        plan = {"state_indices": [4, 0, 3, 1, 2], "has_initial_state": [False] * 5}
        one, other = subject.pools(5, dims), subject.pools(5, dims)
        output = subject.layer(
            one, layer, tokens, subject.meta(LENGTHS, **plan), inputs=inputs | {"z": z}
        )
        expected = subject.serve(other, layer, tokens, LENGTHS, **plan)
        assert relative_error(output, expected) <= subject.tolerance()
        assert torch.equal(z.cpu(), gate)

    @layer_test()
    def test_a_row_may_read_one_slot_and_write_another(self, subject):
        dims, layer, tokens = case(subject, (41,))
        pools = subject.pools(3, dims)
        first = {"state_indices": [0], "has_initial_state": [False]}
        subject.serve(pools, layer, tokens.rows(0, 40), (40,), **first)
        source = pools.pages[0].clone()
        expected, _, state = layer.reference(tokens)
        for target in (1, 0):
            got = subject.serve(
                pools, layer, tokens.rows(40, 41), (1,), state_indices=[target],
                initial_state_indices=[0],
            )  # fmt: skip
            assert relative_error(got, expected[40:]) <= subject.tolerance()
            assert relative_error(pools.state(target), state) <= subject.tolerance()
            if target:
                assert torch.equal(pools.pages[0], source)

    @pytest.mark.parametrize("pad", [-1, -7, 0])
    @pytest.mark.parametrize("lengths", [(40, 9), (1, 1)], ids=str)
    @layer_test()
    def test_padding_rows_read_and_write_nothing(self, subject, pad, lengths):
        dims, layer, tokens = case(subject, lengths)
        start = lengths[0]
        for x in tokens.arguments.values():
            x[start:] = torch.nan
        pools = subject.pools(3, dims)
        before = pools.pages.clone()
        output = subject.serve(
            pools, layer, tokens, lengths, state_indices=[1, pad],
            has_initial_state=[False, True], pad_slot=0,
        )  # fmt: skip
        assert output[:start].isfinite().all()
        assert not output[start:].any()
        assert torch.equal(pools.pages[[0, 2]], before[[0, 2]])

    @pytest.mark.parametrize("pad", [-1, 0])
    @layer_test()
    def test_a_padding_read_slot_means_zeros(self, subject, pad):
        dims, layer, tokens = case(subject, (34, 1))
        pools = subject.pools(3, dims)
        output = subject.serve(
            pools, layer, tokens, (34, 1), state_indices=[1, 2], initial_state_indices=[pad, pad],
            pad_slot=0,
        )  # fmt: skip
        assert_step(
            subject, layer, tokens, (34, 1), pools, output, [1, 2], limit=subject.tolerance()
        )

    @layer_test()
    def test_whatever_a_slot_holds_is_ignored_without_an_initial_state(self, subject):
        dims, layer, tokens = case(subject, (33, 1))
        pools = subject.pools(2, dims)  # NaN everywhere
        output = subject.serve(
            pools, layer, tokens, (33, 1), state_indices=[1, 0], has_initial_state=[False, False]
        )
        assert_step(
            subject, layer, tokens, (33, 1), pools, output, [1, 0], limit=subject.tolerance()
        )

    @layer_test()
    def test_no_rows_and_no_tokens(self, subject):
        dims, layer, tokens = case(subject, (3,))
        pools = subject.pools(2, dims)
        before = pools.pages.clone()
        none = tokens.rows(0, 0)
        assert subject.serve(pools, layer, none, (), state_indices=[]).shape[0] == 0
        assert subject.serve(pools, layer, none, (0,), state_indices=[1]).shape[0] == 0
        rest = subject.serve(pools, layer, tokens, (), state_indices=[], total_tokens=3)
        assert rest.shape[0] == 3
        assert not rest.any()
        assert torch.equal(pools.pages, before)

    @layer_test()
    def test_rows_of_out_past_the_step_are_zero(self, subject):
        dims, layer, tokens = case(subject, (40,))
        pools = subject.pools(2, dims)
        plan = {"state_indices": [1, 0], "has_initial_state": [False] * 2, "total_tokens": 40}
        shape = (40, dims.HV, dims.V)
        out = torch.full(shape, torch.nan, dtype=subject.dtype, device=subject.device)
        meta = subject.meta((30, 8), **plan)
        assert subject.layer(pools, layer, tokens, meta, out) is out
        assert not out[38:].any()
        other = subject.pools(2, dims)
        assert same_bits(subject.layer(other, layer, tokens, meta), out.cpu())
