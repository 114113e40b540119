"""Asking a backend's ``probe`` once, for a bounded time, whatever it does."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gdn_dispatch.errors import BackendContractError
from gdn_dispatch.plugins.inspection import in_one_line
from gdn_dispatch.types import Available, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PROBE_TIMEOUT_S", "ProbeResult", "ask"]

PROBE_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What ``probe`` said, and what it raised if it said nothing."""

    availability: Available | Unavailable
    exception: BaseException | None = None


def ask(probe: Callable[[], Any], timeout: float | None) -> ProbeResult:
    """Call ``probe``, for at most ``timeout`` seconds; None calls it here and waits.

    A probe that hangs (a driver that does not answer, a file system that is gone) cannot be
    stopped. It is left behind on a daemon thread, which does not keep the process alive.
    """
    if timeout is None:
        return _call(probe)
    results: list[ProbeResult] = []
    thread = threading.Thread(
        target=lambda: results.append(_call(probe)), name="gdn_dispatch probe", daemon=True
    )
    thread.start()
    thread.join(timeout)
    if not results:
        return ProbeResult(Unavailable(f"probe() did not answer within {timeout:g} s"))
    if isinstance(results[0].exception, KeyboardInterrupt):
        raise results[0].exception
    return results[0]


def _call(probe: Callable[[], Any]) -> ProbeResult:
    try:
        answer = probe()
    except BaseException as error:  # noqa: BLE001 - the reason is kept, whatever a plugin raises
        return ProbeResult(Unavailable(f"probe() raised {in_one_line(error)}"), error)
    if not isinstance(answer, Available | Unavailable):
        got = type(answer).__name__
        return _fault(f"probe() returned {got}, expected Available or Unavailable")
    words = answer.detail if isinstance(answer, Available) else answer.reason
    if not isinstance(words, str):
        return _fault(f"probe() returned {answer!r}, expected words in it")
    lines = (line.strip() for line in words.splitlines())
    return ProbeResult(type(answer)("; ".join(filter(None, lines))))


def _fault(sentence: str) -> ProbeResult:
    return ProbeResult(Unavailable(sentence), BackendContractError(sentence))
