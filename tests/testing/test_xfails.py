"""``xfails.txt``: every line is a test, a reason and a link, or an error that says where it is."""

import pytest

from gdn_dispatch.errors import InvalidArgumentError
from gdn_dispatch.testing.xfails import Exclusion, matching, read_exclusions


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "xfails.txt"

    def written(text):
        path.write_text(text, encoding="utf-8")
        return read_exclusions(path)

    return written


def test_a_line_is_an_id_a_reason_and_a_link(written):
    (found,) = written("  test_scale[-2.5-chunk] |  overflows   | https://example.org/1 \n")
    assert found == Exclusion("test_scale[-2.5-chunk]", "overflows", "https://example.org/1")


def test_comments_and_empty_lines_are_no_entries(written):
    assert written("# test_a | b | c\n\n   \n  # another\n") == ()
    assert written("") == ()


def test_parameters_may_hold_a_bar(written):
    (found,) = written("test_a[x | y|z] | reason | link")
    assert found == Exclusion("test_a[x | y|z]", "reason", "link")


def test_lines_keep_their_order(written):
    assert [e.test for e in written("test_b | r | l\ntest_a | r | l\n")] == ["test_b", "test_a"]


@pytest.mark.parametrize(
    "line",
    ["test_a", "test_a | reason", "test_a | reason |", "| reason | link", "test_a | | link", "|||"],
)
def test_a_malformed_line_is_refused_by_file_and_number(written, line):
    with pytest.raises(InvalidArgumentError) as caught:
        written(f"# one\n\ntest_b | reason | link\n{line}\n")
    assert str(caught.value).startswith(f"xfails.txt, line 4: got {line!r}, expected test id |")


def test_no_file_means_no_exclusions_and_a_missing_one_is_an_error(tmp_path):
    assert read_exclusions(None) == ()
    with pytest.raises(InvalidArgumentError, match=r"missing\.txt"):
        read_exclusions(tmp_path / "missing.txt")


def test_an_id_without_parameters_means_all_of_them():
    whole = Exclusion("test_scale", "r", "l")
    for name in ("test_scale", "test_scale[3-chunk]", "test_scale[None-recurrent]"):
        assert matching((whole,), name) is whole
    assert matching((whole,), "test_scales[3-chunk]") is None


def test_an_id_with_parameters_means_these():
    one = Exclusion("test_scale[3-chunk]", "r", "l")
    assert matching((one,), "test_scale[3-chunk]") is one
    for name in ("test_scale", "test_scale[3-recurrent]", "test_scale[3-chunk-more]"):
        assert matching((one,), name) is None
