"""Which backend runs a call, and why: pure functions of plain data.

Nothing here looks at the machine, the environment or a tensor, so every combination can be tested
without a device. ``manager`` says what is there, ``dispatch`` says what was asked for.

Three rules hold everywhere. An explicit choice never falls back to another backend. An automatic
choice takes only backends that serve the device type, so the torch backend never ends up on an
accelerator by itself. Whatever is turned down keeps every reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gdn_dispatch.config import BACKEND_VARIABLE, DISABLE_VARIABLE
from gdn_dispatch.types import Available, Rejection, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gdn_dispatch.capability import CallFacts
    from gdn_dispatch.types import BackendInfo

__all__ = [
    "AUTOMATIC",
    "FROM_ARGUMENT",
    "FROM_ENVIRONMENT",
    "FROM_USE_BACKEND",
    "HOOK_OF_OP",
    "OFFICIAL",
    "Candidate",
    "Choice",
    "Selection",
    "install_hint",
    "resolve",
]

FROM_ARGUMENT: Final = "backend argument"
FROM_USE_BACKEND: Final = "use_backend()"
FROM_ENVIRONMENT: Final = BACKEND_VARIABLE
AUTOMATIC: Final = "automatic"

HOOK_OF_OP: Final = {
    "gdn_attention": "gdn_attention",
    "chunk_gated_delta_rule": "gated_delta_rule",
    "fused_recurrent_gated_delta_rule": "gated_delta_rule",
    "build_chunk_meta": "build_chunk_meta",
}
"""Public operations and the hook that runs each."""

OFFICIAL: Final = {"ascend": "npu", "cpu": "cpu", "cuda": "cuda", "xpu": "xpu"}
"""Backends that have an extra of their name, and the device type each is made for."""


def install_hint(name: str) -> str:
    """How to install one of the ``OFFICIAL`` backends."""
    return f"pip install 'gdn-dispatch[{name}]'"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend as the resolver sees it.

    Attributes:
        name: Its name.
        info: Static facts, or None where it could not be loaded.
        availability: What its probe said, or None where it could not be loaded.
        failure: Why it could not be loaded.
        disabled: Whether the environment forbids it.
        hooks: Names of the hooks it implements.
    """

    name: str
    info: BackendInfo | None
    availability: Available | Unavailable | None
    failure: str | None = None
    disabled: bool = False
    hooks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Choice:
    """What was asked for.

    Attributes:
        name: A backend, or None: choose automatically.
        provider: A kernel library of that backend, or None: the backend's choice.
        source: Who asked: ``FROM_ARGUMENT``, ``FROM_USE_BACKEND``, ``FROM_ENVIRONMENT`` or
            ``AUTOMATIC``, which means that nobody did.
    """

    name: str | None = None
    provider: str | None = None
    source: str = AUTOMATIC


@dataclass(frozen=True, slots=True)
class Selection:
    """The answer and how it came about.

    Attributes:
        facts: The call.
        choice: What was asked for.
        chosen: Name of the backend that runs the call, or None.
        provider: Kernel library asked for by name, or None.
        why: One sentence.
        rejections: Every other candidate, with every reason.
        refusal: Empty where a backend was chosen. Otherwise what is wrong: ``unsupported``, or, for
            an explicit choice, ``not installed``, ``no provider`` or ``unavailable``.
    """

    facts: CallFacts
    choice: Choice
    chosen: str | None
    provider: str | None
    why: str
    rejections: tuple[Rejection, ...] = ()
    refusal: str = ""


def resolve(candidates: Iterable[Candidate], facts: CallFacts, choice: Choice) -> Selection:
    """Choose among ``candidates``, whose names are unique."""
    ordered = sorted(candidates, key=lambda candidate: candidate.name)
    rejections = list(_missing(ordered, facts))
    able: list[tuple[Candidate, BackendInfo]] = []
    for candidate in ordered:
        rejection = _turned_down(candidate, facts, choice)
        if rejection is not None:
            rejections.append(rejection)
        elif candidate.info is not None:
            able.append((candidate, candidate.info))
    # sorted() is stable, so among equals the order of names decides
    able.sort(key=lambda pair: -pair[1].priority)

    chosen = next((c.name for c, _ in able if choice.name in (None, c.name)), None)
    rejections += [
        Rejection(candidate.name, "choice", (_passed_over(info, able[0][1], choice),))
        for candidate, info in able
        if candidate.name != chosen
    ]
    refusal = "" if chosen else _refusal(ordered, rejections, choice)
    return Selection(
        facts=facts,
        choice=choice,
        chosen=chosen,
        provider=choice.provider if chosen else None,
        why=_why([info for _, info in able], facts, choice, refusal),
        rejections=tuple(sorted(rejections, key=lambda rejection: rejection.backend)),
        refusal=refusal,
    )


