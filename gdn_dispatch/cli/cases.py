"""What ``gdn-dispatch bench`` times, against what, and within which budget."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from gdn_dispatch import api
from gdn_dispatch.capability import Capability, Feature
from gdn_dispatch.cli import MissingExtraError, require
from gdn_dispatch.cli.bench import (
    ABSOLUTE,
    OVERHEAD,
    SPEEDUP,
    TIMES_FLOOR,
    Case,
    Check,
    Prepared,
    timed,
)
from gdn_dispatch.discovery import GROUP
from gdn_dispatch.dispatch import active_registry
from gdn_dispatch.hookspecs import hookimpl
from gdn_dispatch.plan.chunks import ChunkTables, ConvTiles
from gdn_dispatch.plan.layout import Contents, fill, measure
from gdn_dispatch.torch_backend.reference import reference_gated_delta_rule, reference_gdn_layer
from gdn_dispatch.types import Available, BackendInfo, GDNOutput

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

__all__ = ["CASES", "SHAPE"]

H, HV, K, V, W = 16, 32, 128, 128, 4
SHAPE: Final = f"H={H} HV={HV} K={K} V={V}, q/k/v/beta bfloat16, g and states float32"


# The recurrence, against transformers' own torch functions.

Inputs = tuple[torch.Tensor, ...]
Outputs = tuple[torch.Tensor, torch.Tensor]
Run = Any
"""``run(inputs, state, lens) -> Outputs``; ``lens`` of the packed sequences, or None."""


def _inputs(B: int, T: int, h: int = H, hv: int = HV) -> Inputs:
    """q, k, v, g, beta of a trained model's ranges: decay of exp(A_log) 0..16 and dt 1e-3..1e-1."""
    draw = torch.Generator().manual_seed(0)
    rand = partial(torch.rand, generator=draw)
    q, k, v = (torch.randn(B, T, n, K, generator=draw).bfloat16() for n in (h, h, hv))
    dt = torch.exp(math.log(1e-3) + math.log(1e2) * rand(B, T, hv))
    return q, k, v, -16 * rand(hv) * dt, rand(B, T, hv).bfloat16()


def _state(N: int, hv: int = HV) -> torch.Tensor:
    return torch.randn(N, hv, K, V, generator=torch.Generator().manual_seed(1))


def _fallback(name: str) -> Any:
    """Transformers' pure torch function, without the wrapper that may replace it by a kernel."""
    path = "transformers.models.qwen3_next.modeling_qwen3_next"
    module = require(path, extra="transformers", purpose="this suite")
    if not hasattr(module, name):
        raise MissingExtraError(f"transformers has no {name}: pip install 'transformers>=5.15'")
    return inspect.unwrap(getattr(module, name))


_WANTED: Final = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}


def _ours(function: Any, inputs: Inputs, state: torch.Tensor | None, lens: Any) -> Outputs:
    q, k, v, g, beta = inputs
    packed = {} if lens is None else {"cu_seqlens": _starts(lens)}
    result: Outputs = function(q, k, v, g=g, beta=beta, initial_state=state, **packed, **_WANTED)
    return result


def _theirs(function: Any, inputs: Inputs, state: torch.Tensor | None, lens: Any) -> Outputs:
    """It knows no packed sequences, so they go one by one."""
    if lens is None:
        result: Outputs = function(*inputs, initial_state=state, **_WANTED)
        return result
    ends = _starts(lens).tolist()
    results = [
        function(
            *(x[:, start:end] for x in inputs),
            initial_state=None if state is None else state[n : n + 1],
            **_WANTED,
        )
        for n, (start, end) in enumerate(pairwise(ends))
    ]
    return torch.cat([o for o, _ in results], 1), torch.cat([s for _, s in results])


def _starts(lens: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lens)], dtype=torch.int32)


def _rule(
    op: str, fallback: str, B: int, T: int, lens: Any, with_state: bool, small: Any, _: ExitStack
) -> Prepared:
    """``small`` is the (B, T, lens) on which both are held against the fp64 recurrence."""
    ours = partial(_ours, getattr(api, op))
    theirs = partial(_theirs, _fallback(fallback))
    inputs, state = _inputs(B, T), _state(len(lens or range(B))) if with_state else None
    return Prepared(
        timed(lambda: ours(inputs, state, lens)),
        timed(lambda: theirs(inputs, state, lens)),
        lambda: _check_rule(ours, theirs, with_state, *small),
    )


