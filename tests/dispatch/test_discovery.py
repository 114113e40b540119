"""Loading never raises, and whatever fails is kept with its reason."""

import sys
import threading
import types
from importlib import metadata

import pytest

from gdn_dispatch.config import Config
from gdn_dispatch.plugins import discovery
from gdn_dispatch.plugins.discovery import GROUP
from gdn_dispatch.plugins.manager import load
from gdn_dispatch.plugins.registry import FailedPlugin, LoadedPlugin, Registry
from gdn_dispatch.testing.loopback import loopback
from gdn_dispatch.types import Available, Unavailable
from tests.support.fake_packages import distribution, fresh_python


@pytest.fixture
def publish(monkeypatch):
    """Publish ``plugin`` as an entry point of its name, from a module that exists in memory."""

    def publish(name, plugin):
        module = types.ModuleType(f"fake_{name}")
        module.plugin = plugin
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return metadata.EntryPoint(name, f"{module.__name__}:plugin", GROUP)

    return publish


def load_only(*entry_points, disable=(), builtins=None, probe_timeout=5.0):
    config = Config(disable=frozenset(disable))
    return load(
        config, entry_points=entry_points, builtins=builtins or {}, probe_timeout=probe_timeout
    )


def test_a_good_plugin_is_loaded_and_probed_once(publish):
    plugin = loopback("mine", answer=Available("a device"))
    registry = load_only(publish("mine", plugin))
    assert plugin.probes == 0
    loaded = registry.plugins["mine"]
    assert isinstance(loaded, LoadedPlugin)
    assert loaded.availability == Available("a device")
    assert registry.plugins["mine"] is loaded
    assert plugin.probes == 1


def test_name_and_version_of_the_distribution_are_kept(tmp_path, publish):
    publish("mine", loopback("mine"))
    entry_points = distribution(tmp_path, "gdn-dispatch-mine", "mine", "fake_mine:plugin", "2.1")
    loaded = load_only(*entry_points).plugins["mine"]
    assert (loaded.distribution, loaded.version) == ("gdn-dispatch-mine", "2.1")


class Impolite(BaseException):
    """Not an ``Exception``, so that a careless ``except`` lets it through."""


@pytest.mark.parametrize(
    ("source", "exception", "reason"),
    [
        (
            "import no_such_sdk",
            ModuleNotFoundError,
            "ModuleNotFoundError: No module named 'no_such_sdk'",
        ),
        ("raise SystemExit('no driver')", SystemExit, "SystemExit: no driver"),
        ("raise RuntimeError('one\\ntwo')", RuntimeError, "RuntimeError: one"),
        (
            "from tests.dispatch.test_discovery import Impolite\nraise Impolite",
            BaseException,
            "Impolite (",
        ),
        ("def broken(:", SyntaxError, "SyntaxError: "),
    ],
)
def test_an_import_that_fails_is_kept_with_its_exception(
    tmp_path, monkeypatch, publish, source, exception, reason
):
    (tmp_path / "fake_broken.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fake_broken", raising=False)
    broken = distribution(tmp_path, "gdn-dispatch-broken", "broken", "fake_broken")

    registry = load_only(*broken, publish("good", loopback("good")))

    failed = registry.plugins["broken"]
    assert isinstance(failed, FailedPlugin)
    assert failed.stage == "import"
    assert isinstance(failed.exception, exception)
    assert failed.reason.startswith(reason)
    assert failed.reason.endswith("(gdn-dispatch-broken 1.0)")
    assert registry.plugins["good"].availability == Available()


