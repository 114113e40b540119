"""Every family, through this package and through transformers' own functions: the same numbers."""

import pytest
import torch

from gdn_dispatch.integrations import transformers as gdn
from tests.integrations.transformers_models import (
    FAMILIES,
    assert_close,
    checkpoint_activations,
    counted,
    gdn_layers,
    make_model,
    tokens,
)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def pair(family):
    """The same model twice: stock, and made while enabled."""
    stock = make_model(family)
    with gdn.enabled():
        ours = make_model(family)
    assert len(gdn_layers(ours)) == 3
    return stock, ours


def assert_grads_close(found, expected):
    """Each to its own largest value; nearly cancelled ones to what they are cancelled from."""
    assert found.keys() == expected.keys()
    noise = 1e-5 * max(grad.abs().max().item() for grad in expected.values())
    for name, grad in expected.items():
        difference = (found[name] - grad).abs().max().item()
        assert difference <= 5e-4 * grad.abs().max().item() + noise, name


def logits_after(model, ids, *steps):
    """Logits of a prefill and of cached continuations."""
    with torch.no_grad():
        result = model(ids, use_cache=True)
        found = [result.logits]
        for step in steps:
            result = model(step, past_key_values=result.past_key_values, use_cache=True)
            found.append(result.logits)
    return found


def test_generates_the_same_tokens(pair):
    stock, ours = pair
    prompt = tokens(2, 70)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    expected = stock.generate(prompt, **options)
    with counted() as calls:
        assert torch.equal(ours.generate(prompt, **options), expected)
    assert (calls.chunked, calls.stepped) == (3, 12)


@pytest.mark.parametrize("steps", [(1,), (1, 1, 1), (5,), (70, 1), (1, 40)], ids=str)
def test_prefill_decode_and_continued_prefill(pair, steps):
    stock, ours = pair
    inputs = [tokens(2, 67), *(tokens(2, n, seed=7 + n) for n in steps)]
    for found, expected in zip(
        logits_after(ours, *inputs), logits_after(stock, *inputs), strict=True
    ):
        assert_close(found, expected)


def states_of(cache):
    """(layer of the cache, its recurrent state) for every Gated DeltaNet layer."""
    layers = [layer for layer in cache.layers if hasattr(layer, "recurrent_states")]
    return [(layer, layer.recurrent_states[0]) for layer in layers]


@torch.no_grad()
def test_decode_works_in_the_memory_of_the_cache(pair, monkeypatch):
    _, ours = pair
    cache = ours(tokens(2, 40), use_cache=True).past_key_values
    written = []
    for layer, _ in states_of(cache):
        original = layer.update_recurrent_state
        monkeypatch.setattr(
            layer,
            "update_recurrent_state",
            lambda state, *a, _original=original, **k: (written.append(state), _original(state))[1],
        )
    ours(tokens(2, 1), past_key_values=cache, use_cache=True)
    assert [id(state) for state in written] == [id(state) for _, state in states_of(cache)]


@torch.no_grad()
def test_state_that_its_cache_may_keep_is_not_overwritten(pair):
    stock, ours = pair
    caches = [model(tokens(2, 40), use_cache=True).past_key_values for model in (stock, ours)]
    kept = []
    for layer, state in states_of(caches[1]):
        layer.recurrent_states[0] = state.clone()  # not marked as a buffer to be filled again
        kept.append((layer.recurrent_states[0], state))
        layer.update_recurrent_state = lambda state, *a, **k: state
    found, expected = (
        model(tokens(2, 1), past_key_values=cache, use_cache=True).logits
        for model, cache in zip((ours, stock), reversed(caches), strict=True)
    )
    assert_close(found, expected)
    assert kept
    assert all(torch.equal(state, before) for state, before in kept)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_prompts_shorter_than_the_convolution(pair, length):
    stock, ours = pair
    inputs = [tokens(1, length), tokens(1, 1, seed=3), tokens(1, 2, seed=4)]
    for found, expected in zip(
        logits_after(ours, *inputs), logits_after(stock, *inputs), strict=True
    ):
        assert_close(found, expected)


def test_left_padding(pair):
    stock, ours = pair
    ids = tokens(3, 40)
    mask = torch.ones_like(ids)
    mask[0, :13], mask[1, :1] = 0, 0
    options = {"attention_mask": mask, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    assert torch.equal(ours.generate(ids, **options), stock.generate(ids, **options))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_gradients(pair, checkpointing):
    ids = tokens(2, 45)
    grads = []
    for model in pair:
        model.train()
        if checkpointing:
            checkpoint_activations(model)
        model(ids, labels=ids, use_cache=False).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    expected, found = grads
    assert_grads_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_close_to_fp32_as_stock(family, dtype):
    model = make_model(family)
    layer, hidden = gdn_layers(model)[0], torch.randn(2, 70, 32)
    with torch.no_grad():
        exact = layer(hidden)
        layer, hidden = layer.to(dtype), hidden.to(dtype)
        theirs = (layer(hidden) - exact).abs().mean()
        gdn.inject(model)
        own = (layer(hidden) - exact).abs().mean()
    assert own <= 1.1 * theirs


def test_autocast(family):
    ids = tokens(1, 40)
    model = make_model(family)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(ids).logits
        gdn.inject(model)
        found = model(ids).logits
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.1, atol=0.3)


@pytest.mark.parametrize("made", ["enabled", "injected"])
def test_a_compiled_layer_is_one_graph(family, made):
    model = make_model(family)
    layer, hidden = gdn_layers(model)[0], torch.randn(2, 40, 32)
    expected = layer(hidden)
    if made == "injected":
        gdn.inject(model)
    else:
        with gdn.enabled():
            other = make_model(family)
        layer = gdn_layers(other)[0]
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with counted() as calls:
        assert_close(compiled(hidden), expected)
    assert calls.requests
    stock = gdn_layers(make_model(family))[0]
    found = torch.compile(stock, fullgraph=True, backend="aot_eager")(hidden)
    assert_close(found, expected)


def test_a_compiled_layer_trains(family):
    model = make_model(family)
    layer, hidden = gdn_layers(model)[0], torch.randn(2, 40, 32)
    expected = torch.autograd.grad(layer(hidden).square().sum(), [layer.A_log, layer.conv1d.weight])
    gdn.inject(model)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    loss = compiled(hidden).square().sum()
    found = torch.autograd.grad(loss, [layer.A_log, layer.conv1d.weight])
    assert_grads_close(dict(enumerate(found)), dict(enumerate(expected)))
