"""Everything this package says in more than a sentence is put into words here.

Tensors are described by shape, dtype and device, never by value: reading a value would wait for the
device.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from gdn_dispatch.config import BACKEND_VARIABLE, DISABLE_VARIABLE
from gdn_dispatch.selection.resolver import AUTOMATIC, OFFICIAL, install_hint

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from gdn_dispatch.capability import CallFacts
    from gdn_dispatch.config import Config
    from gdn_dispatch.plugins.registry import BackendStatus
    from gdn_dispatch.selection.resolver import Choice, Selection

__all__ = [
    "backends_text",
    "configuration_text",
    "describe_tensor",
    "doctor_text",
    "error_text",
    "explain_command",
    "selection_text",
]

_SIZES = (
    ("head_dim_k", "K"),
    ("head_dim_v", "V"),
    ("num_heads", "H"),
    ("num_v_heads", "HV"),
    ("conv_width", "W"),
)


def describe_tensor(name: str, tensor: Any) -> str:
    """``q (1, 8192, 16, 96) bfloat16 xpu:0``."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{name} {tuple(tensor.shape)} {dtype} {tensor.device}"


def selection_text(selection: Selection) -> str:
    """The decision trace: what was asked, what runs it, and every reason against the others."""
    chosen = selection.chosen or "none"
    if selection.provider:
        chosen += f"/{selection.provider}"
    rows = [
        ("call", [_facts_words(selection.facts)]),
        ("requested", [_choice_words(selection.choice)]),
        ("chosen", [chosen, selection.why]),
        *((rejection.backend, list(rejection.reasons)) for rejection in selection.rejections),
    ]
    return "\n".join(_rows(rows, indent=""))


def error_text(
    selection: Selection,
    known: Collection[str],
    *,
    inputs: Sequence[tuple[str, Any]] = (),
    options: Sequence[str] = (),
) -> str:
    """The message of a refused call: the inputs, every backend with every reason, the way out.

    Args:
        selection: The selection that chose nothing.
        known: Names of the backends known here.
        inputs: Names and tensors of the call; tensors that are None are left out.
        options: Names of the options in use.
    """
    rows = [("requested", [_choice_words(selection.choice)])]
    if selection.refusal == "not installed":
        rows.append(("installed", [", ".join(sorted(known)) or "none"]))
    else:
        tensors = [describe_tensor(name, tensor) for name, tensor in inputs if tensor is not None]
        rows.append(("inputs", tensors) if tensors else ("call", [_facts_words(selection.facts)]))
        if options:
            rows.append(("options", [", ".join(options)]))
        # the one that was asked for comes first
        ordered = sorted(selection.rejections, key=lambda r: r.backend != selection.choice.name)
        rows += [(r.backend, list(r.reasons)) for r in ordered]
    lines = [_headline(selection), *_rows(rows, indent="  "), _way_out(selection, known)]
    return "\n".join(lines)


def explain_command(selection: Selection) -> str:
    """The command line that repeats a selection."""
    facts, choice = selection.facts, selection.choice
    words = ["gdn-dispatch explain"]
    if facts.op != "gdn_attention":
        words.append(f"--op {facts.op}")
    words.append(f"--device {facts.device_type}")
    if facts.dtype:
        words.append(f"--dtype {facts.dtype}")
    if facts.state_dtype:
        words.append(f"--state-dtype {facts.state_dtype}")
    for field, _ in _SIZES:
        if getattr(facts, field):
            words.append(f"--{field.replace('_', '-')} {getattr(facts, field)}")
    words += [f"--feature {name.lower()}" for name in sorted(f.name for f in facts.features)]
    if choice.name is not None:
        words.append(f"--backend {_spelling(choice)}")
    return " ".join(words)


def backends_text(statuses: Iterable[BackendStatus]) -> str:
    """The table of ``list_backends()``."""
    heads = ("backend", "version", "status", "why")
    rows = [heads, *((s.name, s.version or "-", s.status, s.why) for s in statuses)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[3]]).rstrip())
    return "\n".join(lines)


def configuration_text(config: Config) -> str:
    """Both environment variables, and what is wrong with them."""
    backend = config.backend or "unset"
    disable = ",".join(sorted(config.disable)) or "unset"
    lines = [f"{BACKEND_VARIABLE} {backend}, {DISABLE_VARIABLE} {disable}"]
    lines += [f"error: {error}" for error in config.errors]
    return "\n".join(lines)


def doctor_text(statuses: Iterable[BackendStatus], config: Config) -> str:
    """Backends and configuration, as ``gdn-dispatch doctor`` shows them."""
    return f"{backends_text(statuses)}\n{configuration_text(config)}"


def _rows(rows: Iterable[tuple[str, Sequence[str]]], indent: str) -> Iterator[str]:
    """Labels in one column, any number of lines beside each."""
    rows = list(rows)
    width = max(11, *(len(label) for label, _ in rows))
    for label, lines in rows:
        for first, line in zip([label, *[""] * len(lines)], lines, strict=False):
            yield f"{indent}{first.ljust(width)} {line}"


def _facts_words(facts: CallFacts) -> str:
    words = [f"{facts.op} on {facts.device_type}"]
    words += [facts.dtype] if facts.dtype else []
    words += [f"state {facts.state_dtype}"] if facts.state_dtype else []
    words += [f"{sign}={getattr(facts, name)}" for name, sign in _SIZES if getattr(facts, name)]
    words += sorted(feature.value for feature in facts.features)
    return ", ".join(words)


def _spelling(choice: Choice) -> str:
    return f"{choice.name}/{choice.provider}" if choice.provider else str(choice.name)


def _choice_words(choice: Choice) -> str:
    if choice.name is not None:
        return f"{_spelling(choice)} ({choice.source})"
    if choice.source == AUTOMATIC:
        return f"automatic ({BACKEND_VARIABLE} unset)"
    return f"automatic ({choice.source})"


def _headline(selection: Selection) -> str:
    choice, op = selection.choice, selection.facts.op
    if choice.name is None:
        return f"no backend can run this {op} call"
    if selection.refusal == "no provider":
        return f"backend {choice.name!r} has no provider {choice.provider!r}"
    predicate = {
        "not installed": "is not installed",
        "unavailable": "cannot be used here",
        "unsupported": f"does not support this {op} call",
    }
    return f"backend {_spelling(choice)!r} {predicate[selection.refusal]}"


def _way_out(selection: Selection, known: Collection[str]) -> str:
    name = selection.choice.name
    stages = {rejection.backend: rejection.stage for rejection in selection.rejections}
    if name is None or selection.refusal == "unsupported":
        return f"Run `{explain_command(selection)}` to see this again without the call."
    if selection.refusal == "not installed":
        if name in OFFICIAL:
            return f"Install it: {install_hint(name)}"
        near = difflib.get_close_matches(name, {*known, *OFFICIAL}, n=1)
        return f"Did you mean {near[0]!r}?" if near else "Run `gdn-dispatch doctor` to see all."
    if selection.refusal == "no provider":
        return f"Ask for a provider that it has, or for {name!r} and leave the provider to it."
    if stages[name] == "disabled":
        return f"Remove {name!r} from {DISABLE_VARIABLE}, or ask for another backend."
    return "Run `gdn-dispatch doctor` to see what is missing, or ask for another backend."
