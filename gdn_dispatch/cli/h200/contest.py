"""A contest: who takes part, what each prepares, and what is made of it, failures included."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from statistics import median
from typing import Any, Final, Generic, Protocol, TypeVar

import torch

from gdn_dispatch.cli.h200.timing import Call, Stopwatch, paired

__all__ = [
    "WRONG",
    "Contestant",
    "Lost",
    "NotApplicable",
    "Ready",
    "measure",
    "missing",
    "relative_error",
    "version",
]

InputsT_contra = TypeVar("InputsT_contra", contravariant=True)
InputsT = TypeVar("InputsT")

WRONG: Final = 2e-2
"""A relative error from which on bf16 numbers are wrong, not rounded."""

SHORT: Final = 300
"""Characters of a failure that are kept."""


class NotApplicable(Exception):
    """A contestant does not do what these inputs ask for; that is no failure."""


class Lost(RuntimeError):
    """The device answers no more: nothing after this can be measured in this process."""


@dataclass
class Ready:
    """What a contestant has prepared for one set of inputs.

    Attributes:
        calls: What is timed. Several: the same on different memory.
        check: Relative errors by name, from a run of its own; or None: nothing to compare.
        traffic: Bytes that one call has to move, or 0: not of interest.
    """

    calls: Sequence[Call]
    check: Callable[[], dict[str, float]] | None = None
    traffic: int = 0


class Contestant(Protocol[InputsT_contra]):
    """Somebody's kernels."""

    @property
    def name(self) -> str:
        """What tables show."""

    def unavailable(self) -> str:
        """Why it cannot take part here; empty if it can. Imports nothing."""

    def prepare(self, inputs: InputsT_contra) -> Ready:
        """Everything but the calls themselves. May raise whatever its library raises."""


@dataclass
class Entry(Generic[InputsT]):
    """Results of one set of inputs, by contestant, as plain data."""

    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def failed(self, name: str, stage: str, error: BaseException) -> None:
        """Keep why there is no time, or no check, of ``name``."""
        text = " ".join(f"{type(error).__name__}: {error}".split())[:SHORT]
        self.found.setdefault(name, {})[stage] = text


def measure(
    contestants: Iterable[Contestant[InputsT]],
    inputs: InputsT,
    stopwatch: Stopwatch,
    *,
    rounds: int,
    finish: Call = lambda: None,
) -> dict[str, dict[str, Any]]:
    """Prepare, check and time everybody; nobody's failure stops the others.

    Args:
        contestants: Who takes part.
        inputs: What they all are given.
        stopwatch: How time is taken.
        rounds: Samples of each; 0 only prepares and calls, so that everything is compiled.
        finish: Waits for the device; raises where it was lost.

    Returns:
        By name: ``seconds`` (the median), ``samples``, ``errors`` by name, ``traffic``; or
        ``failure``; ``check_failure`` where only the check failed.

    Raises:
        Lost: The device answers no more; what was found so far is in ``args[1]``.
    """
    entry: Entry[InputsT] = Entry()
    ready: dict[str, Ready] = {}
    for contestant in contestants:
        name = contestant.name
        try:
            prepared = contestant.prepare(inputs)
            for call in prepared.calls[:1]:
                call()
            finish()
        except NotApplicable as reason:
            entry.found[name] = {"not_applicable": str(reason)}
            continue
        except Exception as error:  # noqa: BLE001 - a peer may raise anything
            entry.failed(name, "failure", error)
            _alive(name, finish, entry.found)
            continue
        ready[name] = prepared
        entry.found[name] = {"traffic": prepared.traffic} if prepared.traffic else {}
    if rounds < 1:
        return entry.found
    for name, prepared in ready.items():
        if prepared.check is None:
            continue
        try:
            entry.found[name]["errors"] = prepared.check()
        except Exception as error:  # noqa: BLE001 - see above
            entry.failed(name, "check_failure", error)
            _alive(name, finish, entry.found)
    samplers = {}
    for name, prepared in ready.items():
        try:
            samplers[name] = stopwatch.sampler(prepared.calls)
            finish()
        except Exception as error:  # noqa: BLE001 - see above
            entry.failed(name, "failure", error)
            _alive(name, finish, entry.found)
    for name, samples in paired(samplers, rounds).items():
        entry.found[name] |= {"seconds": median(samples), "samples": samples}
    samplers.clear()
    ready.clear()
    gc.collect()  # graphs hold the memory of everything they allocated
    return entry.found


def _alive(name: str, finish: Call, found: dict[str, dict[str, Any]]) -> None:
    try:
        finish()
    except Exception as error:
        raise Lost(f"the device was lost in {name}: {error}", found) from error


def missing(distribution: str, module: str) -> str:
    """Why ``module`` cannot be imported here; empty if it is there. Imports no submodule."""
    try:
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            return f"{distribution} is not installed"
    except (ImportError, ValueError) as error:
        return f"{distribution}: {error}"
    return ""


def version(distribution: str) -> str | None:
    """Of an installed distribution."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def relative_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of ``exact``; nan where ``got`` has one."""
    return float((got.double() - exact).norm() / exact.norm())
