"""What a backend says about itself and about a machine, on every machine it could be on."""

import importlib
import itertools
import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pluggy
import pytest
import torch

from gdn_dispatch import hookspecs
from gdn_dispatch.plugins.inspection import describe
from gdn_dispatch.selection.resolver import Candidate, Choice, resolve
from gdn_dispatch.testing.loopback import call
from gdn_dispatch.types import HOOK_API_VERSION, Available, Unavailable
from tests.packaging.layout import BACKENDS, folder

TORCH = ("2.13.0+cpu",)

# What each fact may be; the first of each make the machine that has nothing.
MACHINES = {
    "cpu": {
        "machine": ("x86_64", "aarch64"),
        "capability": ("AVX512", "DEFAULT"),
        "kernels": (None, "avx512_bf16"),
        "failure": ("libgdn_cpu.so is not installed",),
    },
    "cuda": {
        "torch": TORCH,
        "cuda": (None, "12.9"),
        "hip": (None, "6.4"),
        "visible": (False, True),
        "nodes": ((), ("/dev/nvidia0",), ("/dev/nvidia0", "/dev/nvidia1")),
        "triton": (None, "3.6.0"),
        "rivals": ((), ("triton-ascend 3.2.0",), ("triton-ascend 3.2.0", "triton-xpu 3.6.0")),
    },
    "ascend": {
        "torch": TORCH,
        "torch_npu": (None, "2.13.0", "2.13.0.post7", "2.10.0"),
        "loaded": (False, True),
        "nodes": ((), ("/dev/davinci0",)),
        "triton_ascend": (None, "3.2.0"),
        "triton": (None, "3.6.0"),
    },
    "xpu": {
        "torch": TORCH,
        "xpu": (None, "20260100"),
        "visible": (False, True),
        "nodes": ((), ("/dev/dri/renderD128",)),
        "kernels": (None, "0.1.16.2"),
        "refused": ("", "its gdn_attention takes 22 arguments"),
        "triton": (None, "triton 3.8.0+xpu"),
        "ipex": (None, "2.8.0"),
    },
}

# Each sentence and the machines it belongs to; a machine is told these and nothing else.
WHEN = {
    "cpu": {"no compiled kernels": lambda f: not f.kernels},
    "cuda": {
        "is built without CUDA": lambda f: not f.cuda and not f.hip,
        "is built for ROCm": lambda f: f.hip,
        "torch sees no CUDA device": lambda f: f.cuda and not f.hip and f.nodes and not f.visible,
        "there is no /dev/nvidia0": lambda f: (
            not f.nodes and not (f.cuda and not f.hip and f.visible)
        ),
        "triton is not installed: pip install 'gdn-dispatch[cuda]'": lambda f: not f.triton,
        "overwrites the package triton": lambda f: f.rivals,
    },
    "ascend": {
        "torch-npu is not installed: pip install 'gdn-dispatch[ascend]'": lambda f: not f.torch_npu,
        "is made for torch 2.10.0, this is torch 2.13.0+cpu": lambda f: f.torch_npu == "2.10.0",
        "torch has not loaded it": lambda f: f.torch_npu and not f.loaded,
        "there is no /dev/davinci0": lambda f: not f.nodes,
        "triton-ascend is not installed: pip install 'gdn-dispatch[ascend]'": lambda f: (
            not f.triton_ascend
        ),
        "overwrite each other's files": lambda f: f.triton,
    },
    "xpu": {
        "is built without XPU": lambda f: not f.xpu,
        "torch sees no XPU device": lambda f: f.xpu and f.nodes and not f.visible,
        "there is no /dev/dri/renderD128": lambda f: not f.nodes and not (f.xpu and f.visible),
        "vllm-xpu-kernels is not installed: pip install 'gdn-dispatch[xpu]'": lambda f: (
            not f.kernels and not f.triton
        ),
        "its gdn_attention takes 22 arguments": lambda f: f.kernels and f.refused and not f.triton,
    },
}

INFO = {  # device types, block sizes, block size multiple
    "ascend": (("npu",), (1216,), 128),
    "cpu": (("cpu",), (), 1),
    "cuda": (("cuda",), (), 16),
    "xpu": (("xpu",), (), 64),
}

backends = pytest.mark.parametrize("name", BACKENDS)


def module(name, part):
    return importlib.import_module(f"gdn_dispatch_{name}.{part}")


def machines(name):
    fields = MACHINES[name]
    for values in itertools.product(*fields.values()):
        yield module(name, "probe").Facts(**dict(zip(fields, values, strict=True)))


@pytest.mark.parametrize(
    ("name", "sentence"), [(name, text) for name in BACKENDS for text in WHEN[name]]
)
def test_a_reason_is_given_exactly_where_it_holds(name, sentence):
    answers = set()
    for facts in machines(name):
        given = [reason for reason in module(name, "probe").reasons(facts) if sentence in reason]
        holds = bool(WHEN[name][sentence](facts))
        assert len(given) == holds, facts
        answers.add(holds)
    assert answers == {True, False}


@backends
def test_no_other_reason_is_given(name):
    probe = module(name, "probe")
    for facts in machines(name):
        reasons = probe.reasons(facts)
        assert len(reasons) == sum(bool(holds(facts)) for holds in WHEN[name].values()), facts
        assert all(reason and "\n" not in reason for reason in reasons)


@backends
def test_the_readme_shows_what_is_said_on_a_machine_that_has_nothing(name):
    said = "; ".join(module(name, "probe").reasons(next(machines(name))))
    shown = (folder(name) / "README.md").read_text(encoding="utf-8")
    assert f"    {name:<8} 0.1.0       unavailable    {said}\n" in shown


