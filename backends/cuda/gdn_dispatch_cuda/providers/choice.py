"""Which kernels run the chunk rule: our own, unless another library was measured to be faster.

A pure function of a call's sizes and of a table of measurements, which is data: ``measured.json``
beside this file, made by ``table_from_reports`` from reports of ``gdn-dispatch bench``. Times in it
are those of the GPU and include the adapter's conversions. Without a measurement close to a call,
our own kernels run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import log2
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gdn_dispatch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "NONE_ABLE",
    "OWN",
    "UNMEASURED",
    "Choice",
    "Row",
    "ShapeFacts",
    "Table",
    "choose",
    "load_table",
    "parse_table",
    "table_from_reports",
]

OWN: Final = "triton"
"""Provider name of our own kernels."""

MARGIN: Final = 0.02
"""A library has to be faster than our own kernels by this share where this very shape was measured:
medians of the same shape from two runs differ by half of that."""

MARGIN_NEARBY: Final = 0.05
"""The same where only a shape nearby was measured."""

REACH: Final = 2.0
"""How far a measurement speaks: the sum of the distances in tokens, in n*HV and in the longest
sequence, each in factors of two."""


@dataclass(frozen=True, slots=True)
class ShapeFacts:
    """The sizes of a call that its speed depends on.

    Attributes:
        num_heads: H. num_v_heads: HV.
        num_seqs: Sequences with tokens, n. num_tokens: Their tokens. longest: The longest one's.
        compute_capability: Of the device, as ``"9.0"``.
        dtype: Activation dtype, as ``"bfloat16"``.
        head_dim: K and V, where they are equal; else 0.
        l2norm: Whether q and k are to be normalised, which costs a library a pass over both.
    """

    num_heads: int
    num_v_heads: int
    num_seqs: int
    num_tokens: int
    longest: int
    compute_capability: str
    dtype: str = "bfloat16"
    head_dim: int = 128
    l2norm: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One measured shape: milliseconds of the chunk rule by provider, conversions included."""

    num_heads: int
    num_v_heads: int
    num_seqs: int
    num_tokens: int
    longest: int
    milliseconds: tuple[tuple[str, float], ...]
    l2norm: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """Measurements of one device. Without rows it says nothing.

    Attributes:
        date, commit: When and of what. device: Name of the GPU.
        compute_capability, dtype, head_dim: What they are true for.
        versions: Of torch, triton and the libraries, as pairs.
        rows: The measurements.
    """

    date: str = ""
    commit: str = ""
    device: str = ""
    compute_capability: str = ""
    dtype: str = "bfloat16"
    head_dim: int = 128
    versions: tuple[tuple[str, str], ...] = ()
    rows: tuple[Row, ...] = ()


class Choice(NamedTuple):
    """A provider and the reason, for ``explain`` and the log."""

    provider: str
    reason: str


_SIZES: Final = ("H", "HV", "num_seqs", "num_tokens", "longest")

_L2NORM: Final = {"calls": True, "prefill": False}
"""Parts of a report that a table is made of, and whether q and k are normalised in their calls."""

UNMEASURED: Final = Choice(OWN, "own kernels: nothing was measured")
NONE_ABLE: Final = Choice(OWN, "own kernels: no library is installed that can run this call")


def choose(facts: ShapeFacts, available: Iterable[str], table: Table) -> Choice:
    """The provider for a call.

    The nearest measurement decides: among rows of the same H and HV, if there are any, else among
    all; ties go to the row that stands first. A shape that was measured is its own nearest one. Of
    its providers, the fastest available one wins if it beats our own kernels by ``MARGIN``, or by
    ``MARGIN_NEARBY`` where the sizes differ.

    Args:
        facts: The call.
        available: Providers that can run it besides our own.
        table: The measurements.
    """
    usable = {OWN, *available}
    if not table.rows:
        return UNMEASURED
    for name, wanted, measured in (
        ("compute capability", facts.compute_capability, table.compute_capability),
        ("dtype", facts.dtype, table.dtype),
        ("K = V", str(facts.head_dim), str(table.head_dim)),
    ):
        if wanted != measured:
            return Choice(OWN, f"own kernels: measured for {name} {measured}, not {wanted}")
    rows = [row for row in table.rows if row.l2norm == facts.l2norm]
    if not rows:
        return Choice(OWN, f"own kernels: not measured with l2norm={facts.l2norm}")
    heads = (facts.num_heads, facts.num_v_heads)
    same = [row for row in rows if (row.num_heads, row.num_v_heads) == heads]
    nearest = min(same or rows, key=lambda row: _distance(facts, row))
    distance = _distance(facts, nearest)
    if distance > REACH:
        return Choice(OWN, "own kernels: no measurement near this shape")
    times = {name: ms for name, ms in nearest.milliseconds if name in usable}
    at = (
        f"measured {table.date} at {nearest.num_seqs} sequences, {nearest.num_tokens} tokens, "
        f"H={nearest.num_heads} HV={nearest.num_v_heads}"
    )
    own = times.pop(OWN, None)
    if own is None:
        return Choice(OWN, f"own kernels: they were not {at}")
    if not times:
        return Choice(OWN, f"own kernels: no other provider that was {at} is available")
    name, best = min(times.items(), key=lambda item: (item[1], item[0]))
    margin = MARGIN if distance == 0 and same else MARGIN_NEARBY
    if best * (1 + margin) < own:
        return Choice(name, f"{name}: {best:.3g} ms, own kernels {own:.3g} ms, {at}")
    return Choice(OWN, f"own kernels: {own:.3g} ms, {name} {best:.3g} ms, {at}")


