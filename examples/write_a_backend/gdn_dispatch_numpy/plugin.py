"""The hooks: what gdn-dispatch calls.

Loaded by ``import gdn_dispatch`` in every process that has this package installed, so it imports
nothing but the core. What needs NumPy is imported by the first call that needs it.
"""

from __future__ import annotations

from gdn_dispatch import (
    Available,
    BackendInfo,
    GDNOutput,
    GDNRequest,
    RuleRequest,
    Unavailable,
    hookimpl,
)
from gdn_dispatch_numpy.capability import CAPABILITY, CHUNK_SIZE
from gdn_dispatch_numpy.probe import probe_machine


@hookimpl
def backend_info() -> BackendInfo:
    """Say what this backend is, the same on every machine."""
    return BackendInfo(
        name="numpy",
        device_types=("cpu",),
        capability=CAPABILITY,
        priority=-10,  # below the built-in torch backend's 0: it runs only where it is asked for
        chunk_size=CHUNK_SIZE,
        summary="NumPy, token by token; an example",
    )


@hookimpl
def probe() -> Available | Unavailable:
    """Say whether it can run on this machine."""
    return probe_machine()


@hookimpl
def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """Run the recurrence alone."""
    from gdn_dispatch_numpy import rule

    return rule.gated_delta_rule(request)


@hookimpl
def gdn_attention(request: GDNRequest) -> GDNOutput:
    """Run a whole layer core on the engine's state pools."""
    from gdn_dispatch_numpy import layer

    return layer.gdn_attention(request)
