import argparse
import re
import sys

import pytest
import torch

pytest.importorskip("transformers", minversion="5.15")

from gdn_dispatch.cli import demo, demo_models, main


@pytest.fixture
def small(monkeypatch):
    """The demo on models a test can wait for."""
    shrunk = demo_models._SHRUNK | {
        "hidden_size": 64, "linear_key_head_dim": 16, "linear_value_head_dim": 16
    }  # fmt: skip
    monkeypatch.setattr(demo_models, "_SHRUNK", shrunk)


def arguments(*words):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(["--quick", *words])


def test_it_says_what_ran_and_that_tokens_are_equal(small, capsys):
    assert demo.run(arguments()) == 0
    shown = capsys.readouterr()
    for model in demo_models.MODELS:
        assert model.title in shown.out
        assert model.title in shown.err  # one line per case where nobody watches
    assert len(re.findall(r"backend   \w+: \w+", shown.out)) == 2
    assert shown.out.count("all 72 equal") == 2
    assert len(re.findall(r"(?:prefill|decode|at once) .* \d+\.\d\dx", shown.out)) == 6
    assert "falling back" not in shown.err


def test_a_backend_that_is_not_there(small, capsys):
    assert main(["demo", "--quick", "--backend", "nonexistent"]) == 2
    assert "nonexistent" in capsys.readouterr().err


def test_without_transformers(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["demo", "--quick"]) == 2
    assert "pip install 'gdn-dispatch[demo]'" in capsys.readouterr().err


def text(ours, theirs, our_logits, their_logits):
    return demo._Text(theirs, ours, torch.tensor(their_logits), torch.tensor(our_logits))


def test_tokens_that_part_without_a_tie_are_an_error():
    parted = text([0, 0], [0, 1], [[2.0, 1.0], [1.0, 0.0]], [[2.0, 1.0], [0.0, 1.0]])
    assert parted.equal == 1
    assert not parted.agrees
    assert "NOT explained" in next(demo._verdicts([parted]))


def test_tokens_that_part_in_a_tie_are_not():
    parted = text([0, 0], [0, 1], [[2.0, 1.0], [1.00001, 1.0]], [[2.0, 1.0], [1.0, 1.00001]])
    assert parted.agrees
    (line,) = demo._verdicts([parted])
    assert "after 1 of 2" in line
    assert "a tie" in line


def test_the_text_is_long_enough():
    assert len(demo_models.load_text()) >= demo._PROMPT
