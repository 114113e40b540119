"""What is said of a machine: exactly what it lacks, and on a whole one what it has."""

from __future__ import annotations

import itertools
import types

import pytest
import torch
from gdn_dispatch_ascend import probe

from gdn_dispatch import Available, Unavailable

WHOLE = probe.Facts(
    torch="2.13.0+cpu", torch_npu="2.13.0", loaded=True, nodes=("/dev/davinci0",),
    triton_ascend="3.2.0", triton=None, pybind11=True, cann="9.0.0",
)  # fmt: skip

FIELDS = {
    "torch_npu": (None, "2.13.0", "2.13.0.post7", "2.10.0"),
    "loaded": (False, True),
    "nodes": ((), ("/dev/davinci0",)),
    "triton_ascend": (None, "3.2.0"),
    "triton": (None, "3.6.0"),
    "pybind11": (False, True),
    "cann": (None, "9.0.0"),
}

WHEN = {
    "torch-npu is not installed": lambda f: not f.torch_npu,
    "is made for torch 2.10.0, this is torch 2.13.0": lambda f: f.torch_npu == "2.10.0",
    "there is none under /usr/local/Ascend": lambda f: f.torch_npu and not f.loaded and not f.cann,
    "unset TORCH_DEVICE_BACKEND_AUTOLOAD": lambda f: f.torch_npu and not f.loaded and f.cann,
    "there is no /dev/davinci0": lambda f: not f.nodes,
    "triton-ascend is not installed": lambda f: not f.triton_ascend,
    "pip install pybind11": lambda f: f.triton_ascend and not f.pybind11,
    "overwrite each other's files": lambda f: f.triton,
}


def machines():
    for values in itertools.product(*FIELDS.values()):
        yield probe.Facts(torch="2.13.0+cpu", **dict(zip(FIELDS, values, strict=True)))


def test_every_reason_is_given_exactly_where_it_holds():
    for facts in machines():
        told = probe.reasons(facts)
        for sentence, holds in WHEN.items():
            assert sum(sentence in reason for reason in told) == bool(holds(facts)), facts
        assert len(told) == sum(bool(holds(facts)) for holds in WHEN.values()), facts
        assert all(reason and "\n" not in reason for reason in told)


@pytest.mark.parametrize(
    ("cann", "told"), [("9.0.0", "CANN 9.0.0"), (None, "a CANN that does not say its version")]
)
def test_a_whole_machine_is_told_with_its_versions(monkeypatch, cann, told):
    facts = probe.Facts(
        **{name: getattr(WHOLE, name) for name in WHOLE.__slots__ if name != "cann"}, cann=cann
    )  # fmt: skip
    monkeypatch.setattr(probe, "collect", lambda: facts)
    answer = probe.probe_machine()
    assert isinstance(answer, Available)
    for part in ("torch-npu 2.13.0", told, "triton-ascend 3.2.0", "not been run on an NPU"):
        assert part in answer.detail


def test_this_machine():
    answer = probe.probe_machine()
    told = "; ".join(probe.reasons(probe.collect()))
    assert answer == Unavailable(told) if told else isinstance(answer, Available)


@pytest.mark.parametrize(
    ("path", "text", "version"),
    [
        ("ascend-toolkit/latest/x86_64-linux/ascend_toolkit_install.info",
         "package_name=Ascend-cann-toolkit\nversion=8.5.0\ninnerversion=V100R001\n", "8.5.0"),
        ("cann-9.0.0/aarch64-linux/ascend_toolkit_install.info", "version=9.0.0\n", "9.0.0"),
        ("ascend-toolkit/latest/version.cfg",
         "# version\nruntime_running_version=[7.7.0.1.238:8.3.RC1]\n", "8.3.RC1"),
        ("ascend-toolkit/latest/version.cfg", "nothing\n", None),
        ("ascend-toolkit/notes.txt", "version=1\n", None),
    ],
)  # fmt: skip
def test_cann_is_found_by_what_its_installer_left(tmp_path, monkeypatch, path, text, version):
    monkeypatch.delattr(torch, "npu", raising=False)
    file = tmp_path / "Ascend" / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert probe.cann_version(tmp_path / "Ascend") == version
    assert probe.cann_version(tmp_path / "no such place") is None


def test_a_loaded_torch_npu_is_asked(monkeypatch, tmp_path):
    npu = types.SimpleNamespace(get_cann_version=lambda: "9.1.0")
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    assert probe.cann_version(tmp_path) == "9.1.0"
    assert probe.collect().loaded


@pytest.mark.parametrize("answer", ["", RuntimeError("no such file")])
def test_a_torch_npu_that_does_not_know(monkeypatch, tmp_path, answer):
    def ask():
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(
        torch, "npu", types.SimpleNamespace(get_cann_version=ask), raising=False
    )  # fmt: skip
    assert probe.cann_version(tmp_path) is None
