"""``doctor`` reports on any machine, and its exit code says whether the machine is usable."""

import dataclasses
import json
import sys
import types
from importlib import metadata

import pytest
import torch

from gdn_dispatch.cli import doctor, main
from gdn_dispatch.config import BACKEND_VARIABLE, DISABLE_VARIABLE, read
from gdn_dispatch.hookspecs import hookimpl
from gdn_dispatch.plugins.discovery import GROUP
from gdn_dispatch.plugins.manager import load
from gdn_dispatch.selection import dispatch
from gdn_dispatch.testing.loopback import Loopback, info, loopback
from gdn_dispatch.torch_backend import plugin as torch_plugin


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch):
    """One thread, because the steps are tiny; and no accelerator, whatever this machine has."""
    monkeypatch.setattr(doctor, "_accelerator", lambda: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def machine(monkeypatch):
    """Make a machine with these plugins and this environment; the real one comes back after."""
    before = dispatch.active_registry(), dispatch.active_config()

    def machine(environ=None, **plugins):
        entry_points = []
        for name, plugin in plugins.items():
            module = types.ModuleType(f"fake_{name}")
            module.plugin = plugin
            monkeypatch.setitem(sys.modules, module.__name__, module)
            entry_points.append(metadata.EntryPoint(name, f"fake_{name}:plugin", GROUP))
        config = read(environ or {})
        dispatch.install(load(config, entry_points=entry_points), config)

    yield machine
    dispatch.install(*before)


def doctor_json(capsys, *words):
    code = main(["doctor", "--json", *words])
    report = json.loads(capsys.readouterr().out)
    assert report["exit_code"] == code
    return report


def test_a_good_machine(machine, capsys):
    machine()
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "torch    " in out
    assert "selected" in out
    assert "[0,0,70,134] bf16: max error" in out
    assert out.splitlines()[-1] == "OK: torch will run gdn_attention on cpu tensors"


def test_the_keys_of_the_json_are_stable(machine, capsys):
    machine()
    report = doctor_json(capsys)
    assert list(report) == [
        "version", "environment", "configuration", "backends", "conflicts", "triton_from",
        "selection", "smoke", "conclusion", "exit_code",
    ]  # fmt: skip
    assert list(report["backends"][0]) == [
        "name", "version", "status", "why", "distribution", "device_types", "causes"
    ]  # fmt: skip
    assert list(report["smoke"]) == [
        "backend", "device", "error", "seconds", "failure", "limit", "passed"
    ]  # fmt: skip
    assert report["smoke"]["passed"]


@pytest.mark.parametrize(
    ("words", "environ", "code", "conclusion"),
    [
        (["--backend", "cuda"], {}, 2, "not installed: pip install 'gdn-dispatch[cuda]'"),
        (["--backend", "a b"], {}, 2, "backend: got 'a b'"),
        (["--backend", "torch/fast"], {}, 2, "has no provider 'fast'"),
        ([], {BACKEND_VARIABLE: "acme"}, 2, "acme, asked for by GDN_DISPATCH_BACKEND, is refused"),
        ([], {BACKEND_VARIABLE: "cuda/"}, 2, "GDN_DISPATCH_BACKEND='cuda/': expected one backend"),
        ([], {DISABLE_VARIABLE: "torch"}, 1, "no backend can run this call on cpu tensors"),
        ([], {DISABLE_VARIABLE: "a b"}, 1, "GDN_DISPATCH_DISABLE='a b'"),
        (
            ["--backend", "torch"],
            {DISABLE_VARIABLE: "torch"},
            2,
            "disabled by GDN_DISPATCH_DISABLE",
        ),
    ],
)
def test_a_machine_that_cannot_do_what_was_asked(machine, capsys, words, environ, code, conclusion):
    machine(environ)
    report = doctor_json(capsys, *words)
    assert report["exit_code"] == code
    assert report["conclusion"].startswith("FAILED: ")
    assert conclusion in report["conclusion"]
    assert report["smoke"] is None


def test_a_broken_plugin_is_shown_with_its_cause(machine, capsys, monkeypatch):
    def broken(name):
        try:
            raise OSError("libdriver.so.1: no such file")
        except OSError as error:
            raise ImportError("no kernels") from error

    module = types.ModuleType("fake_acme")
    module.__getattr__ = broken
    machine()
    monkeypatch.setitem(sys.modules, "fake_acme", module)
    config = read({})
    entry_point = metadata.EntryPoint("acme", "fake_acme:plugin", GROUP)
    dispatch.install(load(config, entry_points=[entry_point]), config)

    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ImportError: no kernels" in out
    assert "acme: raised at" in out
    assert "acme: caused by OSError: libdriver.so.1: no such file" in out
    assert main(["doctor", "--backend", "acme"]) == 2


@pytest.mark.parametrize("error", [RuntimeError("no kernel image\nand more"), SystemExit("bye")])
def test_a_backend_whose_smoke_run_raises(machine, capsys, error):
    class Raising(Loopback):
        @hookimpl
        def gdn_attention(self, request):
            raise error

    machine(acme=Raising(info("acme")))
    report = doctor_json(capsys, "--backend", "acme")
    assert report["exit_code"] == 2
    assert report["smoke"]["failure"].startswith(type(error).__name__)
    assert "\n" not in report["smoke"]["failure"]


@pytest.mark.parametrize(("spoil", "failure"), [(0.1, ""), (float("nan"), "NaN")])
def test_wrong_numbers_are_found(machine, capsys, spoil, failure):
    class Wrong(Loopback):
        @hookimpl
        def build_chunk_meta(self, request):
            meta = torch_plugin.build_chunk_meta(request)
            meta.backend = "acme"
            return meta

        @hookimpl
        def gdn_attention(self, request):
            result = torch_plugin.gdn_attention(request)
            request.out[75] += spoil * request.out.abs().max()
            return result

    machine(acme=Wrong(info("acme", priority=99)))
    report = doctor_json(capsys)
    assert report["exit_code"] == 1
    assert report["selection"]["chosen"] == "acme"
    assert not report["smoke"]["passed"]
    assert failure in report["smoke"]["failure"]


def test_a_backend_that_was_asked_for_is_tried_on_its_own_device(machine, capsys):
    machine(acme=loopback("acme", "npu"))
    report = doctor_json(capsys, "--backend", "acme")
    assert report["selection"]["call"]["device"] == "npu"
    assert report["selection"]["chosen"] == "acme"
    assert report["smoke"]["failure"]  # no such device here: a finding, not a traceback


def test_conflicts(machine, monkeypatch):
    machine(cuda=loopback("cuda", "cuda"), xpu=loopback("xpu", "xpu"), torch=loopback("torch"))
    owners = {"triton": ["triton-ascend", "triton", "triton"]}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: owners)
    found, providers = doctor.conflicts()
    assert providers == ["triton", "triton-ascend"]
    assert "triton and triton-ascend all install the package triton" in found[0]
    assert "several accelerators are installed (cuda, xpu)" in found[1]
    assert "torch" in found[2]
    assert len(found) == 3


def test_unreadable_metadata_is_a_finding(machine, monkeypatch):
    def broken():
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    machine()
    monkeypatch.setattr(metadata, "packages_distributions", broken)
    found, providers = doctor.conflicts()
    assert providers == []
    assert "UnicodeDecodeError" in found[0]


def test_a_nan_is_no_pass():
    assert not doctor.Smoke("acme", "cpu", float("nan")).passed
    assert dataclasses.replace(doctor.Smoke("acme", "cpu"), error=1e-3).passed
