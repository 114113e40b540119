"""Switching on and off: what changes, what stays, and what is refused."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import monkey_patching
from transformers.models.qwen3_next import modeling_qwen3_next as modeling

from gdn_dispatch import (
    BackendNotInstalledError,
    GDNDispatchError,
    InvalidArgumentError,
    UnsupportedRequestError,
)
from gdn_dispatch.config import Config
from gdn_dispatch.errors import IntegrationError
from gdn_dispatch.integrations import transformers as gdn
from gdn_dispatch.integrations.transformers import discovery, rebinding
from gdn_dispatch.selection import dispatch
from tests.integrations.transformers_models import counted, gdn_layers, make_model, tokens

NAME = "Qwen3NextGatedDeltaNet"


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    before = dict(vars(modeling))
    yield
    gdn.disable()
    assert not monkey_patching.get_patch_mapping()
    assert {name: vars(modeling)[name] for name in before} == before


def runs_here(model) -> bool:
    with counted() as calls, torch.no_grad():
        model(tokens(1, 8))
    return bool(calls.requests)


def test_supported_models():
    found = gdn.supported_models()
    assert {"qwen3_next", "qwen3_5", "qwen3_5_moe", "olmo_hybrid"} <= set(found)


def test_supported_models_imports_no_model():
    code = (
        "import sys; from gdn_dispatch.integrations import transformers as gdn;"
        "gdn.supported_models();"
        "print([m for m in sys.modules if m.startswith('transformers')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_enable_twice_then_disable():
    first, second = gdn.enable(), gdn.enable()
    assert first == second
    assert first.enabled
    assert all(model.enabled for model in first.models)
    assert runs_here(make_model())
    assert not gdn.disable().enabled
    assert not runs_here(make_model())
    assert not gdn.disable().enabled


def test_enabled_restores_what_was():
    with gdn.enabled(), gdn.enabled() as inner:
        assert inner.enabled
    assert not gdn.status().enabled
    gdn.enable()
    with gdn.enabled():
        pass
    assert gdn.status().enabled


def test_models_made_before_and_classes_stay_as_they_are():
    before = make_model()
    gdn.enable()
    assert not runs_here(before)
    assert type(gdn_layers(before)[0]) is modeling.Qwen3NextGatedDeltaNet
    made = gdn_layers(make_model())[0]
    assert isinstance(made, modeling.Qwen3NextGatedDeltaNet)
    assert type(made).__name__ == NAME


def test_a_checkpoint_written_by_either_loads_into_the_other(tmp_path):
    from transformers import AutoModelForCausalLM

    stock = make_model()
    stock.save_pretrained(tmp_path / "stock")
    with gdn.enabled():
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / "stock").eval()
    assert runs_here(ours)
    ours.save_pretrained(tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    ids = tokens(1, 20)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, stock(ids).logits)


def test_disable_takes_back_only_its_own():
    class Foreign(nn.Module):
        pass

    gdn.enable()
    monkey_patching.register_patch_mapping({"SomebodysLayer": Foreign})
    gdn.disable()
    assert monkey_patching.get_patch_mapping() == {"SomebodysLayer": Foreign}
    monkey_patching.unregister_patch_mapping(["SomebodysLayer"])


def test_disable_survives_a_cleared_registry():
    gdn.enable()
    monkey_patching.clear_patch_mapping()
    assert not gdn.status().enabled
    gdn.disable()


@pytest.mark.parametrize("key", [NAME, "GatedDeltaNet$"])
def test_a_class_of_someone_else_is_not_replaced(key):
    class Foreign(modeling.Qwen3NextGatedDeltaNet):
        pass

    monkey_patching.register_patch_mapping({key: Foreign})
    with pytest.raises(IntegrationError, match="Foreign is already registered"):
        gdn.enable()
    assert monkey_patching.get_patch_mapping() == {key: Foreign}
    assert "Foreign" in next(m.why for m in gdn.status().models if m.layer == NAME)
    monkey_patching.unregister_patch_mapping([key])


def test_switched_off_by_the_environment(monkeypatch):
    model = make_model()
    registry, config = dispatch.active_registry(), dispatch.active_config()
    dispatch.install(registry, Config(disable=frozenset({"transformers"})))
    try:
        assert "GDN_DISPATCH_DISABLE" in gdn.enable().why
        assert gdn.inject(model) == 0
        assert not runs_here(model)
    finally:
        dispatch.install(registry, config)


def test_inject_and_eject_one_model():
    model, other = make_model(), make_model()
    ids = tokens(1, 30)
    with torch.no_grad():
        expected = model(ids).logits
    assert gdn.inject(model) == gdn.inject(model) == 3
    assert runs_here(model)
    assert not runs_here(other)
    assert gdn.eject(model) == 3
    assert gdn.eject(model) == 0
    assert not any("forward" in layer.__dict__ for layer in gdn_layers(model))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)


def test_eject_a_model_made_while_enabled_and_inject_it_again():
    with gdn.enabled():
        model = make_model()
    assert runs_here(model)
    assert gdn.eject(model) == 3
    assert not runs_here(model)
    assert gdn.inject(model) == 3
    assert runs_here(model)


def test_inject_a_backend():
    model = make_model()
    gdn.inject(model, backend="torch")
    with counted() as calls, torch.no_grad():
        model(tokens(1, 8))
    assert len(calls.requests) == 3
    with pytest.raises(BackendNotInstalledError):
        gdn.inject(make_model(), backend="nonexistent")
    with pytest.raises(InvalidArgumentError):
        gdn.inject(make_model(), backend="no name")
    assert runs_here(model)


def test_inject_a_backend_that_cannot_run_there():
    from gdn_dispatch.testing.loopback import loopback

    dispatch.active_registry().register(loopback("elsewhere", "cuda"), "elsewhere")
    try:
        with pytest.raises(UnsupportedRequestError, match="elsewhere"):
            gdn.inject(make_model(), backend="elsewhere")
    finally:
        dispatch.active_registry().unregister("elsewhere")


def test_inject_without_such_layers():
    with pytest.raises(InvalidArgumentError, match=NAME):
        gdn.inject(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(InvalidArgumentError, match="model"):
        gdn.inject("a model")


def test_inject_does_not_undo_what_someone_else_did():
    model = make_model()
    layers = gdn_layers(model)
    layers[1].forward = lambda *args, **kwargs: None
    with pytest.raises(IntegrationError, match="already replaced"):
        gdn.inject(model)
    assert "forward" not in layers[0].__dict__


def test_inject_below_the_hooks_of_accelerate():
    """``accelerate`` keeps the forward it calls in ``_old_forward``."""
    model = make_model()
    for layer in gdn_layers(model):
        layer._old_forward = layer.forward
        layer.forward = lambda *args, layer=layer, **kwargs: layer._old_forward(*args, **kwargs)
    gdn.inject(model)
    assert runs_here(model)
    gdn.eject(model)
    assert not runs_here(model)


def test_offloading_hooks_of_the_convolution_still_fire():
    class Hook:
        fired = 0

        def pre_forward(self, module):
            self.fired += 1

        def post_forward(self, module, output):
            return output

    model = make_model()
    gdn.inject(model)
    gdn_layers(model)[0].conv1d._hf_hook = hook = Hook()
    assert runs_here(model)
    assert hook.fired == 1


@pytest.mark.parametrize("how", ["enabled", "injected"])
def test_copies_and_pickles(how):
    with gdn.enabled():
        model = make_model()
    if how == "injected":
        model = make_model()
        gdn.inject(model)
    ids = tokens(1, 20)
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(copied(ids).logits, model(ids).logits)
        torch.testing.assert_close(pickled(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    assert runs_here(copied)
    assert all(layer.forward.__self__ is layer for layer in gdn_layers(copied))
    assert runs_here(pickled) == (how == "enabled")
    gdn.inject(pickled)
    assert runs_here(pickled)


def test_a_subclass_of_ones_own():
    class Mine(modeling.Qwen3NextGatedDeltaNet):
        pass

    model = make_model()
    model.model.layers[0].linear_attn.__class__ = Mine
    assert gdn.inject(model) == 3


def test_an_option_of_the_rule_is_not_ignored():
    model = make_model()
    gdn.inject(model)
    ids = tokens(1, 8)
    with torch.no_grad():
        plain = model(ids, keyword_of_somebody_else=7).logits
        assert not torch.equal(model(ids, scale=0.01).logits, plain)
    with pytest.raises(InvalidArgumentError, match="head_first"):
        model(ids, head_first=True)
    with pytest.raises(GDNDispatchError, match="initial_states"):
        model(ids, initial_states=torch.zeros(1))


def test_transformers_too_old_or_missing(tmp_path, monkeypatch):
    old = tmp_path / "models" / "qwen3_next"
    old.mkdir(parents=True)
    (old / "modeling_qwen3_next.py").write_text("class Qwen3NextGatedDeltaNet: pass\n")
    files = list(tmp_path.glob("models/*/*.py"))
    discovery.find_layers.cache_clear()
    monkeypatch.setattr(discovery, "_modeling_files", lambda: files)
    with pytest.raises(IntegrationError, match=r"transformers>=5\.15"):
        gdn.enable()
    assert "5.15" in gdn.status().why
    monkeypatch.setattr(discovery.importlib.metadata, "version", _missing)
    with pytest.raises(IntegrationError, match="pip install"):
        gdn.supported_models()
    monkeypatch.undo()
    discovery.find_layers.cache_clear()


def _missing(name):
    raise discovery.importlib.metadata.PackageNotFoundError(name)


def test_a_layer_that_calls_something_else_is_refused(monkeypatch):
    """As when a later transformers moves the call out of ``forward``."""

    class Moved(modeling.Qwen3NextGatedDeltaNet):
        def forward(self, hidden_states):
            return self.helper(hidden_states)

    monkeypatch.setattr(modeling, NAME, Moved)
    layer = discovery.LayerClass("qwen3_next", NAME)
    with pytest.raises(IntegrationError, match="does not call"):
        discovery.load_class(layer)


def test_a_decorator_that_hides_its_function_is_refused():
    class Opaque:
        def __init__(self, function):
            self.function = self.__wrapped__ = function

        def __call__(self, *args):
            return self.function(*args)

    class Hidden(modeling.Qwen3NextGatedDeltaNet):
        forward = Opaque(modeling.Qwen3NextGatedDeltaNet.forward)

    with pytest.raises(IntegrationError, match="Opaque"):
        rebinding.adapted_forward(Hidden)


def test_fla_on_a_machine_without_a_device():
    """transformers takes FLA's Triton kernels wherever it can import them, CPU or not."""
    code = """
import sys, types, warnings
def rule(q, k, v, g, beta, initial_state=None, output_final_state=False, **kwargs):
    raise RuntimeError("0 active drivers")
names = ("fla", "fla.ops", "fla.ops.gated_delta_rule")
for name in names:
    sys.modules[name] = types.ModuleType(name)
sys.modules["fla"].ops = sys.modules["fla.ops"]
sys.modules["fla.ops"].gated_delta_rule = sys.modules["fla.ops.gated_delta_rule"]
for name in ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"):
    setattr(sys.modules["fla.ops.gated_delta_rule"], name, rule)
from tests.integrations.transformers_models import make_model, tokens
from gdn_dispatch.integrations import transformers as gdn
model = make_model()
try:
    model(tokens(1, 8))
except RuntimeError as error:
    print(error)
gdn.inject(model)
print(model.generate(tokens(1, 8), max_new_tokens=2, min_new_tokens=2).shape)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["0 active drivers", "torch.Size([1, 10])"], ran.stderr
