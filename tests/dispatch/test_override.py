"""Who decides: argument, ``use_backend``, environment, nobody. And what is remembered."""

import asyncio
import logging
import threading

import pytest

from gdn_dispatch.capability import Feature
from gdn_dispatch.config import Config
from gdn_dispatch.errors import (
    BackendNotInstalledError,
    BackendUnavailableError,
    ConfigurationError,
    InvalidArgumentError,
    UnsupportedRequestError,
)
from gdn_dispatch.hookspecs import hookimpl
from gdn_dispatch.plugins.registry import Registry
from gdn_dispatch.selection import dispatch
from gdn_dispatch.selection.dispatch import bind, current_backend, explain, lookup, use_backend
from gdn_dispatch.testing.loopback import call, loopback
from gdn_dispatch.types import GDNOutput, Unavailable

KEY = ("gdn_attention", "cpu")


@pytest.fixture
def registry():
    """Backends a, b and c on CPU, best first; the process's own come back afterwards."""
    before = dispatch.active_registry(), dispatch.active_config()
    registry = Registry()
    for priority, name in enumerate("cba", start=50):
        registry.register(loopback(name, "cpu", priority=priority), name)
    dispatch.install(registry, Config())
    yield registry
    dispatch.install(*before)


def configure(registry, **fields):
    dispatch.install(registry, Config(**fields))


@pytest.mark.parametrize(
    ("argument", "override", "environment", "runs", "source"),
    [
        (None, (), None, "a", "automatic"),
        (None, (), "b", "b", "GDN_DISPATCH_BACKEND"),
        (None, ("c",), "b", "c", "use_backend()"),
        (None, (None,), "b", "a", "use_backend()"),
        ("b", ("c",), "c", "b", "backend argument"),
        ("b", (), None, "b", "backend argument"),
    ],
)
def test_precedence(registry, argument, override, environment, runs, source):
    configure(registry, backend=environment)
    if override:
        with use_backend(*override):
            bound = bind(call(), argument)
    else:
        bound = bind(call(), argument)
    assert (bound.name, bound.selection.choice.source) == (runs, source)


def test_use_backend_nests_and_none_is_automatic(registry):
    seen = [current_backend("cpu")]
    with use_backend("c"):
        seen.append(current_backend("cpu"))
        with use_backend(None):
            seen.append(current_backend("cpu"))
            with use_backend("b"):
                seen.append(current_backend("cpu"))
        seen.append(current_backend("cpu"))
    seen.append(current_backend("cpu"))
    assert seen == ["a", "c", "a", "b", "c", "a"]


def test_use_backend_ends_with_an_exception(registry):
    with pytest.raises(ZeroDivisionError), use_backend("c"):
        raise ZeroDivisionError
    assert current_backend("cpu") == "a"


def test_an_unknown_name_is_refused_on_entry(registry):
    with pytest.raises(BackendNotInstalledError, match="'d' is not installed"), use_backend("d"):
        pytest.fail("entered")
    with pytest.raises(InvalidArgumentError, match="backend: got 'a/'"), use_backend("a/"):
        pytest.fail("entered")
    assert current_backend("cpu") == "a"


def test_a_new_thread_starts_outside_of_use_backend(registry):
    seen = []
    with use_backend("c"):
        thread = threading.Thread(target=lambda: seen.append(current_backend("cpu")))
        thread.start()
        thread.join()
    assert seen == ["a"]


def test_tasks_do_not_see_each_others_choice(registry):
    async def task(name, entered, leave):
        with use_backend(name):
            entered.set()
            await leave.wait()
            return current_backend("cpu")

    async def both():
        events = [asyncio.Event() for _ in range(3)]
        first = asyncio.create_task(task("b", events[0], events[2]))
        second = asyncio.create_task(task("c", events[1], events[2]))
        await events[0].wait()
        await events[1].wait()
        outside = current_backend("cpu")
        events[2].set()
        return outside, await first, await second

    assert asyncio.run(both()) == ("a", "b", "c")


def test_a_bound_call_is_found_again(registry):
    assert lookup(KEY, None) is None
    bound = bind(call(), None, key=KEY)
    assert lookup(KEY, None) is bound
    assert bound.function("x") == GDNOutput(("a", "x"))


def test_each_choice_is_remembered_by_itself(registry):
    bind(call(), None, key=KEY)
    assert lookup(KEY, "b") is None
    with use_backend("b"):
        assert lookup(KEY, None) is None
        assert bind(call(), None, key=KEY).name == "b"
        assert lookup(KEY, None).name == "b"
        assert lookup(KEY, "c") is None
    assert lookup(KEY, None).name == "a"