def _check_rule(ours: Run, theirs: Run, with_state: bool, B: int, T: int, lens: Any) -> Check:
    inputs = _inputs(B, T, 2, 4)
    state = _state(len(lens or range(B)), 4) if with_state else None
    ends = _starts(lens or [T] * B).tolist()
    flat = [x.flatten(0, 1) for x in inputs]
    runs = [
        reference_gated_delta_rule(
            *(x[start:end] for x in flat),
            initial_state=None if state is None else state[n],
            use_qk_l2norm=True,
        )
        for n, (start, end) in enumerate(pairwise(ends))
    ]
    right = torch.cat([o for o, _ in runs]), torch.stack([s for _, s in runs])
    error, peer_error = (_distance(run(inputs, state, lens), right) for run in (ours, theirs))
    return _no_worse(error, peer_error)


def _no_worse(error: float, peer_error: float) -> Check:
    """Less accurate than the peer is a failure; 2 % is for both rounding the output to bf16."""
    text = f"{error:.1e}, peer {peer_error:.1e}"
    return Check(error <= 1.02 * peer_error, text, error, peer_error)


def _distance(got: Outputs, right: Outputs) -> float:
    """Relative Frobenius distance of output or state, whichever is further off."""
    pairs = [(x.double().reshape(y.shape), y) for x, y in zip(got, right, strict=True)]
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)


# A whole layer core in decode, on pools, against the same steps of transformers' model.


