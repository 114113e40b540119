"""Operators to call where there are none."""

from __future__ import annotations

import pytest
from gdn_dispatch_ascend.providers import operators

from backends.ascend.tests import operators_played as played


@pytest.fixture
def calls(monkeypatch):
    """The operators played, on a device that is a CPU; what they were called with."""
    found = []
    monkeypatch.setattr(operators, "installed_version", {"torch-npu": "2.13.0"}.get)
    monkeypatch.setattr(operators, "loaded", lambda: True)
    monkeypatch.setattr(operators, "DEVICE_TYPES", ("cpu",))
    with played.registered(
        played.CHUNK, played.RECURRENT, played.CONV, bodies=played.bodies(found)
    ):
        yield found