def test_without_a_key_nothing_is_remembered(registry):
    bind(call(), None)
    assert lookup(None, None) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda registry: registry.register(loopback("d", priority=90), "d"),
        lambda registry: registry.unregister("a"),
        lambda registry: registry.register_wrapper(Doubling(), "doubling"),
        lambda registry: configure(registry, backend="b"),
        lambda registry: configure(Registry()),
    ],
    ids=["register", "unregister", "register_wrapper", "configuration", "registry"],
)
def test_every_change_forgets_what_was_bound(registry, change):
    bind(call(), None, key=KEY)
    change(registry)
    assert lookup(KEY, None) is None


class Doubling:
    @hookimpl(wrapper=True)
    def gdn_attention(self, request):
        output = yield
        return GDNOutput(output.output * 2)


def test_a_wrapper_registered_later_sees_the_next_call(registry):
    assert bind(call(), None, key=KEY).function("x").output == ("a", "x")
    registry.register_wrapper(Doubling(), "doubling")
    assert bind(call(), None, key=KEY).function("x").output == ("a", "x", "a", "x")


def test_a_hook_left_to_the_core_is_marked(registry):
    bound = bind(call("build_chunk_meta"), None)
    assert not bound.implemented
    assert bind(call(), None).implemented


def test_a_refusal_is_not_remembered(registry):
    for _ in range(2):
        with pytest.raises(UnsupportedRequestError):
            bind(call(device_type="xpu"), None, key=KEY)
    assert lookup(KEY, None) is None


@pytest.mark.parametrize("backend", ["", "a/", "a b", 3, ["a"]])
def test_a_malformed_argument_is_named(registry, backend):
    assert lookup(KEY, backend) is None
    with pytest.raises(InvalidArgumentError, match="a backend's name, or name/provider"):
        bind(call(), backend, key=KEY)


def test_a_malformed_variable_is_raised_by_the_first_call_and_by_every_other(registry):
    configure(registry, errors=(ConfigurationError("first"), ConfigurationError("second")))
    for question in (
        lambda: bind(call(), "a", key=KEY),
        lambda: current_backend("cpu"),
        lambda: explain(),
    ):
        with pytest.raises(ConfigurationError, match="first\nsecond"):
            question()
    assert [row.status for row in dispatch.list_backends()][:3] == ["available"] * 3


def test_current_backend_takes_devices_and_raises_as_a_call_would(registry):
    assert current_backend("cpu:0") == "a"
    with pytest.raises(UnsupportedRequestError):
        current_backend("npu:1")
    with use_backend("c"), pytest.raises(UnsupportedRequestError, match="not for cuda tensors"):
        current_backend("cuda")


def test_an_unavailable_backend_is_refused_by_name(registry):
    registry.register(loopback("d", answer=Unavailable("no device")), "d")
    with pytest.raises(BackendUnavailableError, match="unavailable: no device") as caught:
        bind(call(), "d")
    assert caught.value.rejections[-1].backend == "d"


def test_an_error_of_the_backend_is_the_cause(registry):
    registry.register(loopback("d", answer=OSError("bus")), "d")
    with pytest.raises(BackendUnavailableError) as caught:
        bind(call(), "d")
    assert isinstance(caught.value.__cause__, OSError)


def test_explain_never_raises_for_what_no_backend_supports(registry):
    selection = explain(device="xpu:3", dtype="torch.half", head_dim_k=96, features=["varlen"])
    assert selection.chosen is None
    assert selection.facts.device_type == "xpu"
    assert selection.facts.dtype == "float16"
    assert selection.facts.features == {Feature.VARLEN}
    assert explain(backend="nowhere").refusal == "not installed"
    assert explain(backend="b").chosen == "b"


def test_explain_agrees_with_the_call(registry):
    assert explain() == bind(call(), None).selection


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("op", "attention"),
        ("device", "cuda:x"),
        ("device", 0),
        ("dtype", "bf16"),
        ("dtype", "nn"),
        ("state_dtype", 32),
        ("head_dim_k", -1),
        ("num_heads", True),
        ("conv_width", 4.0),
        ("features", ["speed"]),
        ("backend", "a/b/c"),
    ],
)
def test_explain_names_the_argument_that_makes_no_sense(registry, argument, value):
    with pytest.raises(InvalidArgumentError) as caught:
        explain(**{argument: value})
    assert caught.value.argument == argument


def test_the_first_selection_is_logged_once_per_operation_and_device(registry, caplog):
    caplog.set_level(logging.DEBUG, "gdn_dispatch")
    for _ in range(3):
        bind(call(), None)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines[0] == (
        "INFO",
        "gdn_attention on cpu runs on a: highest priority (52) of 3 that can run this call "
        "on cpu tensors",
    )
    assert {level for level, _ in lines[1:]} == {"DEBUG"}
    assert len(lines) == 1 + len(bind(call(), None).selection.rejections)
    bind(call("build_chunk_meta"), None)
    assert caplog.records[-1].levelname == "DEBUG"
    assert sum(record.levelname == "INFO" for record in caplog.records) == 2
