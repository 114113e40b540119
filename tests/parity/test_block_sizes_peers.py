"""Our block sizes are those of vLLM 0.33, whose own functions run here; two differences are exact.

vLLM is installed without its dependencies and not imported: the definitions of ``NEEDED`` are taken
out of its files and run on a configuration that holds what they look at.
"""

import __future__

import ast
import contextlib
import dataclasses
import enum
import fractions
import importlib.metadata
import itertools
import math
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gdn_dispatch.plan.block_pages import up_to
from gdn_dispatch.plan.block_sizes import AttentionShape, StateShape, vllm_block_size

VERSION = "0.33.0"

WHOLE = None
"""In place of a list of methods: the class as it is."""

NEEDED = {
    "vllm/utils/math_utils.py": {"cdiv": WHOLE, "round_up": WHOLE},
    "vllm/utils/torch_utils.py": {
        "STR_DTYPE_TO_TORCH_DTYPE": WHOLE,
        "get_dtype_size": WHOLE,
        "get_kv_cache_torch_dtype": WHOLE,
    },
    "vllm/distributed/utils.py": {"ensure_divisibility": WHOLE, "divide": WHOLE},
    "vllm/config/cache.py": {"CacheConfig": ["DEFAULT_BLOCK_SIZE"]},
    "vllm/config/model.py": {"ModelConfig": ["get_num_kv_heads", "get_head_size"]},
    "vllm/v1/attention/backend.py": {
        "MultipleOf": WHOLE,
        "AttentionBackend": [
            "customize_spec", "get_preferred_block_size", "is_ssm", "supports_block_size",
        ],
    },
    "vllm/v1/kv_cache_interface.py": {
        "KVQuantMode": WHOLE,
        "SparseCacheRole": WHOLE,
        "KVCacheSpec": WHOLE,
        "AttentionSpec": WHOLE,
        "FullAttentionSpec": WHOLE,
        "_apply_alignment_padding": WHOLE,
        "MLAAttentionSpec": WHOLE,
        "MambaSpec": WHOLE,
    },
    "vllm/v1/core/kv_cache_planning.py": {"unify_kv_cache_spec_page_size": WHOLE},
    "vllm/model_executor/layers/mamba/abstract.py": {
        "get_mamba_prefill_checkpoint_alignment": WHOLE
    },
    "vllm/model_executor/layers/mamba/mamba_utils.py": {
        "MambaStateDtypeCalculator": ["_mamba_state_dtype", "gated_delta_net_state_dtype"],
        "MambaStateShapeCalculator": ["_orient_conv_shape", "gated_delta_net_state_shape"],
    },
    "vllm/model_executor/models/qwen3_next.py": {
        "Qwen3NextForCausalLM": [
            "get_mamba_state_dtype_from_config", "get_mamba_state_shape_from_config",
        ]
    },
    "vllm/platforms/interface.py": {
        "Platform": [
            "_align_hybrid_block_size", "_check_aligned_block_size", "_find_non_ssm_backends",
            "_preferred_block_size_for_backends", "update_block_size_for_backend",
        ]
    },
    "vllm/platforms/xpu.py": {"XPUPlatform": ["update_block_size_for_backend"]},
    "vllm/platforms/cpu.py": {"CpuPlatform": ["update_block_size_for_backend"]},
}  # fmt: skip


class _OwnImports(ast.NodeTransformer):
    """Drops vLLM's imports of itself inside functions: the names are there."""

    def visit_ImportFrom(self, node):
        own = (node.module or "").partition(".")[0] == "vllm"
        return ast.copy_location(ast.Pass(), node) if own else node


def name_of(node):
    """What a statement defines."""
    if isinstance(node, ast.Assign):
        return getattr(node.targets[0], "id", None)
    return getattr(node, "name", None) or getattr(getattr(node, "target", None), "id", None)


