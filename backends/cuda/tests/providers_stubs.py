"""Libraries that are not there, played by modules with the same names, signatures and habits.

Their functions take what the real ones take (``providers_data/signatures.json``, read from the
wheels), refuse what those refuse, compute with the fp64 reference, and get wrong what those get
wrong: FlashInfer ignores the l2norm flag and takes linear decay, all of them count a scale of 0 as
not given or subtract infinite logarithms, and chunk numbers do not count empty sequences.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from gdn_dispatch.testing.formulas import chunk_formulas
from gdn_dispatch.torch_backend.reference import reference_gated_delta_rule

SIGNATURES = json.loads(
    (Path(__file__).parent / "providers_data" / "signatures.json").read_text(encoding="utf-8")
)

_KINDS = {
    "positional": inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "keyword": inspect.Parameter.KEYWORD_ONLY,
    "var_positional": inspect.Parameter.VAR_POSITIONAL,
    "var_keyword": inspect.Parameter.VAR_KEYWORD,
}


def signature(distribution: str, function: str) -> inspect.Signature:
    """As it stands in the wheel."""
    parameters = SIGNATURES[distribution]["functions"][function]["parameters"]
    return inspect.Signature(
        [
            inspect.Parameter(
                p["name"],
                _KINDS[p["kind"]],
                default=None if p["default"] else inspect.Parameter.empty,
            )
            for p in parameters
        ]
    )


def played(distribution: str, function: str, body: Callable[..., Any]) -> Callable[..., Any]:
    """``body`` behind the signature of the wheel's function."""
    shape = signature(distribution, function)

    @functools.wraps(body)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = shape.bind(*args, **kwargs)  # TypeError where the real one would raise it
        return body(**bound.arguments)

    return call


def install(monkeypatch: Any, name: str, **attributes: Any) -> types.ModuleType:
    """A module in ``sys.modules``, with its parents."""
    parent = ""
    for part in name.split("."):
        full = f"{parent}.{part}" if parent else part
        if full not in sys.modules:
            module = types.ModuleType(full)
            module.__spec__ = ModuleSpec(full, None, is_package=True)
            module.__path__ = []
            monkeypatch.setitem(sys.modules, full, module)
            if parent:
                monkeypatch.setattr(sys.modules[parent], part, module, raising=False)
        parent = full
    for key, value in attributes.items():
        monkeypatch.setattr(sys.modules[name], key, value, raising=False)
    return sys.modules[name]


def by_sequence(q, k, v, g, beta, starts, states, *, scale, l2norm):
    """The recurrence over ``[T, ...]``; states ``[n, HV, K, V]``. In v's dtype, and fp32."""
    outputs, finals = [], []
    for n, (a, b) in enumerate(pairwise(starts)):
        assert b > a, "a sequence without tokens reached the library"
        out, final = reference_gated_delta_rule(
            *(x[a:b] for x in (q, k, v, g, beta)),
            scale=scale,
            initial_state=None if states is None else states[n],
            use_qk_l2norm=l2norm,
        )
        outputs.append(out)
        finals.append(final)
    return torch.cat(outputs).to(v.dtype), torch.stack(finals).float()


def _default(scale, K):
    return scale or K**-0.5


def flashinfer_prefill(calls: list[dict[str, Any]]) -> Callable[..., Any]:
    def prefill(q, k, v, g=None, beta=None, scale=None, initial_state=None, **rest):
        calls.append({"q": q, "k": k, "v": v, "g": g, "beta": beta, "scale": scale, **rest})
        cu_seqlens, output_state = rest["cu_seqlens"], rest.get("output_state")
        assert q.ndim == k.ndim == v.ndim == 3
        for x in (q, k, v, g, beta, cu_seqlens):
            assert x.is_contiguous()
            assert x.data_ptr() % 16 == 0
        assert g.dtype == beta.dtype == torch.float32
        assert q.shape[2] == v.shape[2] == 128
        assert float(g.min()) >= 0, "decay is linear"
        starts = cu_seqlens.tolist()
        lengths = [b - a for a, b in pairwise(starts)]
        assert max(lengths) <= rest["max_seqlen"] <= q.shape[0] == starts[-1]
        states = None
        if initial_state is not None:
            assert initial_state.is_contiguous()
            assert initial_state.shape == (len(lengths), v.shape[1], v.shape[2], q.shape[2])
            states = initial_state.transpose(2, 3)
        logs = torch.log2(g.double() + 1e-10) / 1.4426950408889634
        out, final = by_sequence(
            q, k, v, logs, beta, starts, states, scale=_default(scale, q.shape[2]), l2norm=False
        )  # whatever use_qk_l2norm_in_kernel says
        if not rest["output_final_state"]:
            return out
        output_state.copy_(final.transpose(2, 3))
        return out, output_state

    return played("flashinfer-python", "flashinfer.gdn_prefill:chunk_gated_delta_rule", prefill)


