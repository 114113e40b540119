"""The conformance kit, on this backend."""

from pathlib import Path

from gdn_dispatch.testing import GDNBackendTests


class TestConformance(GDNBackendTests):
    backend = "cuda"
    xfails = Path(__file__).with_name("xfails.txt")
