"""The results of ``bench --suite h200`` for people: tables, and one plot a part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, log
from typing import TYPE_CHECKING, Any, Final

from gdn_dispatch.cli.h200.contest import WRONG
from gdn_dispatch.cli.plots import check_matplotlib

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["table", "write_plots"]

OURS: Final = {"calls": "cuda/triton", "steps": "cuda/triton"}
"""Who is ours, where it is not ``cuda``."""

MANY: Final = 48
"""Cases of a part from which on they are summed up by head counts."""

_COLOURS: Final = ("#1a7f64", "#0969da", "#bc4c00", "#8250df", "#9a6700", "#59636e")


def table(report: dict[str, Any]) -> list[str]:
    """The results as lines of text: compact, the summary last."""
    top = report["header"]
    versions = " ".join(f"{name} {v}" for name, v in top["versions"].items())
    lines = [
        f"gdn-dispatch {top['version']} ({top['commit'] or 'no checkout'}), {top['date']}, "
        f"{top['device']}, driver {top['driver']}, {versions}",
        f"{report['rounds']} rounds; copy {top['copy_bandwidth'] / 1e9:.0f} GB/s; "
        "us, or GB/s where states are moved; (relative error of the output)",
    ]
    for part in dict.fromkeys(r["part"] for r in report["results"]):
        results = [r for r in report["results"] if r["part"] == part]
        lines += ["", *_part(part, results, top["copy_bandwidth"])]
    for part, reasons in report.get("absent", {}).items():
        lines += [f"not measured, {part}: {name}: {why}" for name, why in reasons.items()]
    lines += _failures(report["results"])
    if report.get("skipped"):
        lines.append(f"no time for {len(report['skipped'])} cases, from {report['skipped'][0]}")
    if "lost" in report:
        lines.append(report["lost"])
    return lines


def _names(results: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for r in results for name in r["contestants"]))


def _part(part: str, results: Sequence[dict[str, Any]], bandwidth: float) -> list[str]:
    names = _names(results)
    rows = [[part, *names]]
    if len(results) <= MANY:
        rows += [
            [r["case"], *(_cell(r["contestants"].get(n), bandwidth) for n in names)]
            for r in results
        ]
    ours = OURS.get(part, "cuda")
    rows += _summary(results, names, ours, _others(part, names))
    return _aligned(rows)


def _others(part: str, names: Iterable[str]) -> list[str]:
    """Who is not ours; among calls, whatever is not our own kernels."""
    if part == "calls":
        return [name for name in names if name != OURS[part]]
    return [name for name in names if name.partition("/")[0] != "cuda"]


def _cell(entry: dict[str, Any] | None, bandwidth: float) -> str:
    if entry is None or "seconds" not in entry:
        return "-"
    text = f"{entry['seconds'] * 1e6:.1f}"
    if entry.get("traffic"):
        rate = entry["traffic"] / entry["seconds"]
        share = f" {rate / bandwidth:.0%}" if bandwidth else ""
        text += f" {rate / 1e9:.0f}{share}"
    if "check_failure" in entry:
        return f"{text} (?)"
    if "errors" in entry:
        text += f" ({entry['errors']['output']:.1e})"
        if not max(entry["errors"].values()) <= WRONG:
            text += " WRONG"
    return text


def _summary(
    results: Sequence[dict[str, Any]], names: list[str], ours: str, others: list[str]
) -> list[list[str]]:
    """Geometric means of how many times ours is faster, by head counts if there are several."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for r in results:
        groups.setdefault(f"{r['shape']['H']}/{r['shape']['HV']}", []).append(r)
    if len(results) > MANY:
        rows = [_ratios(f"x {heads}", group, names, ours) for heads, group in groups.items()]
    else:
        rows = []
    rows.append(_ratios("x all", results, names, ours))
    best = [
        min(times) / own
        for r in results
        if (own := _seconds(r, ours)) and (times := [t for n in others if (t := _seconds(r, n))])
    ]
    if best:
        behind = sum(ratio < 1 for ratio in best)
        text = f"{_mean(best):.2f}x the best of the others, shape by shape"
        rows.append([f"{ours}: {text}; behind at {behind} of {len(best)}"])
    return rows


def _ratios(
    label: str, results: Sequence[dict[str, Any]], names: list[str], ours: str
) -> list[str]:
    row = [label]
    for name in names:
        ratios = [
            theirs / own
            for r in results
            if (own := _seconds(r, ours)) and (theirs := _seconds(r, name))
        ]
        row.append(f"{_mean(ratios):.2f} of {len(ratios)}" if ratios else "-")
    return row


def _seconds(result: dict[str, Any], name: str) -> float | None:
    found: float | None = result["contestants"].get(name, {}).get("seconds")
    return found


def _mean(ratios: Sequence[float]) -> float:
    return exp(sum(map(log, ratios)) / len(ratios))


def _failures(results: Iterable[dict[str, Any]]) -> list[str]:
    """Each failure once, with the number of cases it hit and the first of them."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for r in results:
        for name, entry in r["contestants"].items():
            for stage in ("failure", "check_failure"):
                if stage in entry:
                    found.setdefault((r["part"], name, entry[stage]), []).append(r["case"])
    return [
        f"failed, {part}: {name}, {len(cases)} cases from {cases[0]}: {text}"
        for (part, name, text), cases in found.items()
    ]


def _aligned(rows: list[list[str]]) -> list[str]:
    columns = max(len(row) for row in rows)
    widths = [
        max((len(row[c]) for row in rows if len(row) > max(c, 1)), default=0)
        for c in range(columns)
    ]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]


def write_plots(report: dict[str, Any], prefix: Path) -> list[Path]:
    """Write ``PREFIX-<part>.png`` for every part with results: times of each case, log scale."""
    matplotlib = check_matplotlib()
    from matplotlib.figure import Figure

    written = []
    top = report["header"]
    with matplotlib.rc_context({"font.size": 8}):
        for part in dict.fromkeys(r["part"] for r in report["results"]):
            results = [r for r in report["results"] if r["part"] == part]
            results.sort(key=lambda r: (r["shape"]["HV"], r["shape"]["H"]))
            names = [n for n in _names(results) if any(_seconds(r, n) for r in results)]
            if not names:
                continue
            figure = Figure(figsize=(max(6.0, 0.16 * len(results) + 2), 4.2))
            axes = figure.add_subplot()
            for name, colour in zip(names, _COLOURS * 3, strict=False):
                points = [(i, s) for i, r in enumerate(results) if (s := _seconds(r, name))]
                axes.plot(
                    [i for i, _ in points],
                    [s * 1e6 for _, s in points],
                    ".-", color=colour, label=name, linewidth=0.8, markersize=3,
                )  # fmt: skip
            axes.set_yscale("log")
            axes.set_ylabel("microseconds")
            axes.set_xticks(range(len(results)), [r["case"] for r in results], rotation=90)
            axes.tick_params(axis="x", labelsize=5 if len(results) > MANY else 7)
            axes.legend(frameon=False, ncols=3)
            axes.set_title(
                f"{part}: {top['device']}, {top['date'][:10]}, gdn-dispatch {top['version']} "
                f"({top['commit'] or 'no checkout'})",
                loc="left",
            )
            path = prefix.with_name(f"{prefix.name}-{part}.png")
            figure.savefig(path, dpi=150, bbox_inches="tight")
            written.append(path)
    return written
