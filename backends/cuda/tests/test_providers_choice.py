"""The choice among providers: a pure function of sizes and data."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gdn_dispatch_cuda import providers
from gdn_dispatch_cuda.providers.choice import (
    NONE_ABLE,
    OWN,
    Row,
    ShapeFacts,
    Table,
    choose,
    load_table,
    parse_table,
    table_from_report,
)

from gdn_dispatch.errors import ConfigurationError

ALL = ("flashinfer", "flash_qla", "fla")
LONG = Row(2, 8, 1, 32768, 32768, (("triton", 0.5), ("flashinfer", 0.3), ("flash_qla", 0.32)))
SHORT = Row(2, 8, 1, 2048, 2048, (("triton", 0.06), ("flashinfer", 0.09), ("fla", 0.05)))
WIDE = Row(16, 64, 4, 32768, 8192, (("triton", 1.0), ("flashinfer", 0.97), ("fla", 3.3)))
TABLE = Table(date="2026-11-20", device="H200", compute_capability="9.0", rows=(LONG, SHORT, WIDE))
FACTS = ShapeFacts(2, 8, 1, 32768, 32768, "9.0")


def test_nothing_measured_means_our_own_kernels():
    choice = choose(FACTS, ALL, Table())
    assert choice == (OWN, "own kernels: nothing was measured")


def test_the_table_that_is_shipped_can_be_read():
    table = load_table()
    assert choose(FACTS, (), table).provider == OWN


def test_the_fastest_available_provider_of_the_nearest_shape():
    choice = choose(FACTS, ALL, TABLE)
    assert choice.provider == "flashinfer"
    assert "0.3 ms" in choice.reason
    assert "2026-11-20" in choice.reason
    assert choose(FACTS, ("flash_qla", "fla"), TABLE).provider == "flash_qla"
    assert choose(FACTS, (), TABLE).provider == OWN


@pytest.mark.parametrize(
    ("tokens", "provider"), [(32768, "flashinfer"), (20000, "flashinfer"), (1800, "fla")]
)
def test_nearest_in_tokens(tokens, provider):
    facts = replace(FACTS, num_tokens=tokens, longest=tokens)
    assert choose(facts, ALL, TABLE).provider == provider


def test_rows_of_the_same_heads_come_first():
    # the other row would be nearer in n*HV and in the longest sequence
    other = Row(4, 16, 1, 32768, 16384, (("triton", 9.0), ("fla", 1.0)))
    facts = replace(FACTS, num_seqs=2, longest=16384)
    assert "H=2 HV=8" in choose(facts, ALL, replace(TABLE, rows=(other, LONG))).reason


def test_other_heads_are_compared_by_their_work():
    facts = ShapeFacts(4, 16, 16, 32768, 8192, "9.0")
    assert "H=16 HV=64" in choose(facts, ALL, TABLE).reason


def test_a_small_gain_is_not_worth_it():
    facts = ShapeFacts(16, 64, 4, 32768, 8192, "9.0")
    choice = choose(facts, ALL, TABLE)
    assert choice.provider == OWN
    assert "flashinfer 0.97 ms" in choice.reason


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"compute_capability": "10.0"}, "9.0, not 10.0"),
        ({"dtype": "float16"}, "not float16"),
        ({"head_dim": 64}, "not 64"),
        ({"l2norm": False}, "not measured with l2norm=False"),
        ({"num_tokens": 64, "longest": 64}, "no measurement near"),
        ({"num_tokens": 10**7, "longest": 10**7}, "no measurement near"),
    ],
)
def test_what_was_not_measured_runs_on_our_own_kernels(change, word):
    choice = choose(replace(FACTS, **change), ALL, TABLE)
    assert choice.provider == OWN
    assert word in choice.reason


def test_a_row_without_our_own_time_decides_nothing():
    table = replace(TABLE, rows=(replace(LONG, milliseconds=(("fla", 0.1),)),))
    assert choose(FACTS, ALL, table).provider == OWN


def test_ties_are_settled_the_same_way_every_time():
    tie = replace(LONG, milliseconds=(("flash_qla", 0.1), ("triton", 1.0), ("fla", 0.1)))
    table = replace(TABLE, rows=(tie, replace(tie, milliseconds=(("triton", 0.01),))))
    choices = {choose(FACTS, order, table) for order in (ALL, ALL[::-1])}
    assert {choice.provider for choice in choices} == {"fla"}


def test_a_report_becomes_a_table():
    def result(part, **seconds):
        return {
            "part": part,
            "shape": {"H": 2, "HV": 8, "num_seqs": 1, "num_tokens": 64, "longest": 64},
            "contestants": {
                **{f"cuda/{name}": {"seconds": value} for name, value in seconds.items()},
                "FLA": {"seconds": 1.0},
                "cuda/flash_qla": {"failure": "not installed"},
            },
        }

    report = {
        "header": {
            "date": "2026-11-20T17:00+00:00", "commit": "abc", "device": "H200",
            "compute_capability": "9.0", "versions": {"torch": "2.11"},
        },
        "results": [
            result("layer", triton=9.0),
            result("prefill", triton=4e-3, fla=9e-3),
            result("calls", triton=2e-3, fla=1e-3),
        ],
    }  # fmt: skip
    data = json.loads(json.dumps(table_from_report(report)))
    table = parse_table(data)
    assert table.rows == (
        Row(2, 8, 1, 64, 64, (("triton", 4.0), ("fla", 9.0)), l2norm=False),
        Row(2, 8, 1, 64, 64, (("triton", 2.0), ("fla", 1.0)), l2norm=True),
    )
    assert table.versions == (("torch", "2.11"),)
    facts = ShapeFacts(2, 8, 1, 64, 64, "9.0")
    assert choose(facts, ["fla"], table).provider == "fla"
    assert choose(replace(facts, l2norm=False), ["fla"], table).provider == OWN


@pytest.mark.parametrize("data", [{}, {"rows": [{}]}, {"rows": 3}])
def test_what_is_no_table_is_refused(data):
    with pytest.raises(ConfigurationError, match=r"measured\.json"):
        parse_table(data)


def test_without_a_library_nothing_is_looked_up(monkeypatch):
    monkeypatch.setattr(providers, "available", tuple)
    monkeypatch.setattr(providers, "choose", lambda *_: pytest.fail("looked up"))
    q = torch.zeros(1, 4, 2, 128)
    request = SimpleNamespace(recurrent=False, q=q)
    assert providers.choose_provider(request) == NONE_ABLE
