"""Padded steps of every kind, through the public calls."""

import pytest
import torch

from gdn_dispatch import LayerSpec, warmup
from gdn_dispatch.errors import BackendNotInstalledError, InvalidArgumentError

SPEC = LayerSpec(2, 4, 16, 32, torch.float32, torch.float32)


@pytest.fixture
def calls(monkeypatch):
    """What was run: (lengths of the rows, kinds) of every step."""
    seen = []
    module = __import__("importlib").import_module("gdn_dispatch.warmup")
    real = module.gdn_attention

    def spy(*arguments, meta, **named):
        kinds = {kind for kind in ("prefill", "decode", "speculative") if getattr(meta, kind)}
        out = real(*arguments, meta=meta, **named)
        assert not out.any()
        assert not named["ssm_state"].any()
        seen.append((meta.plan.seq_lens.tolist(), kinds))
        return out

    monkeypatch.setattr(module, "gdn_attention", spy)
    return seen


def test_every_kind_and_order_of_size(calls):
    assert warmup(SPEC, "cpu", max_num_seqs=4, max_num_tokens=100) == len(calls)
    prefills = [[64], [100], [50] * 2, [25] * 4]
    assert calls == [
        *(([1] * rows, {"decode"}) for rows in (1, 2, 4)),
        *((lens, {"prefill"}) for lens in prefills for _ in ("as it is", "fresh")),
    ]


def test_drafts(calls):
    spec = LayerSpec(
        2, 4, 16, 32, torch.float32, torch.bfloat16, num_speculative_tokens=2, conv_bias=True,
        conv_dim_first=True, state_v_first=False,
    )  # fmt: skip
    warmup(spec, "cpu", max_num_seqs=2, max_num_tokens=9)
    for lens, kind, times in (
        ([3], "speculative", 1),
        ([3, 3], "speculative", 1),
        ([1], "decode", 2),  # slots [N] and [N, S]
        ([9], "prefill", 4),
    ):
        assert calls.count((lens, {kind})) == times


def test_a_step_of_one_token(calls):
    assert warmup(SPEC, "cpu", max_num_seqs=1, max_num_tokens=1) == 1


@pytest.mark.parametrize("limit", ["max_num_seqs", "max_num_tokens"])
def test_limits_are_checked(limit):
    with pytest.raises(InvalidArgumentError, match=f"{limit}: got 0, expected at least 1"):
        warmup(SPEC, "cpu", **{limit: 0})


def test_a_backend_that_is_not_there_is_told():
    with pytest.raises(BackendNotInstalledError, match="nobody"):
        warmup(SPEC, "cpu", backend="nobody")
