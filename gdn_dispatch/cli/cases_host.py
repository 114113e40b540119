"""What the host pays: a call before a backend sees it, the import, and metadata."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from gdn_dispatch import api
from gdn_dispatch.capability import Capability, Feature
from gdn_dispatch.cli.bench import Check, Prepared, timed
from gdn_dispatch.cli.cases_inputs import (
    HV,
    WANTED,
    H,
    V,
    layer_inputs,
    rule_inputs,
    run_layer,
    states,
)
from gdn_dispatch.hookspecs import hookimpl
from gdn_dispatch.plan.layout import Contents, NumpyTables, TablesRequest, fill, measure
from gdn_dispatch.plugins.discovery import GROUP
from gdn_dispatch.selection.dispatch import active_registry, tables_maker
from gdn_dispatch.types import Available, BackendInfo, GDNOutput

if TYPE_CHECKING:
    from contextlib import ExitStack

__all__ = ["OPS", "call_overhead", "host_metadata", "import_time"]

# What a call costs before a backend sees it: a backend that does nothing, minus nothing.


OPS: Final = ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule", "gdn_attention")


class _Nothing:
    """A backend that hands out what it was given beforehand."""

    name: Final = "bench_nothing"
    answer: GDNOutput

    @hookimpl
    def backend_info(self) -> BackendInfo:
        return BackendInfo(self.name, ("cpu",), Capability(features=frozenset(Feature)))

    @hookimpl
    def probe(self) -> Available:
        return Available()

    @hookimpl
    def gated_delta_rule(self, request: Any) -> GDNOutput:
        return self.answer

    @hookimpl
    def gdn_attention(self, request: Any) -> GDNOutput:
        return self.answer


def call_overhead(op: str, stack: ExitStack) -> Prepared:
    """A call of ``op`` on a backend that does nothing, minus nothing."""
    backend, registry = _Nothing(), active_registry()
    registry.register(backend, backend.name)
    stack.callback(registry.unregister, backend.name)
    if op == "gdn_attention":
        x = layer_inputs(8, H, HV)
        x["out"] = torch.empty(8, HV, V, dtype=torch.bfloat16)
        backend.answer = GDNOutput(x["out"])
        plan = api.plan_batch(range(9), state_indices=range(8))
        meta = api.build_chunk_meta(plan, "cpu", backend=backend.name)
        nothing = backend.gdn_attention

        def call() -> Any:
            return run_layer(x, meta, backend.name)

    else:
        q, k, v, g, beta = rule_inputs(8, 1)
        state, function = states(8), getattr(api, op)
        backend.answer = GDNOutput(v, state)
        nothing = backend.gated_delta_rule

        def call() -> Any:
            return function(
                q, k, v, g=g, beta=beta, initial_state=state, backend=backend.name, **WANTED
            )

    def check() -> Check:
        result = call()
        output = result if isinstance(result, torch.Tensor) else result[0]
        reached = output is backend.answer.output
        return Check(reached, "backend reached" if reached else "backend not reached")

    return Prepared(timed(call), timed(lambda: nothing(None)), check)


# What ``import gdn_dispatch`` costs after ``import torch``, in fresh processes.

_FAKE = """
from gdn_dispatch import Available, BackendInfo, Capability, hookimpl
@hookimpl
def backend_info():
    return BackendInfo({name!r}, ("cpu",), Capability())
@hookimpl
def probe():
    return Available()
"""

_CLOCK = "import sys, time; sys.path.insert(0, {path!r}); {before}t = time.perf_counter(); "


def import_time(backends: int, stack: ExitStack) -> Prepared:
    """``import gdn_dispatch`` with so many backends installed."""
    folder = Path(stack.enter_context(TemporaryDirectory()))
    names = [f"bench_fake_{n}" for n in range(backends)]
    for name in names:
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {name}\n")
        (folder / f"{name}.py").write_text(_FAKE.format(name=name))

    def python(what: str, before: str = "", then: str = "print(time.perf_counter() - t)") -> str:
        code = _CLOCK.format(path=str(folder), before=before) + f"import {what}; {then}"
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        return done.stdout

    def check() -> Check:
        listing = (
            "print(*(s.name for s in gdn_dispatch.list_backends() if s.status == 'available'))"
        )
        found = python("gdn_dispatch", then=listing).split()
        return Check(set(names) <= set(found), f"{len(found)} backends available")

    # Not the difference of two whole imports: torch's own varies by more than ours takes.
    python("gdn_dispatch")  # writes the byte code
    return Prepared(
        lambda: float(python("gdn_dispatch", before="import torch; ")),
        lambda: float(python("torch")),
        check,
    )


# Host metadata, against copying as many bytes.


def host_metadata(N: int, tokens: int, _: ExitStack) -> Prepared:
    """All sections for N sequences of so many tokens in all."""
    share = np.random.default_rng(N).random(N) + 0.1
    lens = np.diff([0, *np.floor(np.cumsum(share / share.sum()) * tokens)]).astype(np.int32)
    make = tables_maker() or NumpyTables
    request = TablesRequest(lens, (64, 128, 1216), 8)

    def contents() -> Contents:
        return Contents({}, make(request), {})

    room = measure(contents())
    flat = np.zeros(room.num_words, np.int32)
    words = sum(section.words for section in room.sections.values())
    source, target = np.zeros(words, np.int32), np.zeros(words, np.int32)

    def ours() -> None:
        what = contents()
        fill(measure(what), what, flat)

    def check() -> Check:
        ours()
        got = room.sections["chunk_indices/64"].of(flat).tolist()
        counts = [-(-n // 64) for n in lens.tolist() if n]
        right = [[q, i] for q, count in enumerate(counts) for i in range(count)]
        return Check(got == right, "equal" if got == right else "chunk_indices differ")

    return Prepared(timed(ours), timed(lambda: np.copyto(target, source)), check)
