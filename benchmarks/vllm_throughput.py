"""Throughput of vLLM's engine with our layers against its own, as a ratio: what it costs to serve.

    python benchmarks/vllm_throughput.py --output benchmarks/results/vllm_throughput.json
    python benchmarks/vllm_throughput.py --backend cpu --heads 16 32 --output FILE

Every round starts both sides, one after the other, each in a process of its own, on the same tiny
random Qwen3.5 in bf16 (which vLLM's own CPU layer requires); the order alternates. With the heads
of a real model its GDN layers dominate. Absolute numbers belong to the machine and are not kept
apart from their ratio. Needs what tests/vllm needs, and --backend cpu gdn-dispatch-cpu.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests" / "vllm"

WORKLOADS = {
    # name: (prompts, their length, tokens to generate)
    "prefill-heavy": (24, 384, 2),
    "decode-heavy": (8, 16, 96),
}
SIDES = {"gdn_dispatch": {}, "in-tree": {"GDN_DISPATCH_DISABLE": "vllm"}}


def measure(model: str) -> dict[str, float]:
    """Tokens per second of each workload, prompt and generated together, in this process."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=2048,
        enforce_eager=True,
        enable_prefix_caching=False,
    )
    rng = random.Random(0)
    found = {}
    for name, (count, length, generate) in WORKLOADS.items():
        sampling = SamplingParams(
            temperature=0.0, max_tokens=generate, ignore_eos=True, detokenize=False
        )
        prompts = [
            {"prompt_token_ids": [rng.randrange(3, 512) for _ in range(length)]}
            for _ in range(count)
        ]
        llm.generate(prompts, sampling, use_tqdm=False)  # warm
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            llm.generate(prompts, sampling, use_tqdm=False)
            times.append(time.perf_counter() - begun)
        found[name] = count * (length + generate) / statistics.median(times)
    return found


def run_side(model: str, side: str, backend: str, directory: Path) -> dict[str, float]:
    """``measure`` in a process with one side switched on."""
    out = directory / "side.json"
    path = os.pathsep.join([str(TESTS / "stubs"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"GDN_DISPATCH_BACKEND": backend} | SIDES[side] | {
        "PYTHONPATH": path,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CACHE_ROOT": str(directory / "cache"),
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    command = [sys.executable, __file__, "--measure", model, "--output", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr[-4000:]}")
    result: dict[str, float] = json.loads(out.read_text())
    return result


def main() -> None:
    """Measure both sides, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--backend", default="torch", help="the backend of our side")
    parser.add_argument("--heads", type=int, nargs=2, default=(2, 4), metavar=("H", "HV"))
    parser.add_argument("--measure", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        options.output.write_text(json.dumps(measure(options.measure)))
        return

    rows: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        words = {"dtype": "bfloat16", "head_k": 128, "head_v": 128, "heads": options.heads}
        job = {"name": "qwen3_5", "to": str(directory / "model"), "options": words}
        (directory / "job.json").write_text(json.dumps(job))
        subprocess.run(
            [
                sys.executable,
                str(TESTS / "models.py"),
                str(directory / "job.json"),
                str(directory / "written.json"),
            ],
            env=os.environ | {"PYTHONPATH": str(TESTS / "stubs")},
            check=True,
            capture_output=True,
        )
        for number in range(options.rounds):
            for side in list(SIDES)[:: 1 if number % 2 == 0 else -1]:
                rows[side].append(
                    run_side(str(directory / "model"), side, options.backend, directory)
                )
                print(number, side, rows[side][-1], flush=True)
    ratios = {
        workload: [
            ours[workload] / theirs[workload]
            for ours, theirs in zip(rows["gdn_dispatch"], rows["in-tree"], strict=True)
        ]
        for workload in WORKLOADS
    }
    result = {
        "what": f"tokens per second with gdn_dispatch (backend {options.backend}) over those "
        "in-tree, vLLM's CPU engine, bf16",
        "command": f"python benchmarks/vllm_throughput.py --rounds {options.rounds} --backend "
        f"{options.backend} --heads {' '.join(map(str, options.heads))} --output {options.output}",
        "workloads": {
            name: dict(zip(("prompts", "prompt_tokens", "new_tokens"), sizes, strict=True))
            for name, sizes in WORKLOADS.items()
        },
        "machine": {"cpu": platform.processor(), "cores": os.cpu_count()},
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "ratio_of_each_round": ratios,
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["ratio"], indent=2))


if __name__ == "__main__":
    main()
