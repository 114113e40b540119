"""What the check of vLLM's seam says, on modules made for it; no vLLM needed."""

import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

from gdn_dispatch.integrations.vllm.seam import COMMON, LAYERS, Fields, Function, Value, mismatches


class Engine:
    def run(self, tokens, flags=None):
        return tokens, flags

    @staticmethod
    def builder():
        return Engine


@dataclass
class Step:
    lens: int = 0


@pytest.fixture(autouse=True)
def module(monkeypatch):
    fake = ModuleType("a_fake_engine")
    fake.Engine, fake.Step, fake.NULL = Engine, Step, 0
    monkeypatch.setitem(sys.modules, "a_fake_engine", fake)
    return fake


def test_a_seam_that_fits_has_no_mismatch():
    seam = (
        Function("a_fake_engine:Engine.run", ("tokens", "flags")),
        Function("a_fake_engine:Engine.builder", ()),
        Fields("a_fake_engine:Step", ("lens",)),
        Value("a_fake_engine:NULL", int, 0),
    )
    assert mismatches(seam) == ()


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Function("a_fake_engine:Engine.run", ("flags", "tokens")), "takes (tokens, flags)"),
        (Function("a_fake_engine:Engine.walk", ()), "Engine.walk is missing"),
        (Function("a_fake_engine:Motor.run.further", ()), "Motor.run.further is missing"),
        (Function("a_fake_engine:NULL", ()), "a function is expected"),
        (Fields("a_fake_engine:Step", ("lens", "slots")), "has no slots"),
        (Fields("a_fake_engine:Engine", ("lens",)), "is no dataclass"),
        (Value("a_fake_engine:NULL", int, -1), "is 0, expected -1"),
        (Value("a_fake_engine:NULL", dict), "is 0, expected dict"),
        (Function("no_such_engine.at_all:run", ()), "cannot be imported"),
    ],
)
def test_a_mismatch_says_what_and_where(part, words):
    (text,) = mismatches((part,))
    assert words in text
    assert part.path.partition(":")[0] in text


def test_one_missing_module_is_told_once():
    parts = (Function("no_such_engine:a", ()), Function("no_such_engine:b", ()))
    assert len(mismatches(parts)) == 1


def test_every_part_of_the_seam_is_vllms():
    parts = [*COMMON, *(part for seam in LAYERS.values() for part in seam)]
    assert all(part.path.startswith("vllm.") for part in parts)
    assert len({part.path for part in parts}) == len(parts)
