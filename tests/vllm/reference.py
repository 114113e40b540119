"""transformers in fp32 on the same tokens: ``python reference.py JOB.json RESULT.json``.

The job: ``model``; ``sequences``, pairs of a prompt and the tokens an engine answered; ``prompt``,
whether the prompt's positions are wanted, too. The result: ``logprobs`` of every answered token's
position (and before them the prompt's but its first) over the whole vocabulary.
"""

import json
import sys
from pathlib import Path

import torch


def main() -> None:
    from transformers import AutoModelForCausalLM

    job = json.loads(Path(sys.argv[1]).read_text())
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    logprobs = []
    for prompt, answer in job["sequences"]:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer]), use_cache=False).logits[0]
        first = 0 if job.get("prompt") else len(prompt) - 1
        rows = logits[first:-1].log_softmax(-1)
        logprobs.append(rows.tolist())
    Path(sys.argv[2]).write_text(json.dumps({"logprobs": logprobs}))


if __name__ == "__main__":
    main()
