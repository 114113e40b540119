"""Three prompts of different length in one packed batch, cut in two, the state carried over.

Run: python examples/varlen_prefill.py
"""

import torch

import gdn_dispatch

LAYERS, H, HV, K, V = 4, 4, 8, 64, 64
LENGTHS = [300, 0, 57]  # an empty sequence keeps its state


def inputs(tokens, seed):
    """Random q, k, v, decay and write strength of one layer."""
    random = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, tokens, H, K, generator=random) for _ in range(2))
    v = torch.randn(1, tokens, HV, V, generator=random)
    g = -torch.rand(1, tokens, HV, generator=random)
    beta = torch.rand(1, tokens, HV, generator=random)
    return q, k, v, g, beta


def starts(lengths):
    """Lengths to cu_seqlens."""
    return [0, *torch.tensor(lengths).cumsum(0).tolist()]


def pack(pieces):
    """Inputs of several sequences to one packed batch."""
    return [torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True)]


def run(lengths, layers, states):
    """All layers over one packed batch. The metadata is built once; every layer takes it."""
    meta = gdn_dispatch.build_chunk_meta(gdn_dispatch.plan_batch(starts(lengths)), "cpu")
    outputs, new_states = [], []
    for tensors, state in zip(layers, states, strict=True):
        o, state = gdn_dispatch.chunk_gated_delta_rule(
            *tensors,
            initial_state=state,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
            meta=meta,
        )
        outputs.append(o)
        new_states.append(state)
    return outputs, new_states


sequences = [[inputs(n, 10 * layer + i) for i, n in enumerate(LENGTHS)] for layer in range(LAYERS)]
empty = [None] * LAYERS

whole, whole_states = run(LENGTHS, [pack(layer) for layer in sequences], empty)

half = [n // 2 for n in LENGTHS]
rest = [n - h for n, h in zip(LENGTHS, half, strict=True)]
first = [
    pack([[x[:, :h] for x in s] for s, h in zip(layer, half, strict=True)]) for layer in sequences
]
second = [
    pack([[x[:, h:] for x in s] for s, h in zip(layer, half, strict=True)]) for layer in sequences
]
_, states = run(half, first, empty)
_, states = run(rest, second, states)

difference = max((a - b).abs().max().item() for a, b in zip(whole_states, states, strict=True))
print(f"backend: {gdn_dispatch.current_backend('cpu')}")
print(f"{sum(LENGTHS)} tokens in {len(LENGTHS)} sequences, {LAYERS} layers, one metadata")
print(f"whole against two pieces: largest difference of the states {difference:.1e}")
if difference > 1e-5:
    raise SystemExit("the pieces do not add up to the whole")
