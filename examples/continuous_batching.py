"""A serving loop in miniature: requests come and go, prefill and decode share every step.

The engine owns the state pools and hands out slots; gdn_attention updates them in place. At the
end, every request's outputs are compared with those it gets when it is served alone.

Run: python examples/continuous_batching.py
"""

from dataclasses import dataclass, field

import torch

import gdn_dispatch

H, HV, K, V, W = 2, 4, 32, 32, 4
D = 2 * H * K + HV * V
SLOTS, BUDGET = 4, 48  # requests at once, tokens a step

torch.manual_seed(0)
WEIGHTS = {
    "conv_weight": torch.randn(D, W) * 0.5,
    "A_log": torch.rand(HV).log(),
    "dt_bias": torch.ones(HV),
}


@dataclass
class Request:
    """A prompt, what has been served of it, and the slot that holds its state."""

    name: str
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # mixed_qkv, a, b of all its tokens
    done: int = 0
    slot: int | None = None
    outputs: list[torch.Tensor] = field(default_factory=list)

    @property
    def left(self):
        return len(self.inputs[0]) - self.done


def new_pools():
    """Conv histories and recurrent states, one slot a request."""
    return {"conv_state": torch.zeros(SLOTS, D, W - 1), "ssm_state": torch.zeros(SLOTS, HV, K, V)}


def step(work, pools):
    """Serve ``work``, a list of (request, tokens), in one call."""
    starts = [0]
    for _, tokens in work:
        starts.append(starts[-1] + tokens)
    plan = gdn_dispatch.plan_batch(
        starts,
        state_indices=[request.slot for request, _ in work],
        has_initial_state=[request.done > 0 for request, _ in work],
    )
    meta = gdn_dispatch.build_chunk_meta(plan, "cpu")  # once a step, for all layers of a model
    packed = [
        torch.cat([request.inputs[i][request.done : request.done + n] for request, n in work])
        for i in range(3)
    ]
    out = gdn_dispatch.gdn_attention(*packed, meta=meta, **pools, **WEIGHTS)
    for (request, tokens), rows in zip(work, out.split([n for _, n in work]), strict=True):
        request.outputs.append(rows)
        request.done += tokens


def serve(requests):
    """Continuous batching: decode first, prefill with what is left of the budget."""
    waiting, running, free, pools, steps = list(requests), [], list(range(SLOTS)), new_pools(), 0
    while waiting or running:
        while waiting and free:
            request = waiting.pop(0)
            request.slot = free.pop()
            running.append(request)
        budget, work = BUDGET, []
        for request in running:
            tokens = min(request.left, budget, 16 if request.done == 0 else 1 + request.left // 2)
            if tokens:
                work.append((request, tokens))
                budget -= tokens
        step(work, pools)
        steps += 1
        for request in [r for r in running if not r.left]:
            running.remove(request)
            free.append(request.slot)
    return steps


def make_requests():
    """Nine prompts of 1 to 90 tokens."""
    random = torch.Generator().manual_seed(1)
    lengths = [1, 90, 7, 33, 64, 2, 50, 17, 31]
    return [
        Request(
            f"request {i} of {n} tokens",
            tuple(torch.randn(n, width, generator=random) for width in (D, HV, HV)),
        )
        for i, n in enumerate(lengths)
    ]


with torch.inference_mode():
    requests = make_requests()
    steps = serve(requests)
    worst = 0.0
    for served, alone in zip(requests, make_requests(), strict=True):
        alone.slot = 0
        step([(alone, alone.left)], new_pools())
        worst = max(worst, (torch.cat(served.outputs) - alone.outputs[0]).abs().max().item())

print(f"{len(requests)} requests in {steps} steps, {SLOTS} slots, up to {BUDGET} tokens a step")
print(f"largest difference to serving each alone: {worst:.1e}")
if worst > 1e-4:
    raise SystemExit("a request depends on its neighbours")
