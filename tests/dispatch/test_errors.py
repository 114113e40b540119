"""Every message, word for word.

The texts are in ``golden``. To accept a change, run pytest with ``GOLDEN=write`` in the environment
and read the difference.
"""

import os
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
import torch

from gdn_dispatch import chunk_gated_delta_rule, errors
from gdn_dispatch.capability import Capability, Feature
from gdn_dispatch.config import Config, read
from gdn_dispatch.hookspecs import hookimpl
from gdn_dispatch.plugins.discovery import GROUP
from gdn_dispatch.plugins.manager import load
from gdn_dispatch.selection import dispatch, report
from gdn_dispatch.selection.dispatch import bind, explain, use_backend
from gdn_dispatch.testing.loopback import EVERYTHING, Loopback, call, info, loopback
from gdn_dispatch.types import Available, ProviderInfo, Unavailable
from tests.support.fake_packages import distribution

GOLDEN = Path(__file__).parent / "golden"

XPU = Capability(
    features=EVERYTHING.features - {Feature.CHECKPOINTS},
    dtypes=("bfloat16", "float16"),
    state_dtypes=("float32", "bfloat16"),
    head_dims_k=(64, 128),
)


def assert_golden(name, text):
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def machine():
    """A machine with one of everything that can be wrong."""
    before = dispatch.active_registry(), dispatch.active_config()
    config = read({"GDN_DISPATCH_DISABLE": "acme"})
    broken = metadata.EntryPoint("ascend", "no_such_sdk", GROUP)
    disabled = metadata.EntryPoint("acme", "no_such_sdk", GROUP)
    registry = load(config, entry_points=[broken, disabled], builtins={})
    providers = (
        ProviderInfo("triton", EVERYTHING),
        ProviderInfo("flashinfer", Capability(features=EVERYTHING.features, head_dims_k=(128,))),
        ProviderInfo("cutile", EVERYTHING, unavailable="needs the cuda-tile package"),
    )
    for plugin in (
        loopback("torch", "cpu", priority=0, any_device_on_request=True, summary="built in"),
        loopback("xpu", "xpu", capability=XPU, answer=Available("2 devices"), version="0.3.1"),
        loopback("cuda", "cuda", providers=providers, summary="NVIDIA GPUs"),
        loopback("gaudi", "hpu", answer=Unavailable("no device; is the driver loaded?")),
    ):
        registry.register(plugin, plugin.described.name)
    dispatch.install(registry, config)
    yield registry
    dispatch.install(*before)


def on(device, *shape, dtype=torch.bfloat16):
    """A tensor that has a shape, a dtype and the name of a device, and no memory."""

    class Described:
        pass

    tensor = Described()
    tensor.shape, tensor.dtype, tensor.device = torch.Size(shape), dtype, device
    return tensor


K96 = call(
    device_type="xpu",
    dtype="bfloat16",
    state_dtype="float16",
    head_dim_k=96,
    head_dim_v=128,
    features=frozenset({Feature.CHECKPOINTS, Feature.VARLEN}),
)
INPUTS = (
    ("mixed_qkv", on("xpu:0", 8192, 7168)),
    ("a", on("xpu:0", 8192, 32)),
    ("z", None),
    ("ssm_state", on("xpu:0", 4, 32, 96, 128, dtype=torch.float16)),
)
OPTIONS = ("state_v_first", "allow_neg_eigval")


@pytest.mark.parametrize(
    ("name", "error", "facts", "backend"),
    [
        ("unsupported_automatic", errors.UnsupportedRequestError, K96, None),
        ("unsupported_on_request", errors.UnsupportedRequestError, K96, "xpu"),
        ("wrong_device_on_request", errors.UnsupportedRequestError, K96, "cuda"),
        (
            "unsupported_by_provider",
            errors.UnsupportedRequestError,
            call("chunk_gated_delta_rule", "cuda", head_dim_k=64),
            "cuda/flashinfer",
        ),
        ("unavailable", errors.BackendUnavailableError, call(device_type="hpu"), "gaudi"),
        ("failed_to_load", errors.BackendUnavailableError, call(device_type="npu"), "ascend"),
        ("disabled", errors.BackendUnavailableError, call(), "acme"),
        (
            "provider_unavailable",
            errors.BackendUnavailableError,
            call(device_type="cuda"),
            "cuda/cutile",
        ),
        (
            "provider_unknown",
            errors.BackendNotInstalledError,
            call(device_type="cuda"),
            "cuda/cutlass",
        ),
        ("not_installed_official", errors.BackendNotInstalledError, call(), "cpu"),
        ("not_installed_misspelt", errors.BackendNotInstalledError, call(), "cdua"),
        ("not_installed_unknown", errors.BackendNotInstalledError, call(), "tenstorrent"),
    ],
)
def test_a_refused_call_says(name, error, facts, backend):
    inputs = INPUTS if facts is K96 else ()
    options = OPTIONS if facts is K96 else ()
    with pytest.raises(error) as caught:
        bind(facts, backend, inputs=inputs, options=options)
    assert_golden(name, str(caught.value))
    assert caught.value.rejections


