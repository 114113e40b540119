"""A backend that runs nothing: whatever a test wants it to declare, answer or break."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from gdn_dispatch.capability import CallFacts, Capability, Feature
from gdn_dispatch.hookspecs import hookimpl
from gdn_dispatch.selection.resolver import Candidate
from gdn_dispatch.types import Available, BackendInfo, GDNOutput, Unavailable

EVERYTHING = Capability(features=frozenset(Feature))
COMPUTE_HOOKS = frozenset({"gdn_attention", "gated_delta_rule"})


def info(name: str, *device_types: str, **fields: Any) -> BackendInfo:
    """What a backend that does everything says of itself, but for ``fields``."""
    return BackendInfo(
        name=name,
        device_types=device_types or ("cpu",),
        capability=fields.pop("capability", EVERYTHING),
        **fields,
    )


def candidate(name: str, *device_types: str, **fields: Any) -> Candidate:
    """An available candidate that can do everything on its device types."""
    return Candidate(name, info(name, *device_types, **fields), Available(), hooks=COMPUTE_HOOKS)


def unavailable(name: str, *device_types: str, reason: str = "no device") -> Candidate:
    """A candidate whose probe said no."""
    return replace(candidate(name, *device_types), availability=Unavailable(reason))


def call(op: str = "gdn_attention", device_type: str = "cpu", **fields: Any) -> CallFacts:
    """A call, as the resolver sees it."""
    return CallFacts(op, device_type, **fields)


@dataclass(eq=False)
class Loopback:
    """Implements every required and compute hook; the compute hooks return their request.

    Attributes:
        described: A ``BackendInfo``, or anything else that ``backend_info`` shall return or raise.
        answer: What ``probe`` shall return, call or raise.
        probes: How often it was asked.
    """

    described: Any
    answer: Any = field(default_factory=Available)
    probes: int = 0

    @hookimpl
    def backend_info(self) -> Any:
        """``described``, or raise it."""
        if isinstance(self.described, BaseException):
            raise self.described
        return self.described

    @hookimpl
    def probe(self) -> Any:
        """``answer``; call it or raise it, where it is such a thing."""
        self.probes += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer() if callable(self.answer) else self.answer

    @hookimpl
    def gdn_attention(self, request: Any) -> Any:
        """Who was called, and with what, in place of an output."""
        answer: Any = (self.described.name, request)
        return GDNOutput(answer)

    @hookimpl
    def gated_delta_rule(self, request: Any) -> Any:
        """The same."""
        answer: Any = (self.described.name, request)
        return GDNOutput(answer)


def loopback(name: str, *device_types: str, answer: Any = None, **fields: Any) -> Loopback:
    """A backend of that name, available unless ``answer`` says otherwise."""
    return Loopback(info(name, *device_types, **fields), answer or Available())
