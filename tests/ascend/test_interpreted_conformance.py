"""The conformance kit on the kernels of the Ascend backend, in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import plugins
import pytest

from gdn_dispatch.testing import GDNBackendTests


@pytest.fixture(autouse=True, scope="module")
def _registered():
    with plugins.registered(plugins.interpreted()):
        yield


class TestConformance(GDNBackendTests):
    backend = plugins.NAME
    xfails = Path(__file__).with_name("xfails.txt")
