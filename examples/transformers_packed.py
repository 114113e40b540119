"""Packed sequences through a transformers model, kept apart without padding.

On a CPU, transformers refuses packed input to Gated DeltaNet layers; here the model takes it, and
each sequence comes out as if it were alone. Any Qwen3-Next, Qwen3.5 or OLMo-Hybrid does; this one
is small and random.

Run: python examples/transformers_packed.py
"""

import torch
from transformers import AutoModelForCausalLM, Qwen3NextConfig

from gdn_dispatch.integrations import transformers as gdn

config = Qwen3NextConfig(
    vocab_size=256, hidden_size=64, num_hidden_layers=4, num_attention_heads=2,
    num_key_value_heads=1, head_dim=32, linear_num_key_heads=2, linear_num_value_heads=4,
    linear_key_head_dim=32, linear_value_head_dim=32, num_experts=4, num_experts_per_tok=2,
    moe_intermediate_size=32, shared_expert_intermediate_size=32, pad_token_id=None,
    bos_token_id=None, eos_token_id=None,
)  # fmt: skip
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(config).eval()
print(f"{gdn.inject(model)} layers run through gdn_dispatch")

texts = [
    "Call me Ishmael.",
    "It was the best of times, it was the worst of times",
    "Stately, plump",
]
sequences = [torch.tensor([list(text.encode())]) for text in texts]
lengths = [sequence.shape[1] for sequence in sequences]

with torch.inference_mode():
    # One row, no padding. The lengths become metadata once; all layers share it.
    packed = model(torch.cat(sequences, dim=1), **gdn.packed(lengths, device=model.device)).logits
    alone = torch.cat([model(sequence).logits for sequence in sequences], dim=1)

print(f"{len(lengths)} sequences of {lengths} tokens in one row of {packed.shape[1]}")
print(f"largest difference to one call per sequence: {(packed - alone).abs().max():.1e}")
