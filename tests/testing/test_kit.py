"""The kit itself: what it expects of a backend, and what it says when that does not come true."""

import json

import pytest

from tests.testing.inner_runs import FEW_TESTS, run_pytest

RAW = "does not implement use_gate_in_kernel"
GOOD_LINES = """
# a comment, and an empty line

test_raw_gates | raw gates are missing | https://example.org/1
"""
# in the class of the backend that can do all but raw gates, and says so
STALE_LINES = """
test_final_state_only_on_request[chunk] | was broken once | https://example.org/2
test_no_such_test | - | -
test_raw_gates[bias-chunky] | - | -
"""

ONE_OF_EACH = f"""{FEW_TESTS}
class TestModest(FewTests):
    backend = "modest"

class TestLimited(FewTests):
    backend = "limited"

class TestCautious(FewTests):
    backend = "limited"
    try_undeclared = False

class TestBoastful(FewTests):
    backend = "boastful"

class TestExcused(FewTests):
    backend = "boastful"
    xfails = Path(__file__).with_name("excused.txt")

class TestStale(FewTests):
    backend = "limited"
    xfails = str(Path(__file__).with_name("stale.txt"))

class TestAbsent(FewTests):
    backend = "absent"

class TestUnknown(FewTests):
    backend = "unheard_of"

class TestCoarse(FewTests):
    backend = "coarse"

class TestTolerant(FewTests):
    backend = "coarse"
    tolerances = {{"float32": 1e-2, "bfloat16": 1e-9}}

class TestElsewhere(FewTests):
    backend = "elsewhere"

class TestBroughtHome(FewTests):
    backend = "elsewhere"
    device = "cpu"

class TestMalformed(FewTests):
    backend = "modest"
    xfails = Path(__file__).with_name("malformed.txt")

class TestNameless(FewTests):
    pass
"""


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory):
    """One run of a class for each kind of backend."""
    return run_pytest(
        tmp_path_factory.mktemp("one_of_each"), ONE_OF_EACH, "-rs", "--gdn-report=report.json",
        excused=GOOD_LINES, stale=STALE_LINES, malformed="# first\ntest_raw_gates | no link\n",
    )  # fmt: skip


def test_undeclared_and_failing_is_expected(one_of_each):
    assert one_of_each.outcomes("TestLimited::test_raw_gates") == ["xfailed"] * 4
    assert one_of_each.messages("TestLimited::test_raw_gates") == {RAW}


def test_undeclared_and_passing_is_reported_and_no_failure(one_of_each):
    assert one_of_each.outcomes("TestModest::test_raw_gates") == ["xpassed"] * 4
    line = f"gdn-dispatch: 4 tests pass that modest is not held to: {RAW}"
    assert line in one_of_each.out.splitlines()


def test_undeclared_is_not_tried_where_that_is_not_wanted(one_of_each):
    assert one_of_each.outcomes("TestCautious::test_raw_gates") == ["skipped"] * 4
    assert one_of_each.messages("TestCautious::test_raw_gates") == {f"Skipped: not declared: {RAW}"}
    assert "limited is not held to" not in one_of_each.out


def test_declared_and_failing_is_a_failure(one_of_each):
    assert one_of_each.outcomes("TestBoastful::test_raw_gates") == ["failed"] * 4
    (message,) = {m.splitlines()[-1] for m in one_of_each.messages("TestBoastful::test_raw_gates")}
    assert message.endswith("NotImplementedError")


def test_the_rest_of_each_backend_is_held_to_all_the_same(one_of_each):
    for name in ("Modest", "Limited", "Cautious", "Boastful", "Excused", "BroughtHome"):
        found = one_of_each.outcomes(f"Test{name}::test_final_state_only_on_request")
        assert found == ["passed"] * 2, name


def test_what_is_excluded_may_fail_and_says_why(one_of_each):
    assert one_of_each.outcomes("TestExcused::test_raw_gates") == ["xfailed"] * 4
    assert one_of_each.messages("TestExcused::test_raw_gates") == {
        "raw gates are missing (https://example.org/1)"
    }
    assert one_of_each.outcomes("TestExcused::test_exclusions") == ["passed"]


def test_an_exclusion_expires_when_its_test_passes(one_of_each):
    stale = one_of_each.tests["TestStale::test_final_state_only_on_request[chunk]"]
    assert stale.outcome == "failed"
    assert "XPASS(strict)" in stale.message
    assert "was broken once (https://example.org/2)" in stale.message
    other = one_of_each.tests["TestStale::test_final_state_only_on_request[recurrent]"]
    assert other.outcome == "passed"


