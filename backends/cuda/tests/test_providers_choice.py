"""The choice among providers: a pure function of sizes and data."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gdn_dispatch_cuda import providers
from gdn_dispatch_cuda.providers.choice import (
    MARGIN,
    NONE_ABLE,
    OWN,
    Row,
    ShapeFacts,
    Table,
    choose,
    load_table,
    parse_table,
    table_from_reports,
)

from gdn_dispatch.cli.h200.shapes import prefill_shapes
from gdn_dispatch.errors import ConfigurationError

ALL = ("flashinfer", "flash_qla", "fla")
LONG = Row(2, 8, 1, 32768, 32768, (("triton", 0.5), ("flashinfer", 0.3), ("flash_qla", 0.32)))
SHORT = Row(2, 8, 1, 2048, 2048, (("triton", 0.06), ("flashinfer", 0.09), ("fla", 0.05)))
WIDE = Row(16, 64, 4, 32768, 8192, (("triton", 1.0), ("flashinfer", 0.97), ("fla", 3.3)))
TABLE = Table(date="2026-11-20", device="H200", compute_capability="9.0", rows=(LONG, SHORT, WIDE))
HEADER = {
    "date": "2026-11-20T17:00+00:00", "commit": "abc", "device": "H200",
    "compute_capability": "9.0", "versions": {"torch": "2.11"},
}  # fmt: skip
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


@pytest.mark.parametrize(
    ("ms", "tokens", "provider"),
    [
        (0.97, 32768, "flashinfer"),  # this very shape
        (0.985, 32768, OWN),
        (0.97, 30000, OWN),  # one nearby
        (0.94, 30000, "flashinfer"),
    ],
)
def test_a_small_gain_counts_where_it_was_measured(ms, tokens, provider):
    row = replace(WIDE, milliseconds=(("triton", 1.0), ("flashinfer", ms), ("fla", 3.3)))
    facts = ShapeFacts(16, 64, 4, tokens, 8192, "9.0")
    choice = choose(facts, ALL, replace(TABLE, rows=(LONG, row)))
    assert choice.provider == provider
    assert f"flashinfer {ms:.3g} ms" in choice.reason or choice.provider == "flashinfer"


def test_what_was_measured_is_answered_by_its_own_measurement():
    table = load_table()
    first = {}
    for row in table.rows:
        sizes = (row.num_heads, row.num_v_heads, row.num_seqs, row.num_tokens, row.longest)
        first.setdefault((*sizes, row.l2norm), row)
    for (*sizes, l2norm), row in first.items():
        times = dict(row.milliseconds)
        best = min(times, key=times.__getitem__)
        choice = choose(ShapeFacts(*sizes, "9.0", l2norm=l2norm), ALL, table)
        assert times[choice.provider] <= times[best] * (1 + MARGIN), choice
        assert choice.provider in (best, OWN)
        assert f"{row.num_seqs} sequences, {row.num_tokens} tokens" in choice.reason


def test_every_published_shape_was_measured():
    """Those of the heads that the report of an H200 is about."""
    rows = {
        (row.num_heads, row.num_v_heads, row.num_seqs, row.num_tokens, row.longest)
        for row in load_table().rows
        if not row.l2norm
    }
    heads = {(2, 8), (16, 32), (16, 64)}
    published = [shape.facts for shape in prefill_shapes()]
    published = [facts for facts in published if (facts["H"], facts["HV"]) in heads]
    assert len(published) == 57
    names = ("H", "HV", "num_seqs", "num_tokens", "longest")
    assert {tuple(facts[name] for name in names) for facts in published} <= rows


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
        "header": HEADER,
        "results": [
            result("layer", triton=9.0),
            result("prefill", triton=4e-3, fla=9e-3),
            result("calls", triton=2e-3, fla=1e-3),
        ],
    }
    again = {"header": HEADER | {"commit": "def"}, "results": [result("prefill", triton=5e-3)]}
    data = json.loads(json.dumps(table_from_reports(report, again)))
    table = parse_table(data)
    assert table.rows == (
        Row(2, 8, 1, 64, 64, (("triton", 4.5), ("fla", 9.0)), l2norm=False),
        Row(2, 8, 1, 64, 64, (("triton", 2.0), ("fla", 1.0)), l2norm=True),
    )
    assert table.versions == (("torch", "2.11"),)
    assert table.commit == "abc def"
    facts = ShapeFacts(2, 8, 1, 64, 64, "9.0")
    assert choose(facts, ["fla"], table).provider == "fla"
    assert choose(replace(facts, l2norm=False), ["fla"], table).provider == OWN


@pytest.mark.parametrize("change", [{"device": "H100"}, {"versions": {"torch": "2.12"}}])
def test_reports_of_different_devices_make_no_table(change):
    reports = [{"header": header, "results": []} for header in (HEADER, HEADER | change)]
    with pytest.raises(ConfigurationError, match="reports of different"):
        table_from_reports(*reports)


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