def test_ipex_is_recognised_and_said_to_be_no_way_out():
    probe = module("xpu", "probe")
    for facts in machines("xpu"):
        ended = "intel-extension-for-pytorch 2.8.0 has ended"
        told = ended in "; ".join(probe.reasons(facts))
        assert told == (facts.ipex is not None and facts.xpu is None), facts
        # where it is not in the way, doctor tells it beside what the backend runs on
        assert (ended in probe.detail(facts)) == (facts.ipex is not None)


def test_a_triton_without_the_kernels_for_hopper_is_told():
    probe = module("cuda", "probe")
    facts = probe.Facts("2.13.0", "12.9", None, True, ("/dev/nvidia0",), "3.6.1", ())
    assert probe.detail(facts) == "CUDA 12.9, Triton 3.6.1"
    assert probe.detail(replace(facts, triton="3.7.0")) == (
        "CUDA 12.9, Triton 3.7.0 (not 3.6.x: prefill on Hopper by the portable kernels)"
    )


def test_the_cpu_is_named():
    probe = module("cpu", "probe")
    assert probe.reasons(probe.Facts("aarch64", "SVE256", None, "lost")) == (
        "no compiled kernels (lost): the slower torch backend serves this CPU (aarch64, SVE256); "
        "reinstall gdn-dispatch-cpu where there is a C++17 compiler with OpenMP",
    )
    assert probe.reasons(probe.Facts("aarch64", "SVE256", "portable", "")) == ()


@backends
def test_the_probe_says_what_this_machine_lacks(name):
    answer = module(name, "plugin").probe()
    probe = module(name, "probe")
    lacking = "; ".join(probe.reasons(probe.collect()))
    assert answer == Unavailable(lacking) if lacking else isinstance(answer, Available)


@pytest.mark.parametrize(
    ("name", "field", "distributions"),
    [
        ("cuda", "triton", ("triton", "pytorch-triton")),
        ("ascend", "torch_npu", ("torch-npu",)),
        ("ascend", "triton_ascend", ("triton-ascend",)),
        ("ascend", "triton", ("triton",)),
        ("xpu", "kernels", ("vllm-xpu-kernels",)),
        ("xpu", "ipex", ("intel-extension-for-pytorch",)),
    ],
)
def test_versions_are_those_installed_here(name, field, distributions):
    installed = {
        re.sub(r"[-_.]+", "-", found.name).lower(): found.version
        for found in metadata.distributions()
    }
    expected = next((installed[each] for each in distributions if each in installed), None)
    assert getattr(module(name, "probe").collect(), field) == expected


@pytest.mark.parametrize(("name", "field"), [("cuda", "triton"), ("ascend", "triton_ascend")])
def test_a_version_is_found_once_it_is_installed(name, field, tmp_path, monkeypatch):
    info = tmp_path / f"{field}-9.8.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {field.replace('_', '-')}\nVersion: 9.8.7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert getattr(module(name, "probe").collect(), field) == "9.8.7"


def test_devices_are_those_of_this_machine():
    cuda, ascend, xpu = (module(name, "probe").collect() for name in ("cuda", "ascend", "xpu"))
    assert {facts.torch for facts in (cuda, ascend, xpu)} == {torch.__version__}
    assert (cuda.cuda, cuda.hip, xpu.xpu) == (
        torch.version.cuda, torch.version.hip, torch.version.xpu,
    )  # fmt: skip
    for facts, where, pattern in (
        (cuda, "/dev", r"nvidia\d+"),
        (ascend, "/dev", r"davinci\d+"),
        (xpu, "/dev/dri", r"renderD\d+"),
    ):
        here = Path(where).iterdir() if Path(where).is_dir() else ()
        assert set(facts.nodes) == {str(p) for p in here if re.fullmatch(pattern, p.name)}
    accelerator = torch.accelerator.current_accelerator()
    seen = accelerator.type if torch.accelerator.is_available() else None
    assert (cuda.visible, xpu.visible, ascend.loaded) == (
        seen == "cuda", seen == "xpu", hasattr(torch, "npu"),
    )  # fmt: skip


@backends
def test_what_is_declared_is_what_the_design_says(name):
    info = module(name, "plugin").backend_info()
    device_types, block_sizes, multiple = INFO[name]
    assert (info.name, info.device_types) == (name, device_types)
    assert (info.priority, info.hook_api) == (50, HOOK_API_VERSION)
    assert (info.chunk_size, info.block_sizes, info.conv_block_size) == (64, block_sizes, 0)
    assert info.block_size_multiple == multiple
    assert info.capability.features
    assert not info.any_device_on_request


@backends
def test_the_contract_is_kept_and_all_compute_hooks_are_there(name):
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    description = describe(manager, module(name, "plugin"), name)
    compute = {"gdn_attention", "gated_delta_rule"}
    metadata = {
        "ascend": {"build_chunk_meta"},
        "cpu": {"build_chunk_meta", "chunk_tables"},
        "xpu": {"build_chunk_meta"},
    }
    expected = {"backend_info", "probe"} | compute | metadata.get(name, set())
    assert description.hooks == expected


@backends
@pytest.mark.parametrize(
    "op", ["gdn_attention", "chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"]
)
def test_no_call_would_be_sent_to_it_on_a_machine_that_has_everything(name, op):
    info = module(name, "plugin").backend_info()
    candidate = Candidate(name, info, Available(), hooks=frozenset({"backend_info", "probe"}))
    selection = resolve([candidate], call(op, info.device_types[0]), Choice())
    assert selection.chosen is None
    (rejection,) = (r for r in selection.rejections if r.backend == name)
    assert f"does not implement {op}" in rejection.reasons
