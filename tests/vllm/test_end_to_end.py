"""Tiny random models served by vLLM's own engine, through us.

In fp32, which vLLM's CPU layer does not serve at all, equality means something: the engine's tokens
are those of transformers, and no way of scheduling the same prompts changes them.
"""

from __future__ import annotations

import random

import pytest

from gdn_dispatch import list_backends


@pytest.fixture
def reference(run_script):
    """Log-probabilities of transformers in fp32, on the tokens an engine answered."""

    def run(model, prompts, answers, *, prompt=False):
        pairs = [(p, a["tokens"]) for p, a in zip(prompts, answers, strict=True)]
        job = {"model": model, "sequences": pairs, "prompt": prompt}
        return run_script("reference.py", job)["logprobs"]

    return run


def tokens(result, number=0):
    return [answer["tokens"] for answer in result["rounds"][number]]


def total(result, counter):
    return sum(worker.get(counter, 0) for worker in result["workers"])


def steps(result, kind):
    names = {name for worker in result["workers"] for name in worker}
    return sum(total(result, name) for name in names if name.startswith("step:") and kind in name)


def mean_difference(answers, logprobs):
    """Mean absolute difference of log-probabilities over positions and vocabulary."""
    sums = count = 0
    for answer, rows in zip(answers, logprobs, strict=True):
        for got, expected in zip(answer["logprobs"], rows, strict=True):
            sums += sum(abs(g - e) for g, e in zip(got, expected, strict=True))
            count += len(expected)
    return sums / count


def greedy(logprobs):
    return [[row.index(max(row)) for row in rows] for rows in logprobs]


def plain(model, prompts):
    return {"model": model, "rounds": [prompts], "logprobs": True}


# -- against transformers --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next"])
def test_fp32_is_transformers(serve, model, prompts, reference, name):
    path = model(name)
    result = serve(plain(path, prompts))
    assert "gdn_dispatch serves the Gated DeltaNet layers" in result["log"]
    assert total(result, "layer") > 0
    expected = reference(path, prompts, result["rounds"][0])
    difference = mean_difference(result["rounds"][0], expected)
    print(name, "mean absolute difference of log-probabilities:", difference)
    assert difference < 1e-4
    assert tokens(result) == greedy(expected)


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next"])
def test_bf16_is_no_worse_than_in_tree(serve, model, prompts, reference, name):
    """Log-probabilities against fp32, of both on the same contexts.

    Left to themselves the two answer differently after a while, and which contexts an answer leads
    to then decides more than the arithmetic does.
    """
    path = model(name, head_k=128, head_v=128, dtype="bfloat16")
    job = plain(path, prompts) | {"options": {"dtype": "bfloat16"}, "forced": True}
    differences, expected = {}, None
    for side, env in (("ours", {}), ("in-tree", {"GDN_DISPATCH_DISABLE": "vllm"})):
        result = serve(job, **env)
        assert bool(total(result, "layer")) == (side == "ours")
        answers = result["rounds"][0]
        expected = expected or reference(path, prompts, answers, prompt=True)
        differences[side] = mean_difference(answers, expected)
        positions = [
            (got.index(max(got)), row.index(max(row)))
            for answer, rows in zip(answers, expected, strict=True)
            for got, row in zip(answer["logprobs"], rows, strict=True)
        ]
        agree = sum(got == best for got, best in positions)
        print(name, side, differences[side], f"greedy as fp32: {agree} of {len(positions)}")
    assert differences["ours"] <= differences["in-tree"]


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next"])
def test_the_native_cpu_backend_answers_as_the_torch_backend(serve, model, prompts, name):
    status = {row.name: row.status for row in list_backends()}
    if status["cpu"] != "available":
        pytest.skip(f"gdn-dispatch-cpu is {status['cpu']}")
    job = plain(model(name), prompts)
    results = {b: serve(job, GDN_DISPATCH_BACKEND=b) for b in ("cpu", "torch")}
    for backend, result in results.items():
        assert f": backend {backend}, " in result["log"]
        assert total(result, "layer") > 0
    assert tokens(results["cpu"]) == tokens(results["torch"])


# -- the same prompts, scheduled otherwise ---------------------------------------------------------


def test_chunked_prefill_changes_no_token(serve, model, prompts):
    path = model("qwen3_5")
    options = {"max_num_batched_tokens": 48, "max_num_seqs": 4}
    chunked = serve(plain(path, prompts) | {"options": options})
    assert tokens(chunked) == tokens(serve(plain(path, prompts)))
    assert steps(chunked, "prefill") > 2 * steps(serve(plain(path, prompts)), "prefill")


def test_a_prefix_cache_hit_changes_no_token(serve, model):
    path = model("qwen3_5")
    rng = random.Random(11)
    prefix = [rng.randrange(3, 512) for _ in range(900)]
    first, second = prefix, [*prefix, *(rng.randrange(3, 512) for _ in range(40))]
    options = {"max_model_len": 1024, "max_num_batched_tokens": 1024}
    caching = {"enable_prefix_caching": True, "mamba_cache_mode": "align"}
    hit = serve(
        {"model": path, "rounds": [[first], [first], [second]], "options": options | caching}
    )
    solo = serve({"model": path, "rounds": [[first], [first], [second]], "options": options})
    assert [tokens(hit, n) for n in range(3)] == [tokens(solo, n) for n in range(3)]
    cached = [answers[0]["cached"] for answers in hit["rounds"]]
    print("tokens found in the prefix cache:", cached)
    assert cached[0] == 0
    assert min(cached[1:]) >= 512  # several blocks of 128


def test_ngram_drafts_change_no_token(serve, model):
    path = model("qwen3_5", vocab=16)
    rng = random.Random(3)
    phrase = [rng.randrange(3, 16) for _ in range(6)]
    prompts = [phrase * 4, phrase * 2 + [7], [3, 4, 5] * 9, [5], phrase[:3] * 12]
    job = {"model": path, "rounds": [prompts], "max_tokens": 48, "vocabulary": 16}
    ngram = {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_max": 3,
        "prompt_lookup_min": 1,
    }
    speculative = serve(job | {"options": {"speculative_config": ngram}})
    assert tokens(speculative) == tokens(serve(job))
    assert steps(speculative, "speculative") > 0
    print(speculative["drafts"], speculative["workers"])
    assert speculative["drafts"]["accepted_tokens"] > 0


def test_two_ranks_answer_as_one(serve, model, prompts):
    path = model("qwen3_5")
    two = serve(
        plain(path, prompts) | {"options": {"tensor_parallel_size": 2}},
        VLLM_CPU_OMP_THREADS_BIND="0|1",
    )
    assert len(two["workers"]) == 2
    assert all(worker["layer"] for worker in two["workers"])
    assert tokens(two) == tokens(serve(plain(path, prompts)))


def test_a_compiled_graph_answers_as_eager(serve, model, prompts):
    path = model("qwen3_5")
    compiled = serve(plain(path, prompts) | {"options": {"enforce_eager": False}})
    assert total(compiled, "layer") > 0
    assert tokens(compiled) == tokens(serve(plain(path, prompts)))