def _logarithmic(q, k, v, g, beta, starts, states, *, scale, l2norm, v_first):
    """FLA's and FlashQLA's rule on ``[B, T, ...]``; starts None: dense."""
    assert g.dtype == beta.dtype == torch.float32
    if states is not None:
        assert states.dtype == torch.float32
        states = states.transpose(2, 3) if v_first else states
    B, T = q.shape[:2]
    starts = [b * T for b in range(B + 1)] if starts is None else starts
    flat = [x.flatten(0, 1) for x in (q, k, v, g, beta)]
    out, final = by_sequence(*flat, starts, states, scale=scale, l2norm=l2norm)
    if torch.isinf(g).any():  # sums of logarithms are subtracted
        out = out.fill_(float("nan"))
    return out.view(v.shape), final.transpose(2, 3).contiguous() if v_first else final


def fla_rule(calls: list[dict[str, Any]]) -> Callable[..., Any]:
    def rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, **rest):
        calls.append({"g": g, "beta": beta, **rest})
        assert "kwargs" not in rest, "kwargs are dropped in silence"
        starts = None
        if rest["cu_seqlens"] is not None:
            starts = rest["cu_seqlens"].tolist()
            lengths = [b - a for a, b in pairwise(starts)]
            expected = chunk_formulas(lengths, 64).chunk_indices
            assert rest["chunk_indices"].tolist() == expected
        out, final = _logarithmic(
            q, k, v, g, beta, starts, initial_state,
            scale=_default(scale, q.shape[3]),
            l2norm=rest["use_qk_l2norm_in_kernel"],
            v_first=rest["state_v_first"],
        )  # fmt: skip
        return out, final if output_final_state else None

    inner = played("fla-core", "fla.ops.gated_delta_rule:chunk_gated_delta_rule", rule)

    @functools.wraps(inner)
    def dispatched(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("FLA handed over to FlashQLA, unasked")

    return dispatched


@dataclass
class Context:
    """What ``build_cp_context`` returns: some of its fields."""

    is_intra: bool = False
    cu_seqlens: torch.Tensor | None = None
    group: Any = None
    intra_cp_cu_seqlens: torch.Tensor | None = None
    ht_mask: torch.Tensor | None = None


def qla_context(calls: list[dict[str, Any]]) -> Callable[..., Any]:
    def build(cu_seqlens=None, enable_intra=False, num_v_heads=None, chunk_size=None, **rest):
        if cu_seqlens is None:
            return Context()
        assert type(cu_seqlens) is torch.Tensor
        calls.append({"num_v_heads": num_v_heads, "chunk_size": chunk_size, **rest})
        assert enable_intra
        parts = torch.tensor(cu_seqlens.tolist(), dtype=torch.int32)
        return Context(True, cu_seqlens, None, parts, torch.ones(len(parts) - 1, dtype=torch.bool))

    return played("flash-qla", "flash_qla.ops.gated_delta_rule.chunk:build_cp_context", build)


def qla_prepare() -> Callable[..., Any]:
    def prepare(cu_seqlens, cu_seqlens_cpu):
        assert cu_seqlens.tolist() == cu_seqlens_cpu.tolist()
        cu_seqlens._flash_qla_prepared_varlen = (64,)
        return cu_seqlens

    return played("flash-qla", "flash_qla.utils.index:prepare_varlen_metadata", prepare)


def qla_rule(calls: list[dict[str, Any]]) -> Callable[..., Any]:
    def rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, **rest):
        calls.append({"g": g, "beta": beta, "scale": scale, **rest})
        assert q.dtype in (torch.bfloat16, torch.float16)
        assert q.shape[3] == v.shape[3] == 128
        assert not rest["use_qk_l2norm_in_kernel"], "torch.compile at first use"
        context, starts = rest["cp_context"], None
        if rest["cu_seqlens"] is None:
            assert context.cu_seqlens is None
        else:
            assert rest["cu_seqlens"] is context.cu_seqlens
            for x in (context.cu_seqlens, context.intra_cp_cu_seqlens):
                assert x._flash_qla_prepared_varlen, "lengths would be read from the device"
            starts = context.cu_seqlens.tolist()
        out, final = _logarithmic(
            q, k, v, g, beta, starts, initial_state,
            scale=_default(scale, 128), l2norm=False, v_first=rest["state_v_first"],
        )  # fmt: skip
        return out, final if output_final_state else None

    return played("flash-qla", "flash_qla:chunk_gated_delta_rule", rule)