def reduced(node, members, known):
    """``node`` without what it would need a GPU stack for."""
    if isinstance(node, ast.ClassDef):
        node.bases = [base for base in node.bases if getattr(base, "id", None) in known]
        node.decorator_list = [d for d in node.decorator_list if "dataclass" in ast.unparse(d)]
        if members is not WHOLE:
            node.body = [child for child in node.body if name_of(child) in members]
            assert sorted(map(name_of, node.body)) == sorted(members)
    return ast.fix_missing_locations(_OwnImports().visit(node))


def layers_of(vllm_config, kind):
    return {name: layer for name, layer in vllm_config.layers.items() if isinstance(layer, kind)}


class AttentionLayerBase:
    def __init__(self, backend):
        self.get_attn_backend = lambda: backend


class MambaBase(AttentionLayerBase):
    def __init__(self, backend, checkpoints):
        super().__init__(backend)
        self.get_prefill_checkpoint_alignment = lambda: checkpoints


@pytest.fixture(scope="module")
def vllm():
    """vLLM's definitions, as attributes."""
    try:
        wheel = importlib.metadata.distribution("vllm")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"vllm is not installed: pip install --no-deps vllm=={VERSION}")
    if wheel.version != VERSION:
        pytest.skip(f"vllm {wheel.version} is installed, not {VERSION}")
    names = {
        "__name__": "builtins",  # dataclasses look their annotations' module up
        "dataclass": dataclasses.dataclass, "field": dataclasses.field,
        "replace": dataclasses.replace, "lcm": math.lcm,
        "Enum": enum.Enum, "IntEnum": enum.IntEnum, "Fraction": fractions.Fraction, "torch": torch,
        "itertools": itertools, "math": math, "prod": math.prod,
        "logger": SimpleNamespace(info=lambda *words: None),
        "set_current_vllm_config": lambda config: contextlib.nullcontext(),
        "get_layers_from_vllm_config": layers_of, "is_conv_state_dim_first": lambda: True,
        "AttentionLayerBase": AttentionLayerBase, "MambaBase": MambaBase,
        "MambaAttentionBackendEnum": SimpleNamespace(MAMBA2="MAMBA2"),
        "get_kv_quant_mode": lambda cache_dtype: None,
    }  # fmt: skip
    for path, wanted in NEEDED.items():
        tree = ast.parse(Path(str(wheel.locate_file(path))).read_text(encoding="utf-8"))
        found = [node for node in tree.body if name_of(node) in wanted]
        assert {name_of(node) for node in found} == set(wanted), path
        for node in found:
            module = ast.Module([reduced(node, wanted[name_of(node)], names)], [])
            flags = __future__.annotations.compiler_flag
            exec(compile(module, path, "exec", flags, dont_inherit=True), names)
    resolved = names["Qwen3NextForCausalLM"], "Qwen3NextForCausalLM"
    names["ModelRegistry"] = SimpleNamespace(resolve_model_cls=lambda *_, **__: resolved)
    return SimpleNamespace(**names)


def backend(vllm, sizes, name="ATTN", ssm=False):
    """An attention backend class with these kernel blocks, that is vLLM's otherwise."""
    own = {
        "get_name": staticmethod(lambda: name),
        "get_supported_kernel_block_sizes": staticmethod(lambda: list(sizes)),
        "is_ssm": classmethod(lambda cls: ssm),
    }
    return type(name, (vllm.AttentionBackend,), own)


