"""Tiny random models for vLLM and transformers to load: ``models.py JOB.json RESULT.json``.

The job: ``name``, ``to`` (a directory) and ``options`` of a function below; the result: ``path``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

LAYERS = ["linear_attention"] * 3 + ["full_attention"]


def sizes(vocab: int, head_k: int, head_v: int, heads: tuple[int, int] = (2, 4)) -> dict:
    return {
        "vocab_size": vocab,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": len(LAYERS),
        "layer_types": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": head_k,
        "linear_value_head_dim": head_v,
        "linear_num_key_heads": heads[0],
        "linear_num_value_heads": heads[1],
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def write_qwen3_5(
    to: Path, *, vocab=512, head_k=32, head_v=64, heads=(2, 4), dtype="float32", seed=0
) -> Path:
    """Dense. K differs from V, so that a state in the wrong layout cannot go unnoticed."""
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5ForCausalLM

    config = Qwen3_5TextConfig(**sizes(vocab, head_k, head_v, heads))
    return _write(Qwen3_5ForCausalLM, config, to, dtype, seed)


def write_qwen3_next(to: Path, *, vocab=512, head_k=32, head_v=64, dtype="float32", seed=0) -> Path:
    """Mixture of experts, projections interleaved per key head."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        **sizes(vocab, head_k, head_v),
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        norm_topk_prob=True,
    )
    return _write(Qwen3NextForCausalLM, config, to, dtype, seed)


def _write(cls: type, config: object, to: Path, dtype: str, seed: int) -> Path:
    torch.manual_seed(seed)
    cls(config).to(getattr(torch, dtype)).eval().save_pretrained(to)
    return to


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    write = {"qwen3_5": write_qwen3_5, "qwen3_next": write_qwen3_next}[job["name"]]
    path = write(Path(job["to"]), **job["options"])
    Path(sys.argv[2]).write_text(json.dumps({"path": str(path)}))


if __name__ == "__main__":
    main()
