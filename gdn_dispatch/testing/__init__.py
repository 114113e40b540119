"""The conformance kit: what every backend is held to, ours and anybody's.

In the tests of a backend, six lines::

    from pathlib import Path
    from gdn_dispatch.testing import GDNBackendTests

    class TestConformance(GDNBackendTests):
        backend = "mine"
        xfails = Path(__file__).with_name("xfails.txt")

Or without writing any, on whatever is installed::

    pytest --pyargs gdn_dispatch.testing --gdn-backend mine

A test asks what a backend declares, never what it is called. What is declared and fails is a
failure. What is not declared is tried all the same: failing is expected, and passing is reported,
so that a declaration says neither too much nor too little.

Needs ``pip install 'gdn-dispatch[testing]'``. ``loopback`` alone, a backend that runs nothing, made
for tests of selection and of errors, needs no pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdn_dispatch.testing.conformance import GDNBackendTests

__all__ = ["GDNBackendTests"]


def __getattr__(name: str) -> Any:
    if name != "GDNBackendTests":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    # before they are imported, or their assertions would fail without saying what was compared
    pytest.register_assert_rewrite("gdn_dispatch.testing.conformance", "gdn_dispatch.testing.trace")
    from gdn_dispatch.testing.conformance import GDNBackendTests

    return GDNBackendTests
