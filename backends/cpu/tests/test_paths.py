"""The conformance kit on instruction sets this CPU would not choose, threads, and real heads."""

import pytest

from gdn_dispatch.testing import GDNBackendTests

pytestmark = pytest.mark.usefixtures("forced_paths")


class TestPortable(GDNBackendTests):
    backend = "portable"


class TestAVX2(GDNBackendTests):
    backend = "avx2"


class TestAVX512(GDNBackendTests):
    backend = "avx512"


class TestOneThread(GDNBackendTests):
    backend = "one_thread"


class TestMoreThreadsThanCores(GDNBackendTests):
    backend = "three_threads"


class TestRealHeads(GDNBackendTests):
    """The kit's heads fill no vector; these are whole panels, whose states stay where they lie."""

    backend = "real_heads"
