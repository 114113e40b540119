"""Packed sequences through a model: what per-sequence calls give, or an error that says why not."""

import pytest
import torch

from gdn_dispatch import InvalidArgumentError, MetadataError, build_chunk_meta, plan_batch
from gdn_dispatch.integrations import transformers as gdn
from gdn_dispatch.integrations.transformers.adapters import replacements
from tests.integrations.transformers_models import (
    FAMILIES,
    assert_close,
    checkpoint_activations,
    counted,
    make_model,
    tokens,
)

LENGTHS = (17, 4, 1, 64, 33)
# its token indexer and n-gram embeddings do not keep packed sequences apart
PACKABLE = [family for family in FAMILIES if family != "qwen4_exp_text"]


def make_injected(family="qwen3_next", **options):
    model = make_model(family, **options)
    gdn.inject(model)
    return model


def separately(model, ids, lengths):
    return torch.cat([model(part, use_cache=False).logits for part in ids.split(lengths, 1)], dim=1)


@pytest.mark.parametrize("lengths", [LENGTHS, (119,), (3, 3, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("family", PACKABLE)
def test_packed_is_per_sequence(family, lengths):
    model, ids = make_injected(family), tokens(1, sum(lengths))
    with torch.no_grad(), counted() as calls:
        found = model(ids, **gdn.packed(lengths)).logits
        assert {request.meta.plan.num_seqs for request in calls.requests} == {len(lengths)}
        assert_close(found, separately(model, ids, lengths))


def test_metadata_is_built_once():
    model, ids = make_injected(), tokens(1, sum(LENGTHS))
    inputs = gdn.packed(LENGTHS)
    with torch.no_grad(), counted() as calls:
        model(ids, **inputs)
    assert len(calls.requests) == 3
    assert all(request.meta is inputs["gdn_meta"] for request in calls.requests)


def test_boundaries_alone_are_enough_on_a_cpu():
    model, ids = make_injected(), tokens(1, sum(LENGTHS))
    inputs = gdn.packed(LENGTHS)
    del inputs["gdn_meta"]
    with torch.no_grad():
        found = model(ids, **inputs).logits
        assert_close(found, separately(model, ids, LENGTHS))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_gradients(checkpointing):
    ids = tokens(1, sum(LENGTHS))
    grads = []
    for packed in (True, False):
        model = make_injected().train()
        if checkpointing:
            checkpoint_activations(model)
        outputs = (
            model(ids, **gdn.packed(LENGTHS)).logits if packed else separately(model, ids, LENGTHS)
        )
        outputs.square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for found, expected in zip(*grads, strict=True):
        assert_close(found, expected, 5e-4)


def test_a_compiled_layer_takes_the_metadata_of_the_next_step():
    layer = make_injected().model.layers[0].linear_attn
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for lengths in ((5, 30, 5), (20, 15, 5)):
        hidden = torch.randn(1, 40, 32)
        meta = build_chunk_meta(plan_batch([0, *torch.tensor(lengths).cumsum(0)]), "cpu")
        with torch.no_grad():
            expected = torch.cat([layer(part) for part in hidden.split(lengths, 1)], dim=1)
            found = compiled(hidden, gdn_meta=meta)
        assert_close(found, expected)


def test_seq_idx_alone_is_refused():
    model, ids = make_injected(), tokens(1, 8)
    with pytest.raises(MetadataError, match="cu_seq_lens_q"):
        model(ids, seq_idx=torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]], dtype=torch.int32))


def test_padding_after_the_last_sequence_is_refused():
    model, ids = make_injected(), tokens(1, 10)
    with pytest.raises(MetadataError, match="a sequence of its own"):
        model(ids, cu_seq_lens_q=torch.tensor([0, 3, 8], dtype=torch.int32))
    with pytest.raises(MetadataError, match="total_tokens"):
        model(ids, **gdn.packed([3, 5]) | {"position_ids": torch.arange(10)[None]})


def test_two_rows_are_refused():
    with pytest.raises(InvalidArgumentError, match="one row of packed sequences"):
        make_injected()(tokens(2, 8), cu_seq_lens_q=torch.tensor([0, 3, 8], dtype=torch.int32))


def test_foreign_metadata_is_refused():
    with pytest.raises(MetadataError, match="gdn_meta"):
        make_injected()(tokens(1, 8), gdn_meta=[0, 3, 8])


@pytest.mark.parametrize("lengths", [[], [3, -1], [[3]], [1.5], None], ids=str)
def test_lengths_that_make_no_sense(lengths):
    with pytest.raises(InvalidArgumentError, match="lengths"):
        gdn.packed(lengths)


def test_boundaries_on_a_device_are_not_read_back():
    """A meta tensor stands for an accelerator's: it has no values, so reading one would raise."""
    rule = replacements({}, None)["torch_chunk_gated_delta_rule"]
    q = torch.empty(1, 8, 2, 16, device="meta")
    g = torch.empty(1, 8, 2, device="meta")
    starts = torch.empty(3, dtype=torch.int32, device="meta")
    with pytest.raises(MetadataError, match="packed") as raised:
        rule(q, q, q, g, g, cu_seqlens=starts)
    assert raised.value.field == "gdn_meta"


def test_the_convolution_reads_no_length_on_the_host():
    conv = replacements({"causal_conv1d_fn": None}, None)["causal_conv1d_fn"]
    x = torch.empty(1, 16, 8, device="meta")
    starts = torch.empty(3, dtype=torch.int32, device="meta")
    found = conv(
        x, torch.empty(16, 4, device="meta"), None, activation="silu", cu_seq_lens_q=starts
    )
    assert found.shape == x.shape