@pytest.mark.parametrize(
    ("name", "plugin", "publishers"),
    [
        ("published_twice", loopback("acme"), ("gdn-one", "gdn-two")),
        ("written_for_another_hook_api", loopback("acme", hook_api=2), ("gdn-acme",)),
        ("breaks_the_contract", loopback("emca", priority="high"), ("gdn-acme",)),
        ("probe_raised", loopback("acme", answer=OSError("bus error")), ("gdn-acme",)),
    ],
)
def test_a_call_of_a_broken_plugin_says(tmp_path, monkeypatch, name, plugin, publishers):
    module = types.ModuleType("fake_acme")
    module.plugin = plugin
    monkeypatch.setitem(sys.modules, "fake_acme", module)
    found = [
        entry
        for publisher in publishers
        for entry in distribution(tmp_path, publisher, "acme", "fake_acme:plugin")
    ]
    dispatch.install(load(Config(), entry_points=found, builtins={}), Config())
    with pytest.raises(errors.BackendUnavailableError) as caught:
        bind(call(), "acme")
    assert_golden(name, str(caught.value))


def test_a_hook_that_returns_something_else_is_named(machine):
    class Careless(Loopback):
        @hookimpl
        def gated_delta_rule(self, request):
            return request.v, None

    machine.register(Careless(info("careless")), "careless")
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(errors.BackendContractError) as caught:
        chunk_gated_delta_rule(x, x, x, x[..., 0], x[..., 0], backend="careless")
    assert_golden("hook_result", str(caught.value))


def test_a_backend_from_the_environment_that_is_refused_says_so(machine):
    dispatch.install(machine, Config(backend="xpu"))
    with pytest.raises(errors.UnsupportedRequestError) as caught:
        bind(call(dtype="float32"), None)
    assert_golden("unsupported_from_environment", str(caught.value))


def test_use_backend_with_an_unknown_name_says():
    with pytest.raises(errors.BackendNotInstalledError) as caught, use_backend("torhc"):
        pytest.fail("entered")
    assert_golden("use_backend_unknown", str(caught.value))


def test_an_automatic_choice_inside_use_backend_none_says_so():
    with pytest.raises(errors.UnsupportedRequestError) as caught, use_backend(None):
        bind(call(device_type="npu"), None)
    assert_golden("unsupported_automatic_inside_use_backend", str(caught.value))


def test_malformed_variables_say(machine):
    environ = {"GDN_DISPATCH_BACKEND": "cuda,xpu", "GDN_DISPATCH_DISABLE": "1"}
    dispatch.install(machine, read(environ))
    with pytest.raises(errors.ConfigurationError) as caught:
        bind(call(), None)
    assert_golden("configuration", str(caught.value))


def test_a_malformed_argument_says():
    with pytest.raises(errors.InvalidArgumentError) as caught:
        bind(call(), "cuda:triton")
    assert_golden("malformed_argument", str(caught.value))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("trace_automatic", {}),
        ("trace_of_provider", {"device": "cuda", "backend": "cuda/triton", "head_dim_k": 128}),
        (
            "trace_of_nothing",
            {
                "op": "fused_recurrent_gated_delta_rule",
                "device": "npu",
                "dtype": "bfloat16",
                "features": ["varlen"],
            },
        ),
    ],
)
def test_a_trace_says(name, arguments):
    assert_golden(name, report.selection_text(explain(**arguments)))


def test_doctor_says(machine):
    config = read({"GDN_DISPATCH_BACKEND": "cuda/", "GDN_DISPATCH_DISABLE": "acme"})
    assert_golden("doctor", report.doctor_text(machine.status(), config))


def test_the_command_in_a_message_repeats_the_call():
    facts = call(
        "chunk_gated_delta_rule",
        "npu",
        dtype="bfloat16",
        state_dtype="float32",
        head_dim_k=1,
        head_dim_v=2,
        num_heads=3,
        num_v_heads=4,
        conv_width=5,
        features=frozenset({Feature.VARLEN, Feature.AUTOGRAD}),
    )
    with pytest.raises(errors.UnsupportedRequestError) as caught:
        bind(facts, None)
    assert (
        "gdn-dispatch explain --op chunk_gated_delta_rule --device npu --dtype bfloat16 "
        "--state-dtype float32 --head-dim-k 1 --head-dim-v 2 --num-heads 3 --num-v-heads 4 "
        "--conv-width 5 --feature autograd --feature varlen"
    ) in str(caught.value)


class Unreadable(torch.Tensor):
    """A tensor whose values cannot be had: printing or converting it is an error."""

    def __repr__(self, **_):
        raise AssertionError("a value was read")

    tolist = item = numpy = __repr__


def test_tensors_are_described_without_reading_them():
    tensor = torch.zeros(2, 3, dtype=torch.float16).as_subclass(Unreadable)
    assert report.describe_tensor("q", tensor) == "q (2, 3) float16 cpu"


def test_every_error_belongs_to_the_tree():
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.GDNDispatchError)


@pytest.mark.parametrize(
    "error",
    [errors.BackendNotInstalledError, errors.BackendUnavailableError, errors.ConfigurationError],
)
def test_errors_carry_rejections_even_when_there_are_none(error):
    assert error("x").rejections == ()


def test_no_golden_text_is_left_over():
    used = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.stem}"' in used for path in GOLDEN.glob("*.txt"))
