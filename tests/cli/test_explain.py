"""``explain`` prints the decision, and its exit code says whether there is one."""

import json
import subprocess
import sys

import pytest

import gdn_dispatch
from gdn_dispatch.cli import COMMANDS, MissingExtraError, main, require
from gdn_dispatch.selection import report


def test_the_trace_is_that_of_the_library(capsys):
    assert main(["explain", "--head-dim-k", "96", "--feature", "varlen"]) == 0
    selection = gdn_dispatch.explain(head_dim_k=96, features=["varlen"])
    assert capsys.readouterr().out == report.selection_text(selection) + "\n"


def test_a_call_that_nothing_can_run(capsys):
    assert main(["explain", "--device", "npu:1", "--dtype", "bfloat16"]) == 1
    out = capsys.readouterr().out
    assert "chosen      none" in out
    assert "pip install 'gdn-dispatch[ascend]'" in out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--op", "nonsense"], "op: got 'nonsense', expected one of gdn_attention"),
        (["--dtype", "bf17"], "dtype: got 'bf17'"),
        (["--head-dim-k", "-1"], "head_dim_k: got -1"),
        (["--feature", "speed"], "features: got 'speed'"),
        (["--backend", "a/b/c"], "backend: got 'a/b/c'"),
    ],
)
def test_arguments_that_make_no_sense_are_explained(capsys, words, complaint):
    assert main(["explain", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {complaint}")
    assert captured.out == ""


def test_json_holds_the_call_and_every_reason(capsys):
    words = ["explain", "--device", "cuda", "--conv-width", "4", "--backend", "torch", "--json"]
    assert main(words) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["chosen"] == "torch"
    assert record["call"]["device"] == "cuda"
    assert record["call"]["conv_width"] == 4
    assert record["requested"] == {
        "name": "torch", "provider": None, "source": "backend argument"
    }  # fmt: skip
    assert list(record) == [
        "call", "requested", "chosen", "provider", "why", "refusal", "rejections"
    ]  # fmt: skip


def test_the_command_of_an_error_message_can_be_pasted(capsys):
    selection = gdn_dispatch.explain(
        "chunk_gated_delta_rule", device="xpu", dtype="float16", num_v_heads=32,
        features=["varlen", "autograd"],
    )  # fmt: skip
    words = report.explain_command(selection).split()
    assert main(words[1:]) == 1
    assert capsys.readouterr().out == report.selection_text(selection) + "\n"


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"gdn-dispatch {gdn_dispatch.__version__}\n"


@pytest.mark.parametrize("words", [[], ["nonsense"], ["explain", "--nonsense"]])
def test_wrong_usage_shows_usage(capsys, words):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert capsys.readouterr().err.startswith("usage: gdn-dispatch")


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_what_is_missing_comes_with_the_way_to_install_it():
    message = r"(?s)--plot needs no_such.*gdn-dispatch\[cli\]"
    with pytest.raises(MissingExtraError, match=message) as info:
        require("no_such.module", extra="cli", purpose="--plot")
    assert isinstance(info.value.__cause__, ModuleNotFoundError)


def test_no_command_imports_what_another_needs():
    code = (
        "import sys; from gdn_dispatch.cli import main; main(['explain']); "
        "print({'rich', 'matplotlib', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_python_m_is_the_same_program():
    command = [sys.executable, "-m", "gdn_dispatch", "explain", "--device", "cuda"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == ""
