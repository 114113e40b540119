"""The conformance kit on the portable kernels, in Triton's interpreter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gdn_dispatch.config import Config
from gdn_dispatch.plugins.registry import Registry
from gdn_dispatch.selection import dispatch
from gdn_dispatch.testing import GDNBackendTests

sys.path.insert(0, str(Path(__file__).parent))
import interpreted

HERE = Path(__file__).parent


@pytest.fixture(autouse=True, scope="module")
def _registered():
    registry, config = dispatch.active_registry(), dispatch.active_config()
    fresh = Registry()
    fresh.register(interpreted, interpreted.NAME)
    dispatch.install(fresh, Config())
    yield
    dispatch.install(registry, config)


class TestConformance(GDNBackendTests):
    backend = interpreted.NAME
    xfails = HERE / "xfails.txt"
