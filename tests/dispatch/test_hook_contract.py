"""What pluggy would accept and this project refuses, each with a sentence for the author."""

import inspect

import pytest

from gdn_dispatch import hookspecs
from gdn_dispatch.errors import BackendContractError
from gdn_dispatch.hookspecs import hookimpl
from gdn_dispatch.plugins import inspection
from gdn_dispatch.plugins.registry import Registry
from gdn_dispatch.testing.loopback import Loopback, info, loopback
from gdn_dispatch.types import HOOK_API_VERSION, Available, GDNOutput


class WithDefault(Loopback):
    @hookimpl
    def gdn_attention(self, request=None):
        return GDNOutput(request)


class WithoutRequest(Loopback):
    @hookimpl
    def gated_delta_rule(self):
        return GDNOutput(None)


class WithManyArguments(Loopback):
    @hookimpl
    def gdn_attention(self, request, scale):
        return GDNOutput(request)


class WithKeywordOnly(Loopback):
    @hookimpl
    def gdn_attention(self, *, request):
        return GDNOutput(request)


class WithStars(Loopback):
    @hookimpl
    def gdn_attention(self, request, **options):
        return GDNOutput(request)


class Misspelt(Loopback):
    @hookimpl
    def gdn_atention(self, request):
        return GDNOutput(request)


class FarOff(Loopback):
    @hookimpl
    def run(self, request):
        return GDNOutput(request)


class WithoutProbe(Loopback):
    probe = None


class Unmarked(Loopback):
    def backend_info(self):
        return info("mine")


class Unhashable(Loopback):
    __hash__ = None


class InfoWithParameter(Loopback):
    @hookimpl
    def backend_info(self, request):
        return info("mine")


class NotAGenerator(Loopback):
    @hookimpl(wrapper=True)
    def gdn_attention(self, request):
        return request


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (WithDefault, "gdn_attention gives 'request' a default: pluggy never passes such a"),
        (WithoutRequest, "gated_delta_rule has no parameter 'request': it would run without"),
        (WithManyArguments, "gdn_attention takes 'scale', the hook takes 'request'"),
        (WithKeywordOnly, "gdn_attention takes 'request' by keyword only"),
        (WithStars, r"gdn_attention takes \*\*options: pluggy passes named parameters only"),
        (Misspelt, r"unknown hook gdn_atention: did you mean gdn_attention\?"),
        (FarOff, "unknown hook run: the hooks are backend_info, probe, build_chunk_meta, "),
        (WithoutProbe, "no probe hook"),
        (Unmarked, "backend_info is defined without @hookimpl"),
        (Unhashable, "Unhashable is not hashable: a dataclass needs eq=False"),
        (InfoWithParameter, "backend_info takes no parameter"),
        (NotAGenerator, "not a generator function"),
    ],
)
def test_a_broken_plugin_is_refused_with_a_reason(plugin, message):
    registry = Registry()
    with pytest.raises(BackendContractError, match=message):
        registry.register(plugin(info("mine")), "mine")
    assert not registry.names
    assert not registry.pluggy.get_plugins()
    assert registry.hook("mine", "gdn_attention") is None


def test_a_class_instead_of_an_instance_is_explained():
    with pytest.raises(BackendContractError, match="names a class, it must name an instance"):
        inspection.describe(Registry().pluggy, ClassPlugin, "mine")


class ClassPlugin:
    @hookimpl
    @staticmethod
    def backend_info():
        return info("mine")

    @hookimpl
    @staticmethod
    def probe():
        return Available()

    @hookimpl
    def gdn_attention(self, request):
        return GDNOutput(request)


def test_every_problem_is_reported_at_once():
    class Broken(WithDefault, WithoutRequest, Misspelt):
        pass

    with pytest.raises(BackendContractError) as caught:
        Registry().register(Broken(info("other")), "mine")
    for problem in ("a default", "no parameter", "did you mean", "the name is 'other'"):
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (None, r"backend_info\(\) returned NoneType, expected BackendInfo"),
        ({"name": "mine"}, r"backend_info\(\) returned dict, expected BackendInfo"),
        (ValueError("odd"), r"backend_info\(\) raised ValueError: odd"),
        (SystemExit(3), r"backend_info\(\) raised SystemExit: 3"),
        (info("yours"), "the name is 'yours', it is published as 'mine'"),
        (info("mine", capability=None), "BackendInfo.capability is None, expected Capability"),
        (info("mine", priority="high"), "BackendInfo.priority is 'high', expected int"),
        (info("mine", providers=("triton",)), "expected a tuple of ProviderInfo"),
        (info("mine", block_sizes=16), "BackendInfo.block_sizes is 16, expected a tuple of int"),
        (info("mine", chunk_size=None), "BackendInfo.chunk_size is None, expected int"),
        (info("mine", summary=None), "BackendInfo.summary is None, expected str"),
    ],
)
def test_backend_info_is_checked(described, message):
    with pytest.raises(BackendContractError, match=message):
        Registry().register(Loopback(described), "mine")


def test_device_types_as_one_string_are_refused():
    described = info("mine")
    object.__setattr__(described, "device_types", "cuda")
    with pytest.raises(BackendContractError, match="is 'cuda', expected a tuple of str"):
        Registry().register(Loopback(described), "mine")


