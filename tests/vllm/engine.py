"""One engine, one process: ``python engine.py JOB.json RESULT.json``.

The job: ``model``; ``options`` of ``vllm.LLM``; ``rounds``, each a list of prompts (token ids)
that are generated together, one round after the other; ``max_tokens``; ``vocabulary``, its size;
``logprobs``, whether those of all of it are wanted; ``forced``, whether every answer is one token
repeated, so that two engines are compared on the same contexts, and the prompts' own
log-probabilities are wanted, too.

The result: for every round and prompt its ``tokens``, ``cached`` (tokens of the prompt found in the
prefix cache) and ``logprobs`` ([token][vocabulary]; a forced one's begin with its prompt's);
``workers``, the counters of every rank; ``drafts``, how many draft tokens were proposed and
accepted.
"""

import json
import os
import sys
from pathlib import Path

WORKER = "gdn_dispatch.integrations.vllm.observability.WorkerExtension"


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    vocabulary = job.get("vocabulary", 512)
    options = {
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "max_model_len": 512,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "max_logprobs": vocabulary,
        "disable_log_stats": False,
        "worker_extension_cls": WORKER,
        "seed": 0,
    } | job.get("options", {})
    llm = LLM(model=job["model"], **options)
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=job.get("max_tokens", 12),
        ignore_eos=True,
        detokenize=False,
        logprobs=-1 if job.get("logprobs") else None,
    )
    rounds = []
    for prompts in job["rounds"]:
        each = [sampling] * len(prompts)
        if job.get("forced"):
            each = [forced(sampling, prompt) for prompt in prompts]
        outputs = llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], each, use_tqdm=False
        )
        rounds.append([describe(output, vocabulary) for output in outputs])
    result = {
        "rounds": rounds,
        "workers": llm.collective_rpc("gdn_dispatch_counters"),
        "drafts": drafts(llm),
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


def forced(sampling, prompt):
    """Every answered token is the prompt's last one; log-probabilities are those before that."""
    mine = sampling.clone()
    mine.allowed_token_ids = [prompt[-1]]
    mine.prompt_logprobs = -1
    return mine


def describe(output, vocabulary):
    completion = output.outputs[0]
    rows = None
    if completion.logprobs is not None:
        steps = [step for step in output.prompt_logprobs or () if step is not None]
        rows = [
            [step[token].logprob if token in step else None for token in range(vocabulary)]
            for step in (*steps, *completion.logprobs)
        ]
    return {
        "tokens": list(completion.token_ids),
        "cached": output.num_cached_tokens or 0,
        "logprobs": rows,
    }


def drafts(llm):
    found = {}
    for metric in llm.get_metrics():
        if metric.name.startswith("vllm:spec_decode_num_") and hasattr(metric, "value"):
            found[metric.name.removeprefix("vllm:spec_decode_num_")] = metric.value
    return found


if __name__ == "__main__":
    main()