def test_exclusions_of_tests_that_do_not_exist_are_named(one_of_each):
    unknown = one_of_each.tests["TestStale::test_exclusions_name_tests_of_the_kit"]
    assert unknown.outcome == "failed"
    assert "['test_no_such_test', 'test_raw_gates[bias-chunky]']" in unknown.message


def test_a_backend_that_cannot_run_here_is_skipped_with_the_reason_of_its_probe(one_of_each):
    assert set(one_of_each.outcomes("TestAbsent")) == {"skipped"}
    assert one_of_each.messages("TestAbsent") == {
        "Skipped: absent: no device; is the driver loaded?"
    }


def test_a_backend_that_is_not_installed_is_skipped_too(one_of_each):
    (message,) = one_of_each.messages("TestUnknown")
    assert "no backend 'unheard_of' is installed (there are absent, boastful, " in message


def test_numbers_are_held_to_the_tolerances_of_the_kit_or_of_the_class(one_of_each):
    assert one_of_each.outcomes("TestCoarse::test_raw_gates") == ["failed"] * 4
    assert one_of_each.outcomes("TestTolerant::test_raw_gates") == ["passed"] * 4


def test_the_device_of_a_class_is_used(one_of_each):
    assert set(one_of_each.outcomes("TestElsewhere::test_raw_gates")) == {"failed"}
    assert one_of_each.outcomes("TestBroughtHome::test_raw_gates") == ["passed"] * 4


def test_a_malformed_exclusion_is_an_error_that_names_file_and_line(one_of_each):
    assert set(one_of_each.outcomes("TestMalformed")) == {"failed"}
    for message in one_of_each.messages("TestMalformed"):
        assert "malformed.txt, line 2: got 'test_raw_gates | no link'" in message


def test_without_a_backend_nothing_is_tested(one_of_each):
    assert one_of_each.messages("TestNameless") == {
        "Skipped: no backend to test: set `backend` or pass --gdn-backend NAME"
    }


def test_a_report_about_several_backends_is_refused(one_of_each):
    (line,) = [line for line in one_of_each.out.splitlines() if "no report" in line]
    assert "boastful on cpu, coarse on cpu" in line
    assert one_of_each.code == pytest.ExitCode.TESTS_FAILED


MODEST = f"{FEW_TESTS}\nclass TestModest(FewTests):\n    backend = 'modest'\n"


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "two workers"])
def test_the_report(tmp_path, workers):
    run = run_pytest(tmp_path, MODEST, "--gdn-report", "report.json", *workers)
    assert run.code == pytest.ExitCode.OK
    assert "gdn-dispatch: wrote report.json" in run.out
    assert f"gdn-dispatch: 4 tests pass that modest is not held to: {RAW}" in run.out
    record = json.loads((tmp_path / "report.json").read_text())
    assert (record["backend"], record["device"], record["version"]) == ("modest", "cpu", "1.2.3")
    assert record["undeclared"] == {RAW: 4}
    assert record["features"] == {
        "CHUNK_RULE": {"passed": 1},
        "RECURRENT_RULE": {"passed": 1},
        "VARLEN": {"passed": 2},
    }
    assert {"date", "torch"} < set(record)


def test_a_backend_that_has_to_run_fails_where_it_cannot(tmp_path):
    source = f"{FEW_TESTS}\nclass TestAbsent(FewTests):\n    backend = 'absent'\n"
    run = run_pytest(tmp_path, source, "--gdn-require", "--gdn-report", "report.json")
    assert run.code == pytest.ExitCode.TESTS_FAILED
    assert set(run.outcomes("TestAbsent")) == {"failed"}
    assert all("absent: no device; is the driver loaded?" in m for m in run.messages("TestAbsent"))
    assert not (tmp_path / "report.json").exists()


NAMELESS = f"{FEW_TESTS}\nclass TestNameless(FewTests):\n    pass\n"


def test_backend_device_and_exclusions_of_the_command_line(tmp_path):
    run = run_pytest(
        tmp_path, NAMELESS, "--gdn-backend", "elsewhere", "--gdn-device", "cpu", "--gdn-xfails",
        "given.txt", given="test_final_state_only_on_request[chunk] | - | -",
    )  # fmt: skip
    assert run.outcomes("TestNameless::test_raw_gates") == ["passed"] * 4
    # the line given is stale, so it was read
    assert run.tests["TestNameless::test_final_state_only_on_request[chunk]"].outcome == "failed"
    assert run.code == pytest.ExitCode.TESTS_FAILED


def test_the_whole_kit_runs_by_name_alone(tmp_path):
    run = run_pytest(
        tmp_path, "", "--pyargs", "gdn_dispatch.testing", "--gdn-backend", "torch",
        "-k", "test_donated_state or test_exclusions",
    )  # fmt: skip
    assert run.code == pytest.ExitCode.OK
    assert "3 passed" in run.out
