"""The conformance kit, on the built-in backend, at tolerances of its own."""

from gdn_dispatch.testing import GDNBackendTests


class TestConformance(GDNBackendTests):
    backend = "torch"
    # a tenth of what the kit grants: this backend is the one others are compared with
    tolerances = {"float32": 1e-6, "bfloat16": 4e-3, "float16": 5e-4}
