"""The results of a benchmark for people: a table, and a plot of how many times faster they are.

The plot is drawn on a ``Figure`` of its own, without pyplot: nothing global is touched, and no
window opens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gdn_dispatch.cli import require

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["budget_text", "check_matplotlib", "table", "write_plots"]


class _Palette(NamedTuple):
    ink: str
    muted: str
    peer: str
    ours: str
    missed: str
    background: str | None


_LIGHT: Final = _Palette("#1f2328", "#59636e", "#c4cbd3", "#1a7f64", "#bc4c00", None)
_DARK: Final = _Palette("#e6edf3", "#9198a1", "#4a525c", "#3fb68b", "#f0883e", None)

_BAR: Final = 0.36


def table(report: dict[str, Any]) -> list[str]:
    """The results as lines of text."""
    top = report["header"]
    lines = [
        f"gdn-dispatch {top['version']} ({top['commit'] or 'no checkout'}), {top['date']}, "
        f"torch {top['torch']}, {top['cpu']}, {top['cpu_capability']}, {top['threads']} threads",
        f"{top['shape']}; medians of {report['rounds']} rounds (least .. most)",
        "",
    ]
    rows = [("suite", "case", "ours", "peer", "result", "", "budget", "", "numbers")]
    for r in report["results"]:
        if "failure" in r:
            rows.append((r["suite"], r["case"], "-", "-", "-", "", "", "failed", r["failure"]))
            continue
        met = {None: "", True: "met", False: "MISSED"}[r["met"]]
        loud = f"; {r['noisy_rounds']} rounds not quiet" if r["noisy_rounds"] else ""
        numbers = ("" if r["passed"] else "WRONG: ") + r["text"] + loud
        rows.append(
            (
                r["suite"], r["case"], _seconds(r["ours_s"]), _seconds(r["peer_s"]),
                f"{r['value']:.3g} {r['unit']}", f"({r['min']:.3g} .. {r['max']:.3g})",
                budget_text(r["budget"], r["more_is_better"], r["unit"]), met, numbers,
            )
        )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    hints = dict.fromkeys(r["hint"] for r in report["results"] if r.get("hint"))
    return [*lines, *hints]


def budget_text(limit: float | None, more_is_better: bool, unit: str) -> str:
    """``>= 4.5 x``; nothing where there is no budget."""
    return "" if limit is None else f"{'>=' if more_is_better else '<='} {limit:g} {unit}"


def _seconds(seconds: float) -> str:
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def check_matplotlib() -> Any:
    """The ``matplotlib`` package; ``MissingExtraError`` where it is not installed."""
    require("matplotlib.figure", extra="cli", purpose="--plot")
    return require("matplotlib", extra="cli", purpose="--plot")


def write_plots(report: dict[str, Any], prefix: Path) -> list[Path]:
    """Write ``PREFIX.png``, ``PREFIX-light.svg`` and ``PREFIX-dark.svg``.

    Cases that are not compared with a peer's time (``import``, ``call``, ``metadata``) and those
    that failed are left out; without any other, nothing is written.
    """
    results = [r for r in report["results"] if r["unit"] == "x" and r["more_is_better"]]
    results = [r for r in results if "failure" not in r]
    if not results:
        return []
    files = {
        prefix.with_name(f"{prefix.name}.png"): _LIGHT._replace(background="white"),
        # transparent, for <picture> in a README
        prefix.with_name(f"{prefix.name}-light.svg"): _LIGHT,
        prefix.with_name(f"{prefix.name}-dark.svg"): _DARK,
    }
    matplotlib = check_matplotlib()
    # the same results give the same bytes: no random ids, no date but the one in the caption
    with matplotlib.rc_context({"svg.hashsalt": "gdn-dispatch", "font.size": 10}):
        for path, palette in files.items():
            figure = _figure(report["header"], results, palette)
            dated = {"Date": None} if path.suffix == ".svg" else {}
            face = palette.background or "none"
            figure.savefig(path, dpi=160, facecolor=face, metadata=dated, bbox_inches="tight")
    return list(files)


def _figure(header: dict[str, Any], results: list[dict[str, Any]], palette: _Palette) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.62 * len(results) + 1.3))
    axes = figure.add_subplot()
    longest = max(max(r["max"], r["budget"] or 1.0) for r in results)
    for row, r in enumerate(results):
        # informational bars have no budget to miss
        colour = palette.missed if r["met"] is False else palette.ours
        axes.barh(row - _BAR / 2, r["value"], _BAR, color=colour)
        axes.barh(row + _BAR / 2, 1.0, _BAR, color=palette.peer)
        low, high = r["min"], r["max"]
        axes.plot([low, high], [row - _BAR / 2] * 2, color=palette.ink, linewidth=1)
        if r["budget"] is not None:
            edges = [row - _BAR, row]
            axes.plot([r["budget"]] * 2, edges, color=palette.ink, linewidth=1, linestyle=":")
        text = f"{r['value']:.1f}x"
        at = high
        if r["budget"] is not None and 0 < r["budget"] - high < 0.1 * longest:
            at = r["budget"]  # the label would stand on the dotted line
        at += 0.012 * longest
        axes.text(at, row - _BAR / 2, text, va="center", color=palette.ink, weight="bold")
    axes.set_yticks(range(len(results)), [f"{r['suite']}  {r['case']}" for r in results])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * longest)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0, colors=palette.ink)
    for spine in axes.spines.values():
        spine.set_visible(False)
    peers = ", ".join(dict.fromkeys(r["peer"].partition(",")[0] for r in results))
    axes.set_title(
        f"Times faster than {peers} (grey = 1x; dotted: budget; line: least to most)",
        loc="left", fontsize=10, color=palette.ink,
    )  # fmt: skip
    # below the axes wherever they end: bars of few cases and of many leave the same gap
    axes.annotate(
        _caption(header), xy=(0, 0), xycoords="axes fraction", xytext=(0, -6),
        textcoords="offset points", fontsize=7.5, color=palette.muted, va="top", linespacing=1.5,
    )  # fmt: skip
    return figure


def _caption(header: dict[str, Any]) -> str:
    commit = f" ({header['commit']})" if header["commit"] else ""
    return (
        f"{header['cpu']}, {header['threads']} threads, {header['cpu_capability']}; "
        f"torch {header['torch']}; gdn-dispatch {header['version']}{commit}; "
        f"{header['date'][:10]}\n{header['shape']}"
    )