def test_an_interrupt_by_the_user_is_not_swallowed(tmp_path, monkeypatch):
    (tmp_path / "fake_interrupt.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        load_only(metadata.EntryPoint("broken", "fake_interrupt", GROUP))


def test_an_attribute_that_does_not_exist_is_kept(publish):
    publish("mine", loopback("mine"))
    registry = load_only(metadata.EntryPoint("mine", "fake_mine:plugni", GROUP))
    assert registry.plugins["mine"].reason.startswith("AttributeError: ")


def test_a_plugin_that_breaks_the_contract_is_kept_and_not_registered(publish):
    registry = load_only(publish("mine", loopback("yours")))
    failed = registry.plugins["mine"]
    assert failed.stage == "contract"
    assert failed.reason == "backend_info() says the name is 'yours', it is published as 'mine'"
    assert not registry.pluggy.get_plugins()


def test_a_plugin_that_fails_to_register_leaves_nothing_behind(publish, monkeypatch):
    registry = Registry()
    half = registry.pluggy.register

    def fail_afterwards(plugin, name=None):
        half(plugin, name=name)
        raise ValueError("afterwards")

    monkeypatch.setattr(registry.pluggy, "register", fail_afterwards)
    with pytest.raises(Exception, match="afterwards"):
        registry.register(loopback("mine"), "mine")
    assert not registry.pluggy.get_plugins()
    assert not registry.pluggy.hook.gdn_attention.get_hookimpls()


@pytest.mark.parametrize("name", ["gdn-cuda", "1cuda", "cu da"])
def test_a_name_that_is_no_identifier_is_not_imported(name):
    registry = load_only(metadata.EntryPoint(name, "no_such_module", GROUP))
    assert "is not an identifier" in registry.plugins[name].reason


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_two_distributions_with_one_name_are_both_refused(tmp_path, publish, order):
    publish("mine", loopback("mine"))
    entry_points = [
        entry
        for dist in order
        for entry in distribution(tmp_path, f"gdn-{dist}", "mine", "fake_mine:plugin")
    ]
    failed = load_only(*entry_points).plugins["mine"]
    assert failed.stage == "duplicate"
    assert failed.reason == "published twice, by gdn-one 1.0 and gdn-two 1.0: uninstall all but one"


def test_one_distribution_found_twice_is_no_duplicate(tmp_path, publish):
    publish("mine", loopback("mine"))
    entry_points = distribution(tmp_path, "gdn-mine", "mine", "fake_mine:plugin")
    assert isinstance(load_only(*entry_points, *entry_points).plugins["mine"], LoadedPlugin)


def test_a_built_in_backend_keeps_its_name(tmp_path, monkeypatch, publish):
    builtin = types.ModuleType("fake_builtin")
    plugin = loopback("torch")
    for hook in ("backend_info", "probe", "gdn_attention"):
        setattr(builtin, hook, getattr(plugin, hook))
    monkeypatch.setitem(sys.modules, "fake_builtin", builtin)
    rival = distribution(tmp_path, "gdn-rival", "torch", "no_such_module")

    registry = load_only(*rival, builtins={"torch": "fake_builtin"})

    assert isinstance(registry.plugins["torch"], LoadedPlugin)
    (conflict,) = registry.conflicts
    assert conflict.reason == (
        "gdn-rival 1.0 publishes a backend named 'torch', which is built in: not used"
    )
    assert [(row.name, row.status) for row in registry.status()][:2] == [
        ("torch", "available"),
        ("torch", "failed"),
    ]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (RuntimeError("driver\nand more"), "probe() raised RuntimeError: driver"),
        (AssertionError(), "probe() raised AssertionError"),
        (SystemExit(1), "probe() raised SystemExit: 1"),
        (lambda: None, "probe() returned NoneType, expected Available or Unavailable"),
        (lambda: True, "probe() returned bool, expected Available or Unavailable"),
        (Available(2), "probe() returned Available(detail=2), expected words in it"),
        (Unavailable(None), "probe() returned Unavailable(reason=None), expected words in it"),
    ],
)
def test_a_broken_probe_makes_the_backend_unavailable(publish, answer, reason):
    loaded = load_only(publish("mine", loopback("mine", answer=answer))).plugins["mine"]
    assert loaded.availability == Unavailable(reason)
    assert loaded.exception is not None


def test_a_probe_that_hangs_is_given_up(publish):
    release = threading.Event()
    hanging = publish("hanging", loopback("hanging", answer=release.wait))
    registry = load_only(hanging, publish("good", loopback("good")), probe_timeout=0.05)
    try:
        assert registry.plugins["hanging"].availability == Unavailable(
            "probe() did not answer within 0.05 s"
        )
        assert registry.plugins["good"].availability == Available()
    finally:
        release.set()


