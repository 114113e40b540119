"""The entry point where there is no vLLM, where it is switched off, and where it has changed."""

import importlib
import logging
import subprocess
import sys

import pytest

from gdn_dispatch.config import Config
from gdn_dispatch.integrations import vllm as integration
from gdn_dispatch.selection import dispatch

registration = importlib.import_module("gdn_dispatch.integrations.vllm.registration")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    unknown = integration.Status((), "", "not called")
    monkeypatch.setattr(registration, "_status", unknown)
    monkeypatch.setattr(registration, "vllm_version", lambda: None)


def test_without_vllm_nothing_is_registered_and_the_log_says_so(caplog):
    with caplog.at_level(logging.DEBUG, logger="gdn_dispatch"):
        integration.register()
        integration.register()
    assert not integration.status().registered
    assert "vLLM is not installed" in integration.status().why
    assert len(caplog.records) == 1


def test_switched_off_it_looks_at_nothing(caplog, monkeypatch):
    registry, config = dispatch.active_registry(), dispatch.active_config()
    monkeypatch.setattr(registration, "mismatches", lambda _: pytest.fail("looked"))
    monkeypatch.setattr(registration, "vllm_version", lambda: pytest.fail("looked"))
    dispatch.install(registry, Config(disable=frozenset({"vllm"})))
    try:
        with caplog.at_level(logging.INFO, logger="gdn_dispatch"):
            integration.register()
    finally:
        dispatch.install(registry, config)
    assert integration.status().why == "switched off by GDN_DISPATCH_DISABLE"
    (record,) = caplog.records
    assert record.levelno == logging.INFO


def test_a_changed_seam_is_one_line_with_versions_and_the_way_out(caplog, monkeypatch):
    monkeypatch.setattr(registration, "vllm_version", lambda: "9.9")
    monkeypatch.setattr(registration, "mismatches", lambda _: ("a:b takes (c), expected (d)",))
    with caplog.at_level(logging.INFO, logger="gdn_dispatch"):
        integration.register()
    (record,) = caplog.records
    for word in ("vLLM 9.9", "a:b takes (c), expected (d)", "0.33", "GDN_DISPATCH_DISABLE=vllm"):
        assert word in record.getMessage()


def test_importing_the_integration_imports_no_vllm():
    code = (
        "import sys, gdn_dispatch.integrations.vllm;"
        "sys.exit(any(n == 'vllm' or n.startswith('vllm.') for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
