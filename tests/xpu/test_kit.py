"""The conformance kit on the adapter to Intel's operator, with a reference for the operator."""

from __future__ import annotations

from pathlib import Path

import operator_reference
import pytest

from gdn_dispatch.testing import GDNBackendTests

HERE = Path(__file__).parent


@pytest.fixture(autouse=True, scope="module")
def _bound(registered):
    with registered.running(operator_reference.run):
        yield


class TestConformance(GDNBackendTests):
    backend = "xpu"
    xfails = HERE / "xfails.txt"
    pool_layout = {"state_v_first": True, "channels_last": True}
    value_heads_multiple = 4
    try_undeclared = False  # the rules, above all: there are none behind these hooks