def _missing(candidates: Iterable[Candidate], facts: CallFacts) -> Iterator[Rejection]:
    installed = {candidate.name for candidate in candidates}
    for name, device_type in OFFICIAL.items():
        if name not in installed and device_type == facts.device_type:
            yield Rejection(name, "load", (f"not installed: {install_hint(name)}",))


def _turned_down(candidate: Candidate, facts: CallFacts, choice: Choice) -> Rejection | None:
    """Every reason against ``candidate`` taken alone, under the stage of the first."""
    name, info = candidate.name, candidate.info
    if candidate.disabled:
        return Rejection(name, "disabled", (f"disabled by {DISABLE_VARIABLE}",))
    if info is None or candidate.failure is not None:
        return Rejection(name, "load", (f"failed to load: {candidate.failure or 'no reason'}",))
    if not isinstance(candidate.availability, Available):
        reason = candidate.availability.reason if candidate.availability else "was not probed"
        return Rejection(name, "probe", (f"unavailable: {reason}",))

    asked_for = choice.name == name
    if asked_for and choice.provider is not None:
        # which may do what the backend's own choice does not, such as gradients
        found = list(_provider_reasons(info, choice.provider, facts))
    else:
        found = [("capability", reason) for reason in info.capability.not_supported_reasons(facts)]
    hook = HOOK_OF_OP[facts.op]
    if hook not in candidate.hooks and hook != "build_chunk_meta":  # the core has a builder
        found.append(("capability", f"does not implement {facts.op}"))
    if facts.device_type not in info.device_types:
        found = _device_reasons(info, facts, asked_for, able=not found) + found
    if not found:
        return None
    return Rejection(name, found[0][0], tuple(dict.fromkeys(reason for _, reason in found)))


def _device_reasons(
    info: BackendInfo, facts: CallFacts, asked_for: bool, able: bool
) -> list[tuple[str, str]]:
    if not info.any_device_on_request:
        served = ", ".join(info.device_types) or "none"
        return [("device", f"not for {facts.device_type} tensors (serves {served})")]
    if asked_for:
        return []
    way_out = f'; pass backend="{info.name}" to run it' if able else ""
    return [("choice", f"not chosen automatically on {facts.device_type}{way_out}")]


def _provider_reasons(
    info: BackendInfo, wanted: str, facts: CallFacts
) -> Iterator[tuple[str, str]]:
    provider = next((p for p in info.providers if p.name == wanted), None)
    if provider is None:
        known = ", ".join(p.name for p in info.providers) or "none"
        yield "choice", f"has no provider {wanted!r} (has {known})"
        return
    if provider.unavailable:
        yield "probe", f"provider {wanted} unavailable: {provider.unavailable}"
    for reason in provider.capability.not_supported_reasons(facts):
        yield "capability", reason


def _passed_over(info: BackendInfo, best: BackendInfo, choice: Choice) -> str:
    if choice.name is not None:
        return f"could run this call, but {choice.name} was asked for"
    if info.priority == best.priority:
        return f"could run this call; {best.name} has the same priority and sorts first"
    return f"could run this call; {best.name} has priority {best.priority}, not {info.priority}"


def _refusal(
    candidates: Iterable[Candidate], rejections: Iterable[Rejection], choice: Choice
) -> str:
    if choice.name is None:
        return "unsupported"
    if all(candidate.name != choice.name for candidate in candidates):
        return "not installed"
    stage = next(r.stage for r in rejections if r.backend == choice.name)
    if stage in ("load", "disabled", "probe"):
        return "unavailable"
    return "no provider" if stage == "choice" else "unsupported"


def _why(able: list[BackendInfo], facts: CallFacts, choice: Choice, refusal: str) -> str:
    if choice.name is not None:
        asked = f"asked for by {choice.source}"
        return f"{choice.name}, {asked}, is refused: {refusal}" if refusal else asked
    on = f"on {facts.device_type} tensors"
    if not able:
        return f"no backend can run this call {on}"
    if len(able) == 1:
        return f"the only backend that can run this call {on}"
    best = able[0].priority
    tied = [info.name for info in able[1:] if info.priority == best]
    if tied:
        return f"priority {best}, like {', '.join(tied)}; its name sorts first"
    return f"highest priority ({best}) of {len(able)} that can run this call {on}"