def configuration(vllm, case):
    """What vLLM's functions look at, for ``case``."""
    state, attention = case.state, case.attention
    model = vllm.ModelConfig()
    model.use_mla, model.is_hybrid, model.architecture = attention.mla, True, "model"
    model.dtype = getattr(torch, state.conv_dtype)
    model.model_arch_config = SimpleNamespace(
        total_num_kv_heads=attention.num_kv_heads, head_size=attention.head_dim
    )
    model.hf_config = SimpleNamespace(
        linear_num_key_heads=state.num_heads, linear_num_value_heads=state.num_v_heads,
        linear_key_head_dim=state.head_dim_k, linear_value_head_dim=state.head_dim_v,
        linear_conv_kernel_dim=state.conv_width,
    )  # fmt: skip
    model.hf_text_config = model.hf_config
    kernels = [backend(vllm, sizes) for sizes in case.kernel_blocks(vllm)]
    layers = {f"attention.{i}": AttentionLayerBase(kernel) for i, kernel in enumerate(kernels)}
    gdn = backend(vllm, [vllm.MultipleOf(1)], "GDN_ATTN", ssm=True)
    layers["gdn"] = MambaBase(gdn, case.checkpoint_multiple)
    default = vllm.CacheConfig.DEFAULT_BLOCK_SIZE
    drafts = case.num_speculative_tokens
    return SimpleNamespace(
        layers=layers,
        model_config=model,
        parallel_config=SimpleNamespace(tensor_parallel_size=case.tp),
        speculative_config=SimpleNamespace(num_speculative_tokens=drafts) if drafts else None,
        cache_config=SimpleNamespace(
            block_size=case.block_size or default,
            user_specified_block_size=case.block_size is not None,
            cache_dtype="auto" if attention.kv_dtype == state.conv_dtype else attention.kv_dtype,
            kv_cache_dtype_skip_layers=[],
            mamba_cache_dtype="auto",
            mamba_ssm_cache_dtype=state.state_dtype,
            mamba_cache_mode=case.cache_mode,
            mamba_block_size=None,
            mamba_page_size_padded=None,
        ),
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, how it is served, and on what: ``platform`` is a class of vLLM's."""

    platform: str
    state: StateShape
    attention: AttentionShape
    attention_multiples: tuple[int, ...] = (16,)
    tp: int = 1
    cache_mode: str = "none"
    checkpoint_multiple: int | None = None
    num_speculative_tokens: int = 0
    block_size: int | None = None

    def kernel_blocks(self, vllm):
        """Multiples as most backends declare them; 16 as FlashInfer does."""
        return [
            (16, 32, 64) if m == 16 and self.tp == 2 else (vllm.MultipleOf(m),)
            for m in self.attention_multiples
        ]

    def ours(self):
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        platform = fields.pop("platform")
        return vllm_block_size(
            **fields,
            backend_multiple=64 if platform == "XPUPlatform" else 1,
            default_block_size=128 if platform == "CpuPlatform" else 16,
        )

    def vllms(self, vllm):
        """Block size, pages of attention and of a state, and the state's own block size."""
        config = configuration(vllm, self)
        getattr(vllm, self.platform).update_block_size_for_backend(config)
        cache, model = config.cache_config, vllm.Qwen3NextForCausalLM
        state = vllm.MambaSpec(
            shapes=model.get_mamba_state_shape_from_config(config),
            dtypes=model.get_mamba_state_dtype_from_config(config),
            page_size_padded=cache.mamba_page_size_padded,
            block_size=cache.block_size,
        )
        kv_dtype = getattr(torch, self.attention.kv_dtype, torch.uint8)
        heads = config.model_config.get_num_kv_heads(config.parallel_config)
        spec = vllm.MLAAttentionSpec if self.attention.mla else vllm.FullAttentionSpec
        attention = spec(
            block_size=cache.block_size,
            num_kv_heads=heads,
            head_size=self.attention.head_dim,
            dtype=kv_dtype,
        )
        return SimpleNamespace(
            block_size=cache.block_size,
            attention=attention,
            state=state,
            state_block_size=cache.mamba_block_size,
        )


def random_case(rng):
    platform = rng.choice(["Platform", "XPUPlatform", "CpuPlatform"])
    tp = rng.choice([1, 2, 4, 8])
    heads = tp * rng.randint(1, 16)
    dtype = rng.choice(["bfloat16", "float16", "float32"])
    state = StateShape(
        heads, heads * rng.randint(1, 4), rng.choice([64, 96, 128, 256]),
        rng.choice([64, 128, 192, 256]), rng.choice([1, 1, 2, 4, 4, 5]), dtype,
        rng.choice(["bfloat16", "float32"]),
    )  # fmt: skip
    mla = rng.random() < 0.1
    attention = AttentionShape(
        rng.choice([1, 2, 4, 8, 16, 32]), 576 if mla else rng.choice([64, 96, 128, 192, 256]),
        rng.choice([dtype, dtype, "fp8"]), mla,
    )  # fmt: skip
    usual = {"Platform": [16, 16, 32, 64, 128], "XPUPlatform": [16, 64], "CpuPlatform": [32]}
    multiples = tuple(rng.choices(usual[platform], k=rng.choice([1, 1, 2])))
    mode = rng.choice(["none", "align"])
    return Case(
        platform,
        state,
        attention,
        attention_multiples=multiples,
        tp=tp,
        cache_mode=mode,
        checkpoint_multiple=rng.choice([None, 64, 128]) if mode == "align" else None,
        num_speculative_tokens=rng.choice([0, 0, 0, 1, 5]),
        block_size=rng.choice([None, math.lcm(*multiples) * rng.randint(1, rng.choice([6, 80]))]),
    )


def test_2000_random_configurations(vllm):
    rng = random.Random(33)
    seen = Counter()
    for _ in range(2000):
        case = random_case(rng)
        ours, theirs = case.ours(), case.vllms(vllm)
        seen[case.platform] += 1
        if case.attention.mla and theirs.block_size % 128:
            seen["no multiple of 128 with MLA"] += 1
            assert case.block_size, case
            assert ours.block_size == up_to(theirs.block_size, 128), case
            continue
        assert ours.block_size == theirs.block_size, case
        assert ours.state_block_size == theirs.state_block_size, case
        assert ours.page_bytes == theirs.attention.page_size_bytes, case
        if theirs.state.page_size_bytes != theirs.attention.page_size_bytes:
            seen["unequal pages"] += 1
            assert case.platform == "XPUPlatform", case
            assert theirs.state.page_size_bytes == ours.state_bytes < ours.page_bytes, case
            assert "an exact fit" in ours.steps[-1].why, case
        else:
            seen["padded" if ours.padding_bytes else "exact"] += 1
            assert ours.page_bytes == theirs.state.page_size_bytes, case
    assert min(seen.values()) >= 5, seen
    assert len(seen) == 7, seen


EXACT = Case("XPUPlatform", StateShape(16, 32, 128, 128), AttentionShape(2, 128))
"""Qwen3-Next with half the head width: a state is 1072 tokens, a multiple of 16 and not of 64."""


def test_an_exact_fit_that_grows_leaves_vllms_pages_unequal_and_ours_equal(vllm):
    ours, theirs = EXACT.ours(), EXACT.vllms(vllm)
    assert ours.block_size == theirs.block_size == 1088
    assert theirs.state.page_size_padded is None
    assert theirs.state.page_size_bytes == 1072 * 1024
    assert theirs.attention.page_size_bytes == ours.page_bytes == 1088 * 1024


def test_vllms_planning_of_the_pool_then_finds_our_page(vllm):
    theirs = EXACT.vllms(vllm)
    layers = {"attention": theirs.attention, "gdn": theirs.state}
    planned = vllm.unify_kv_cache_spec_page_size(layers)
    assert {spec.page_size_bytes for spec in planned.values()} == {EXACT.ours().page_bytes}


def test_a_padded_page_grows_on_both_sides(vllm):
    case = dataclasses.replace(EXACT, attention=AttentionShape(2, 256))
    ours, theirs = case.ours(), case.vllms(vllm)
    assert ours.block_size == theirs.block_size == 576
    assert ours.page_bytes == theirs.state.page_size_padded == theirs.attention.page_size_bytes


def test_vllm_lets_a_block_through_that_is_no_multiple_of_128_with_mla(vllm):
    case = dataclasses.replace(
        EXACT, platform="Platform", attention=AttentionShape(1, 576, mla=True), block_size=192
    )
    assert case.vllms(vllm).block_size == 960
    assert case.ours().block_size == 1024