def test_an_interrupt_during_a_probe_is_not_swallowed(publish):
    registry = load_only(publish("mine", loopback("mine", answer=KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        registry.plugins  # noqa: B018


def test_a_disabled_backend_is_recorded_and_not_imported():
    registry = load_only(metadata.EntryPoint("mine", "no_such_module", GROUP), disable={"mine"})
    assert registry.plugins["mine"].stage == "disabled"
    assert registry.pluggy.is_blocked("mine")
    (candidate,) = registry.candidates
    assert candidate.disabled


def test_status_has_a_row_for_everything(publish):
    registry = load_only(
        publish("good", loopback("good", answer=Available("8 cores"))),
        publish("bad", loopback("bad", answer=Unavailable("no device"))),
        publish("ugly", loopback("other")),
        metadata.EntryPoint("unwanted", "no_such_module", GROUP),
        disable={"unwanted", "mispelt"},
    )
    assert [(row.name, row.status, row.why) for row in registry.status()] == [
        ("bad", "unavailable", "no device"),
        ("good", "available", "8 cores"),
        (
            "ugly",
            "failed",
            "backend_info() says the name is 'other', it is published as 'ugly'",
        ),
        ("unwanted", "disabled", "disabled by GDN_DISPATCH_DISABLE"),
        ("ascend", "not installed", "pip install 'gdn-dispatch[ascend]'"),
        ("cpu", "not installed", "pip install 'gdn-dispatch[cpu]'"),
        ("cuda", "not installed", "pip install 'gdn-dispatch[cuda]'"),
        ("mispelt", "not installed", "named in GDN_DISPATCH_DISABLE only"),
        ("xpu", "not installed", "pip install 'gdn-dispatch[xpu]'"),
    ]


def test_unreadable_metadata_of_a_stranger_hides_nobody(tmp_path, monkeypatch, caplog):
    distribution(tmp_path, "gdn-mine", "mine", "no_such_module")
    stranger = distribution(tmp_path, "stranger", "other", "x")[0].dist._path
    (stranger / "entry_points.txt").write_text("[gdn_dispatch.backends]\nno equals sign\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert [entry.name for entry in discovery.installed_entry_points()] == ["mine"]
    assert "one by one" in caplog.text


REPORT = """
import sys, gdn_dispatch
status = {row.name: row.status for row in gdn_dispatch.list_backends()}
print(status['mine'], status['torch'], 'fake_mine' in sys.modules)
"""


# What every author writes: names of the package itself, at the top and inside a hook.
PLUGIN = """
from gdn_dispatch import hookimpl
from gdn_dispatch.testing.loopback import info

@hookimpl
def backend_info():
    return info("mine")

@hookimpl
def probe():
    from gdn_dispatch import Available
    return Available()
"""


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ["available", "available", "True"]),
        ({"GDN_DISPATCH_DISABLE": "mine"}, ["disabled", "available", "False"]),
        ({"GDN_DISPATCH_BACKEND": "1"}, ["available", "available", "True"]),
    ],
)
def test_a_fresh_process_honours_the_environment(tmp_path, environ, expected):
    (tmp_path / "fake_mine.py").write_text(PLUGIN)
    distribution(tmp_path, "gdn-mine", "mine", "fake_mine")
    assert fresh_python(tmp_path, REPORT, **environ).split() == expected


def test_a_plugin_may_be_imported_before_the_package(tmp_path):
    (tmp_path / "fake_mine.py").write_text(PLUGIN)
    distribution(tmp_path, "gdn-mine", "mine", "fake_mine")
    report = f"import fake_mine\n{REPORT}"
    assert fresh_python(tmp_path, report).split() == ["available", "available", "True"]


def test_a_broken_entry_point_does_not_break_the_import(tmp_path):
    (tmp_path / "fake_mine.py").write_text("raise SystemExit('broken')")
    distribution(tmp_path, "gdn-mine", "mine", "fake_mine")
    assert fresh_python(tmp_path, REPORT).split() == ["failed", "available", "False"]