def _layer_inputs(B: int, h: int, hv: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    D = 2 * h * K + hv * V
    shapes = {
        "x": (B, D), "a": (B, hv), "b": (B, hv), "weight": (D, W), "conv": (B, D, W - 1),
    }  # fmt: skip
    tensors = {n: torch.randn(*shape, generator=draw).bfloat16() for n, shape in shapes.items()}
    A_log, dt_bias = torch.randn(2, hv, generator=draw)
    return {**tensors, "A_log": A_log, "dt_bias": dt_bias, "state": _state(B, hv)}


def _layer_ours(x: dict[str, torch.Tensor], meta: Any, backend: str | None = None) -> torch.Tensor:
    return api.gdn_attention(
        x["x"], x["a"], x["b"], meta=meta, conv_state=x["conv"], ssm_state=x["state"],
        conv_weight=x["weight"], A_log=x["A_log"], dt_bias=x["dt_bias"], out=x.get("out"),
        backend=backend,
    )  # fmt: skip


def _layer_theirs(conv: Any, rule: Any, x: dict[str, torch.Tensor]) -> torch.Tensor:
    B, hv = x["a"].shape
    h = (x["x"].shape[1] - hv * V) // (2 * K)
    mixed = conv(x["x"][:, :, None], x["conv"], x["weight"], None, "silu").transpose(1, 2)
    q, k, v = mixed.split([h * K, h * K, hv * V], -1)
    g = -x["A_log"].exp() * torch.nn.functional.softplus(x["a"].float() + x["dt_bias"])
    q, k, v = q.view(B, 1, h, K), k.view(B, 1, h, K), v.view(B, 1, hv, V)
    beta = x["b"].sigmoid()[:, None]
    out, x["state"] = rule(q, k, v, g[:, None], beta, initial_state=x["state"], **_WANTED)
    return out[:, 0]  # type: ignore[no-any-return]


def _layer(B: int, _: ExitStack) -> Prepared:
    theirs = partial(
        _layer_theirs, _fallback("causal_conv1d_update"),
        _fallback("torch_recurrent_gated_delta_rule"),
    )  # fmt: skip

    def meta(B: int) -> Any:
        plan = api.plan_batch(range(B + 1), state_indices=range(B))
        return api.build_chunk_meta(plan, "cpu", num_v_heads=HV)

    def check() -> Check:
        small = [_layer_inputs(2, 2, 4) for _ in range(3)]
        got = _layer_ours(small[0], meta(2)), small[0]["state"]
        peer = theirs(small[1]), small[1]["state"]
        x = small[2]
        rows = [
            reference_gdn_layer(
                x["x"][n : n + 1], x["a"][n : n + 1], x["b"][n : n + 1], conv_weight=x["weight"],
                conv_bias=None, A_log=x["A_log"], dt_bias=x["dt_bias"], num_heads=2, head_dim_k=K,
                head_dim_v=V, conv_history=x["conv"][n], initial_state=x["state"][n],
            )
            for n in range(2)
        ]  # fmt: skip
        right = torch.cat([row[0] for row in rows]), torch.stack([row[2] for row in rows])
        return _no_worse(_distance(got, right), _distance(peer, right))

    ours, peer, step = _layer_inputs(B, H, HV), _layer_inputs(B, H, HV), meta(B)
    return Prepared(timed(lambda: _layer_ours(ours, step)), timed(lambda: theirs(peer)), check)


# What a call costs before a backend sees it: a backend that does nothing, minus nothing.


_OPS: Final = ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule", "gdn_attention")


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


def _call(op: str, stack: ExitStack) -> Prepared:
    backend, registry = _Nothing(), active_registry()
    registry.register(backend, backend.name)
    stack.callback(registry.unregister, backend.name)
    if op == "gdn_attention":
        x = _layer_inputs(8, H, HV)
        x["out"] = torch.empty(8, HV, V, dtype=torch.bfloat16)
        backend.answer = GDNOutput(x["out"])
        plan = api.plan_batch(range(9), state_indices=range(8))
        meta = api.build_chunk_meta(plan, "cpu", backend=backend.name)
        nothing = backend.gdn_attention

        def call() -> Any:
            return _layer_ours(x, meta, backend.name)

    else:
        q, k, v, g, beta = _inputs(8, 1)
        state, function = _state(8), getattr(api, op)
        backend.answer = GDNOutput(v, state)
        nothing = backend.gated_delta_rule

        def call() -> Any:
            return function(
                q, k, v, g=g, beta=beta, initial_state=state, backend=backend.name, **_WANTED
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


def _import(backends: int, stack: ExitStack) -> Prepared:
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


def _metadata(N: int, tokens: int, _: ExitStack) -> Prepared:
    share = np.random.default_rng(N).random(N) + 0.1
    lens = np.diff([0, *np.floor(np.cumsum(share / share.sum()) * tokens)]).astype(np.int32)
    sizes = (64, 128, 1216)

    def contents() -> Contents:
        return Contents({}, ChunkTables(lens, sizes), ConvTiles(lens, 8), {})

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


_HF, _LENS = "transformers", tuple(np.random.default_rng(0).integers(17, 601, 32).tolist())
_CHUNK = partial(_rule, "chunk_gated_delta_rule", "torch_chunk_gated_delta_rule")
_STEP = partial(_rule, "fused_recurrent_gated_delta_rule", "torch_recurrent_gated_delta_rule")


def _prefill(T: int, stack: ExitStack) -> Prepared:
    return _CHUNK(1, T, None, False, (1, 200, None), stack)


def _packed(stack: ExitStack) -> Prepared:
    return _CHUNK(1, sum(_LENS), _LENS, True, (1, 150, (17, 70, 63)), stack)


def _decode(B: int, stack: ExitStack) -> Prepared:
    return _STEP(B, 1, None, True, (2, 1, None), stack)


CASES: Final = (
    Case("prefill", "T=512", _HF, SPEEDUP, 4.5, partial(_prefill, 512)),
    Case("prefill", "T=4096", _HF, SPEEDUP, 6, partial(_prefill, 4096)),
    Case("prefill", "T=16384", _HF, SPEEDUP, 6.5, partial(_prefill, 16384)),
    Case("packed", "32 x 17..600", f"{_HF}, one by one", SPEEDUP, 3.3, _packed),
    Case("decode", "B=1", _HF, SPEEDUP, 5, partial(_decode, 1)),
    Case("decode", "B=8", _HF, SPEEDUP, 20, partial(_decode, 8)),
    Case("decode", "B=64", _HF, SPEEDUP, 18, partial(_decode, 64)),
    *(Case("decode", f"layer B={B}", _HF, SPEEDUP, None, partial(_layer, B)) for B in (1, 8, 64)),
    *(Case("call", op, "null function", OVERHEAD, 8, partial(_call, op)) for op in _OPS),
    Case("import", "alone", "import torch", ABSOLUTE, 50, partial(_import, 0)),
    Case("import", "with 5 backends", "import torch", ABSOLUTE, 50, partial(_import, 5)),
    Case("metadata", "N=1", "memory copy", TIMES_FLOOR, None, partial(_metadata, 1, 33_000)),
    Case("metadata", "N=16", "memory copy", TIMES_FLOOR, None, partial(_metadata, 16, 77_000)),
    Case("metadata", "N=256", "memory copy", TIMES_FLOOR, 3, partial(_metadata, 256, 10**6)),
    Case("metadata", "N=1024", "memory copy", TIMES_FLOOR, 3, partial(_metadata, 1024, 10**6)),
)
"""Every case, suite by suite, with the budget of the design."""
