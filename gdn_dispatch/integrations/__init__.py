"""Ways into programs that know nothing of this package. None is imported unless asked for.

Every integration goes through an extension point its host offers; none assigns into the host's
modules or classes.
"""

from __future__ import annotations

from gdn_dispatch.errors import GDNDispatchError

__all__ = ["IntegrationError"]


class IntegrationError(GDNDispatchError, RuntimeError):
    """The host program is missing, of an unknown version, or already altered by someone else."""
