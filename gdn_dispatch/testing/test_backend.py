"""``pytest --pyargs gdn_dispatch.testing --gdn-backend NAME``: the kit on any installed backend."""

from gdn_dispatch.testing import GDNBackendTests

__all__ = ["TestBackend"]


class TestBackend(GDNBackendTests):
    """Backend, device and exclusions come from the command line."""
