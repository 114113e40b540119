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
    return replace(candidate(name, *device_types), availability=Unavailable(reason))


def call(op: str = "gdn_attention", device_type: str = "cpu", **fields: Any) -> CallFacts:
    return CallFacts(op, device_type, **fields)


@dataclass(eq=False)
class Loopback:
    """Implements every hook but ``build_chunk_meta``; the compute hooks return their request."""

    described: Any
    answer: Any = field(default_factory=Available)
    probes: int = 0

    @hookimpl
    def backend_info(self) -> BackendInfo:
        if isinstance(self.described, BaseException):
            raise self.described
        return self.described

    @hookimpl
    def probe(self) -> Available | Unavailable:
        self.probes += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer() if callable(self.answer) else self.answer

    @hookimpl
    def gdn_attention(self, request: Any) -> GDNOutput:
        return GDNOutput((self.described.name, request))

    @hookimpl
    def gated_delta_rule(self, request: Any) -> GDNOutput:
        return GDNOutput((self.described.name, request))


def loopback(name: str, *device_types: str, answer: Any = None, **fields: Any) -> Loopback:
    return Loopback(info(name, *device_types, **fields), answer or Available())
