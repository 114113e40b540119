"""What ``bench`` counts, shows and writes; never how fast anything is."""

import io
import json
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from gdn_dispatch.cli import (
    MissingExtraError,
    bench,
    cases,
    cases_host,
    cases_transformers,
    main,
    plots,
    progress,
)
from gdn_dispatch.cli.bench import Case, Check, Prepared
from gdn_dispatch.cli.cases import CASES
from gdn_dispatch.selection.dispatch import active_registry

EQUAL = Check(True, "equal")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def case(ours, peer, measure=bench.SPEEDUP, budget=None, check=EQUAL):
    """A case whose samples are taken from two lists."""
    samples = iter(ours), iter(peer)
    prepared = Prepared(lambda: next(samples[0]), lambda: next(samples[1]), lambda: check)
    return Case("fake", "case", "nobody", measure, budget, lambda stack: prepared)


def take(a_case, rounds):
    return bench.time_case(a_case, rounds, lambda text: None)


@pytest.fixture
def silence(monkeypatch):
    monkeypatch.setattr(bench, "_cpu_seconds", lambda: None)


def test_the_result_is_the_median_of_paired_numbers(silence):
    result = take(case([1, 1, 2], [2, 8, 6], budget=3), 3)
    assert result["values"] == [2, 8, 3]
    assert (result["value"], result["min"], result["max"]) == (3, 2, 8)
    assert result["quartiles"] == [2.5, 5.5]
    assert result["met"] is True
    assert (result["ours_s"], result["peer_s"]) == (1, 6)
    assert result["foreign_load"] == []


@pytest.mark.parametrize(
    ("measure", "value", "met"),
    [
        (bench.SPEEDUP, 4, True),
        (bench.TIMES_FLOOR, 0.25, True),
        (bench.OVERHEAD, -3e6, True),
        (bench.ABSOLUTE, 1000, False),
    ],
)
def test_what_a_measure_says(silence, measure, value, met):
    result = take(case([1.0], [4.0], measure, budget=3), 1)
    assert result["value"] == pytest.approx(value)
    assert result["met"] is met


def test_the_order_alternates(silence):
    order = []
    prepared = Prepared(
        lambda: order.append("ours") or 1.0, lambda: order.append("peer") or 1.0,
        lambda: Check(True, ""),
    )  # fmt: skip
    take(Case("", "", "", bench.SPEEDUP, None, lambda stack: prepared), 3)
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_a_sampler_warms_up_before_every_sample():
    calls = []
    sample = bench.timed(lambda: calls.append(time.sleep(2e-3)), at_least=1e-3)
    before = len(calls)
    assert sample() >= 2e-3
    assert len(calls) == before + 2


