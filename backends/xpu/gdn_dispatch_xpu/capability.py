"""What the backend supports: nothing yet, so no call can be sent to it by mistake."""

from __future__ import annotations

from gdn_dispatch.capability import Capability

__all__ = ["CAPABILITY"]

CAPABILITY = Capability(notes=("no kernels yet: they come with a later version",))