@pytest.mark.parametrize(
    ("version", "upgrade"),
    [(HOOK_API_VERSION - 1, "gdn-dispatch-mine"), (HOOK_API_VERSION + 1, "gdn-dispatch")],
)
def test_another_hook_api_says_which_side_to_upgrade(version, upgrade):
    plugin = loopback("mine", hook_api=version)
    with pytest.raises(BackendContractError) as caught:
        inspection.describe(Registry().pluggy, plugin, "mine", "gdn-dispatch-mine")
    assert str(caught.value) == (
        f"written for hook API {version}, this gdn-dispatch speaks {HOOK_API_VERSION}: "
        f"pip install -U {upgrade}"
    )


def test_a_newer_plugin_is_not_blamed_for_hooks_this_core_does_not_know():
    with pytest.raises(BackendContractError, match="written for hook API 2"):
        Registry().register(FarOff(info("mine", hook_api=2)), "mine")


def test_an_unknown_hook_marked_optional_is_let_through():
    class Newer(Loopback):
        @hookimpl(optionalhook=True)
        def hook_of_a_newer_core(self, request):
            return request

    registry = Registry()
    registry.register(Newer(info("mine")), "mine")
    assert registry.plugins["mine"].hooks == {
        "backend_info",
        "probe",
        "gdn_attention",
        "gated_delta_rule",
    }


def test_a_name_is_registered_once():
    registry = Registry()
    registry.register(loopback("mine"), "mine")
    with pytest.raises(BackendContractError, match="already registered"):
        registry.register(loopback("mine"), "mine")


def test_a_disabled_name_cannot_be_registered():
    registry = Registry(disabled={"mine"})
    with pytest.raises(BackendContractError, match="disabled by GDN_DISPATCH_DISABLE"):
        registry.register(loopback("mine"), "mine")


@pytest.mark.parametrize("hook", inspection.SPECS)
def test_every_hook_is_documented_with_its_version(hook):
    assert ".. versionadded::" in inspect.getdoc(getattr(hookspecs, hook))


@pytest.mark.parametrize("parameters", inspection.SPECS.values())
def test_every_hook_takes_at_most_one_request(parameters):
    assert parameters in ((), ("request",))


def test_the_hooks_are_those_of_the_contract():
    assert tuple(inspection.SPECS) == (
        "backend_info",
        "probe",
        "build_chunk_meta",
        "chunk_tables",
        "gdn_attention",
        "gated_delta_rule",
    )


class Timing:
    """A third party that watches whichever backend runs."""

    def __init__(self):
        self.seen = []

    @hookimpl(wrapper=True)
    def gdn_attention(self, request):
        result = yield
        self.seen.append((request, result))
        return result


def test_without_a_wrapper_the_function_is_the_backends_own():
    registry, plugin = Registry(), loopback("mine")
    registry.register(plugin, "mine")
    assert registry.hook("mine", "gdn_attention") == plugin.gdn_attention
    assert registry.hook("mine", "build_chunk_meta") is None


def test_a_wrapper_sees_request_and_result_of_the_selected_backend_only():
    registry, timing = Registry(), Timing()
    for name in ("mine", "yours"):
        registry.register(loopback(name), name)
    registry.register_wrapper(timing, "timing")

    output = registry.hook("mine", "gdn_attention")("a request")

    assert output == GDNOutput(("mine", "a request"))
    assert timing.seen == [("a request", output)]
    registry.unregister("timing")
    registry.hook("yours", "gdn_attention")("another")
    assert len(timing.seen) == 1


def test_a_wrapper_does_not_make_up_a_backend():
    registry = Registry()
    registry.register_wrapper(Timing(), "timing")
    assert registry.hook("mine", "gdn_attention") is None
    assert registry.candidates == ()


def test_a_backend_may_wrap_its_own_hook_and_nobody_elses():
    class SelfWrapping(Loopback):
        calls = 0

        @hookimpl(wrapper=True, specname="gdn_attention")
        def watch(self, request):
            self.calls += 1
            return (yield)

    registry, plugin = Registry(), SelfWrapping(info("mine"))
    registry.register(plugin, "mine")
    registry.register(loopback("yours"), "yours")
    registry.hook("mine", "gdn_attention")("x")
    registry.hook("yours", "gdn_attention")("x")
    assert plugin.calls == 1


def test_an_exception_of_a_wrapped_backend_arrives_as_it_is():
    class Failing(Loopback):
        @hookimpl
        def gdn_attention(self, request):
            raise ZeroDivisionError(request)

    registry = Registry()
    registry.register(Failing(info("mine")), "mine")
    registry.register_wrapper(Timing(), "timing")
    with pytest.raises(ZeroDivisionError, match="a request"):
        registry.hook("mine", "gdn_attention")("a request")


def test_only_wrappers_can_be_registered_as_wrappers():
    with pytest.raises(BackendContractError, match=r"is not a wrapper: use register\(\)"):
        Registry().register_wrapper(loopback("mine"), "timing")
    with pytest.raises(BackendContractError, match="wraps no hook"):
        Registry().register_wrapper(object(), "timing")


def test_unregistering_an_unknown_name_is_an_error():
    with pytest.raises(KeyError):
        Registry().unregister("mine")