@cache
def load_table() -> Table:
    """The table shipped with this package."""
    text = resources.files(__package__).joinpath("measured.json").read_text(encoding="utf-8")
    return parse_table(json.loads(text))


def parse_table(data: Mapping[str, Any]) -> Table:
    """A table from JSON.

    Raises:
        ConfigurationError: It is not one.
    """
    try:
        rows = tuple(_row(row) for row in data["rows"])
        if any(min(row.num_seqs, row.num_tokens, row.longest, row.num_v_heads) < 1 for row in rows):
            raise ValueError("sizes of a row are at least 1")
        return Table(
            date=str(data["date"]),
            commit=str(data["commit"]),
            device=str(data["device"]),
            compute_capability=str(data["compute_capability"]),
            dtype=str(data["dtype"]),
            head_dim=int(data["head_dim"]),
            versions=tuple((str(k), str(v)) for k, v in data["versions"].items()),
            rows=rows,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"measured.json: {type(error).__name__}: {error}") from error


def _row(data: Mapping[str, Any]) -> Row:
    H, HV, num_seqs, num_tokens, longest = (int(data[name]) for name in _SIZES)
    times = tuple((str(name), float(ms)) for name, ms in data["milliseconds"].items())
    return Row(H, HV, num_seqs, num_tokens, longest, times, bool(data["l2norm"]))


def table_from_reports(*reports: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a table, from JSON of ``gdn-dispatch bench --suite h200``, of one run or several.

    Taken are the times of calls through ``backend="cuda/..."``, so that conversions count: those of
    part ``calls`` with q and k to be normalised, of part ``prefill`` without. What was measured
    more than once, as are packed sequences of other order, is one row, of means.

    Raises:
        ConfigurationError: The reports are not of one device and one set of versions.
    """
    headers = [report["header"] for report in reports]
    for name in ("device", "compute_capability", "versions"):
        if any(header[name] != headers[0][name] for header in headers):
            found = ", ".join(str(header[name]) for header in headers)
            raise ConfigurationError(f"reports of different {name}: {found}")
    found_ms: dict[tuple[int | bool, ...], dict[str, list[float]]] = {}
    for result in (result for report in reports for result in report["results"]):
        if result["part"] not in _L2NORM:
            continue
        milliseconds = {
            name.partition("/")[2]: entry["seconds"] * 1e3
            for name, entry in result["contestants"].items()
            if name.startswith("cuda/") and "seconds" in entry
        }
        if milliseconds:
            key = *(result["shape"][name] for name in _SIZES), _L2NORM[result["part"]]
            times = found_ms.setdefault(key, {})
            for name, ms in milliseconds.items():
                times.setdefault(name, []).append(ms)
    rows = [
        {
            **dict(zip((*_SIZES, "l2norm"), key, strict=True)),
            "milliseconds": {name: round(fmean(times), 5) for name, times in measured.items()},
        }
        for key, measured in found_ms.items()
    ]
    return {
        "date": max(header["date"][:10] for header in headers),
        "commit": " ".join(dict.fromkeys(header["commit"] or "" for header in headers)),
        "device": headers[0]["device"],
        "compute_capability": headers[0]["compute_capability"],
        "dtype": "bfloat16",
        "head_dim": 128,
        "versions": headers[0]["versions"],
        "rows": rows,
    }


def _distance(facts: ShapeFacts, row: Row) -> float:
    """In factors of two."""
    pairs = (
        (facts.num_tokens, row.num_tokens),
        (facts.num_seqs * facts.num_v_heads, row.num_seqs * row.num_v_heads),
        (facts.longest, row.longest),
    )
    return sum(abs(log2(max(mine, 1)) - log2(theirs)) for mine, theirs in pairs)