def test_loud_rounds_are_repeated_so_often_and_then_counted(monkeypatch):
    monkeypatch.setattr(bench.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(bench, "_foreign_load", lambda before, after: 0.5)
    result = take(case([1] * 9, [1] * 9), 4)
    assert result["repeated_rounds"] == bench.RETRIES
    assert result["noisy_rounds"] == 4
    assert len(result["values"]) == 4


def test_foreign_load_is_what_this_process_did_not_use():
    assert bench._foreign_load((10, 5, 1), (20, 12, 6)) == pytest.approx(0.2)
    assert bench._foreign_load((10, 5, 1), (20, 6, 9)) == 0
    assert bench._foreign_load((10, 5, 1), (10.1, 5.1, 1)) is None
    assert bench._foreign_load(None, None) is None


def test_every_suite_of_the_design_is_there():
    suites = list(dict.fromkeys(c.suite for c in CASES))
    assert suites == ["prefill", "packed", "decode", "call", "import", "metadata"]
    assert len({(c.suite, c.name) for c in CASES}) == len(CASES)


def test_the_list_shows_budgets(capsys):
    assert main(["bench", "--list", "--suite", "packed", "--suite", "import"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert ">= 3.3 x" in lines[0]
    assert "<= 50 ms" in lines[1]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--suite", "speed"], "--suite: got 'speed', expected one of prefill"),
        (["--rounds", "0"], "--rounds: got 0"),
        (["--output", "no/such/folder/x.json"], "folder: got"),
    ],
)
def test_bad_arguments(capsys, words, complaint):
    assert main(["bench", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_a_real_run_writes_its_results(tmp_path, capsys):
    output = tmp_path / "results.json"
    words = ["bench", "--suite", "call", "--rounds", "1", "--output", str(output)]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == "[1/3] call chunk_gated_delta_rule"
    assert "budget" in captured.out
    report = json.loads(output.read_text())
    named = {"version", "commit", "date", "torch", "cpu", "cpu_capability", "threads", "shape"}
    assert named <= set(report["header"])
    assert [r["passed"] for r in report["results"]] == [True] * 3
    assert all(r["value"] > 0 for r in report["results"])
    assert "bench_nothing" not in active_registry().names


@pytest.mark.parametrize(
    ("check", "code"), [(EQUAL, 0), (Check(False, "3.0e-01, peer 1.7e-03"), 1)]
)
def test_wrong_numbers_fail_a_run_missed_budgets_do_not(monkeypatch, capsys, silence, check, code):
    monkeypatch.setattr(cases, "CASES", (case([1], [2], budget=5, check=check),))
    assert main(["bench", "--rounds", "1"]) == code
    out = capsys.readouterr().out
    assert "MISSED" in out
    assert ("WRONG" in out) is bool(code)


def test_a_case_that_cannot_run_does_not_end_the_others(monkeypatch, capsys, silence):
    def missing(stack):
        raise MissingExtraError("this suite needs x\nInstall it: pip install x")

    broken = Case("fake", "broken", "nobody", bench.SPEEDUP, None, missing)
    monkeypatch.setattr(cases, "CASES", (broken, case([1], [2])))
    assert main(["bench", "--rounds", "1"]) == 1
    out = capsys.readouterr().out
    assert "MissingExtraError: this suite needs x" in out
    assert out.splitlines()[-1] == "Install it: pip install x"
    assert "2 x" in out


def test_results_survive_an_interrupt(monkeypatch, tmp_path, silence):
    def interrupt(stack):
        raise KeyboardInterrupt

    stopped = Case("fake", "stopped", "nobody", bench.SPEEDUP, None, interrupt)
    monkeypatch.setattr(cases, "CASES", (case([1], [2]), stopped))
    output = tmp_path / "results.json"
    assert main(["bench", "--rounds", "1", "--output", str(output)]) == 130
    assert len(json.loads(output.read_text())["results"]) == 1


def report_of(*values):
    header = {
        "cpu": "A CPU", "threads": 2, "cpu_capability": "AVX512", "torch": "2.6", "version": "1",
        "commit": None, "date": "2026-01-02T03:04+00:00", "shape": "H=16",
    }  # fmt: skip
    results = [
        {
            "suite": "prefill", "case": f"T={v}", "peer": "transformers", "unit": "x",
            "more_is_better": True, "budget": 5.0, "met": v >= 5, "value": v, "min": v - 1,
            "max": v + 1, "ours_s": 1e-4, "peer_s": v * 1e-4, "passed": True, "text": "equal",
            "noisy_rounds": 0,
        }
        for v in values
    ]  # fmt: skip
    return {"header": header, "rounds": 3, "results": results}


def test_plots_are_written_alike_every_time(tmp_path):
    pytest.importorskip("matplotlib")
    paths = plots.write_plots(report_of(4.0, 20.0), tmp_path / "speed")
    assert [path.name for path in paths] == ["speed.png", "speed-light.svg", "speed-dark.svg"]
    light, dark = (path.read_bytes() for path in paths[1:])
    assert light != dark
    plots.write_plots(report_of(4.0, 20.0), tmp_path / "speed")
    assert paths[1].read_bytes() == light


def test_nothing_to_compare_is_no_plot(tmp_path):
    assert plots.write_plots(report_of(), tmp_path / "speed") == []
    assert list(tmp_path.iterdir()) == []


def test_progress_is_plain_where_nobody_watches():
    stream = io.StringIO()
    with progress.progress(12, 3, stream=stream) as bar:
        bar.case("prefill T=512")
        bar.step("1 of 3")
        bar.end_case()
    assert stream.getvalue() == "[ 1/12] prefill T=512\n"


def test_progress_is_a_bar_on_a_terminal():
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with progress.progress(2, 3, stream=stream) as bar:
        for name in ("prefill", "decode"):
            bar.case(name)
            bar.step("1 of 3")
            bar.end_case()
    assert "decode" in stream.getvalue()
    assert "6/6" in stream.getvalue()


@pytest.mark.parametrize(
    ("name", "arguments"), [("host_metadata", (5, 9000)), ("import_time", (2,))]
)
def test_the_peerless_suites_check_their_numbers(name, arguments):
    with ExitStack() as stack:
        prepared = getattr(cases_host, name)(*arguments, stack)
        assert prepared.check().passed
        assert prepared.ours() > 0


def test_the_suites_against_transformers_check_their_numbers():
    pytest.importorskip("transformers")
    for prepare in (
        lambda _: cases_transformers._CHUNK(1, 40, (17, 23), True, (1, 90, (20, 70))),
        lambda stack: cases_transformers.decode(1, stack),
        lambda stack: cases_transformers.layer(1, stack),
    ):
        with ExitStack() as stack, torch.no_grad():
            check = prepare(stack).check()
        assert check.passed, check.text
        assert check.error < 4e-3


def test_the_package_keeps_benchmarks_out():
    for module in (cases, cases_host, cases_transformers):
        source = Path(module.__file__).read_text()
        assert "import benchmarks" not in source
        assert "from benchmarks" not in source
