"""``blocksize`` prints the block size, every step that led to it, or what to pass instead."""

import json
import sys
import types
from importlib import metadata

import pytest
from gdn_dispatch_xpu import plugin as xpu

from gdn_dispatch.cli import main
from gdn_dispatch.config import read
from gdn_dispatch.plan.block_sizes import AttentionShape, StateShape, vllm_block_size
from gdn_dispatch.plugins.discovery import GROUP
from gdn_dispatch.plugins.manager import load
from gdn_dispatch.selection import dispatch
from gdn_dispatch.testing.loopback import Loopback, loopback

QWEN3_NEXT = {
    "model_type": "qwen3_next", "dtype": "bfloat16", "num_attention_heads": 16,
    "num_key_value_heads": 2, "head_dim": 256, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
LANGUAGE = QWEN3_NEXT | {
    "model_type": "qwen3_5_text", "dtype": None, "num_key_value_heads": 4,
    "mamba_ssm_dtype": "float32",
}  # fmt: skip
QWEN3_5 = {"model_type": "qwen3_5", "dtype": "bfloat16", "text_config": LANGUAGE}

GROWN = """\
model        qwen3_next: H=16, HV=32, K=128, V=128, W=4, state bfloat16 (the model's), \
2 key-value heads of 256
requested    vllm with tp=4, backend xpu (multiple 64, declared), cache mode none
convolution   12288 bytes   3 columns (W - 1) x 2048 channels x 2 (bfloat16)
recurrent    262144 bytes   8 value heads x 128 x 128 x 2 (bfloat16)
state        274432 bytes   both, in one page
token          1024 bytes   1 key-value head x (key + value) x 256 x 2 (bfloat16)
start            16 tokens  the engine's default
fit             272 tokens  268 tokens hold 274432 bytes; up to a multiple of 16
block           320 tokens  up from 272 to a multiple of 64 for the GDN backend
page         327680 bytes   320 tokens x 1024 bytes; the same for attention and state
padding       53248 bytes   19.40% of the state
320 tokens per attention block, 327680 bytes per page (19.40% padding); \
the last state of a sequence is kept
"""

EXACT = """\
model        qwen3_next: H=16, HV=32, K=128, V=128, W=4, state bfloat16 (the model's), \
2 key-value heads of 128
requested    vllm with tp=1, backend xpu (multiple 64, declared), cache mode align
convolution    49152 bytes   3 columns (W - 1) x 8192 channels x 2 (bfloat16)
recurrent    1048576 bytes   32 value heads x 128 x 128 x 2 (bfloat16)
state        1097728 bytes   both, in one page
token           1024 bytes   2 key-value heads x (key + value) x 128 x 2 (bfloat16)
start             16 tokens  the engine's default
fit             1072 tokens  1072 tokens hold 1097728 bytes; up to a multiple of 16
block           1088 tokens  up from 1072 to a multiple of 64 for the GDN backend
page         1114112 bytes   1088 tokens x 1024 bytes; the same for attention and state
padding        16384 bytes   1.49% of the state; 1072 tokens were an exact fit, \
and the state's page grows too
1088 tokens per attention block, 1114112 bytes per page (1.49% padding); \
states are kept every 1088 tokens
"""

ASKED = """\
model        qwen3_next: H=16, HV=32, K=128, V=128, W=4, state bfloat16 (the model's), \
2 key-value heads of 256
requested    vllm with tp=1, backend xpu (multiple 16, by hand), cache mode align
convolution    98304 bytes   6 columns (W - 1 + 3 drafts) x 8192 channels x 2 (bfloat16)
recurrent    1048576 bytes   32 value heads x 128 x 128 x 2 (bfloat16)
state        1146880 bytes   both, in one page
token           2048 bytes   2 key-value heads x (key + value) x 256 x 2 (bfloat16)
start             96 tokens  asked for; grows in strides of itself
stride           192 tokens  states are kept at multiples of 64
fit              576 tokens  560 tokens hold 1146880 bytes; up to a multiple of 192
block            576 tokens  already a multiple of 32 for the attention kernels, \
16 for the GDN backend and 64 for kept states
page         1179648 bytes   576 tokens x 2048 bytes; the same for attention and state
padding        32768 bytes   2.86% of the state
576 tokens per attention block, 1179648 bytes per page (2.86% padding); \
states are kept every 576 tokens
"""

ASCEND = """\
model        qwen3_5_text: H=16, HV=32, K=128, V=128, W=4, state float32 (mamba_ssm_dtype), \
4 key-value heads of 256
requested    vllm-ascend with tp=2, backend ascend (multiple 128, by hand), cache mode none
convolution    24576 bytes   3 columns (W - 1) x 4096 channels x 2 (bfloat16)
recurrent    1048576 bytes   16 value heads x 128 x 128 x 4 (float32)
token           2048 bytes   2 key-value heads x (key + value) x 256 x 2 (bfloat16)
keys            1024 bytes   half of the 2048 of a token
block           1024 tokens  the keys of 1024 tokens are 1048576 bytes; a multiple of 128
page         2121728 bytes   1024 tokens x 2048 bytes, and 24576 for the convolution; \
the same for attention and state
padding      1048576 bytes   97.71% of the state
1024 tokens per attention block, 2121728 bytes per page (97.71% padding); \
the last state of a sequence is kept
"""


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """The XPU backend, one for NPUs, one that is disabled and one that cannot be imported."""
    before = dispatch.active_registry(), dispatch.active_config()
    config = read({"GDN_DISPATCH_DISABLE": "acme"})
    plugins = {
        "xpu": Loopback(xpu.backend_info()),
        "huge": loopback("huge", "npu", block_size_multiple=256),
    }
    entry_points = [metadata.EntryPoint(name, "no_such_sdk", GROUP) for name in ("acme", "cuda")]
    for name, plugin in plugins.items():
        module = types.ModuleType(f"fake_{name}")
        module.plugin = plugin
        monkeypatch.setitem(sys.modules, module.__name__, module)
        entry_points.append(metadata.EntryPoint(name, f"fake_{name}:plugin", GROUP))
    dispatch.install(load(config, entry_points=entry_points), config)
    yield
    dispatch.install(*before)


@pytest.fixture
def blocksize(tmp_path, capsys):
    """Run the command on a config; returns exit code, output and errors."""

    def blocksize(config, *words):
        path = tmp_path / "config.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
        code = main(["blocksize", str(path), *words])
        return code, *capsys.readouterr()

    return blocksize


@pytest.mark.parametrize(
    ("config", "words", "text"),
    [
        (QWEN3_NEXT, "--tp 4 --backend xpu", GROWN),
        (QWEN3_NEXT | {"head_dim": 128}, "--backend xpu --cache-mode align", EXACT),
        (
            QWEN3_NEXT,
            "--backend xpu --multiple 16 --attention-multiple 16 --attention-multiple 32 "
            "--block-size 96 --cache-mode align --checkpoint-multiple 64 "
            "--num-speculative-tokens 3",
            ASKED,
        ),
        (QWEN3_5, "--tp 2 --backend ascend --multiple 128", ASCEND),
    ],
)
def test_every_step_has_its_reason(blocksize, config, words, text):
    assert blocksize(config, *words.split()) == (0, text, "")


@pytest.mark.parametrize(
    ("config", "blocks"),
    [(QWEN3_NEXT, [576, 576, 320, 192]), (QWEN3_5, [576, 576, 576, 320])],
)
def test_blocks_on_xpu(blocksize, config, blocks):
    for tp, block in zip((1, 2, 4, 8), blocks, strict=True):
        words = ["--tp", str(tp), "--backend", "xpu", "--json"]
        code, out, _ = blocksize(config, *words)
        assert (code, json.loads(out)["block_size"]) == (0, block)


def test_json_holds_every_step(blocksize):
    _, out, _ = blocksize(QWEN3_NEXT, "--backend", "xpu", "--kv-dtype", "fp8", "--json")
    record = json.loads(out)
    assert list(record) == [
        "model", "asked", "block_size", "page_bytes", "state_bytes", "token_bytes",
        "padding_bytes", "padding_percent", "state_block_size", "steps",
    ]  # fmt: skip
    sizes = vllm_block_size(
        StateShape(16, 32, 128, 128), AttentionShape(2, 256, "fp8"), backend_multiple=64
    )
    assert record["steps"] == [step._asdict() for step in sizes.steps]
    assert record["page_bytes"] == sizes.page_bytes
    assert record["padding_percent"] == sizes.padding_percent
    assert record["asked"] == {
        "engine": "vllm", "tp": 1, "backend": "xpu", "multiple": 64, "multiple_from": "declared",
        "cache_mode": "none", "num_speculative_tokens": 0, "block_size": None,
    }  # fmt: skip


def test_a_folder_stands_for_its_config(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_NEXT))
    assert main(["blocksize", str(tmp_path), "--backend", "xpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("576 tokens per attention block")


def test_vllm_starts_larger_on_a_cpu(blocksize):
    assert "start            128 tokens" in blocksize(QWEN3_NEXT, "--backend", "torch")[1]


@pytest.mark.parametrize(("words", "engine"), [([], "vllm-ascend"), (["--engine", "vllm"], "vllm")])
def test_backends_for_npu_have_their_own_engine(blocksize, words, engine):
    _, out, _ = blocksize(QWEN3_NEXT, "--backend", "huge", *words)
    assert f"requested    {engine} with" in out
    assert "backend huge (multiple 256, declared)" in out


def test_states_of_every_block_lie_on_the_backends_chunks(blocksize):
    _, out, _ = blocksize(QWEN3_NEXT, "--backend", "xpu", "--cache-mode", "all")
    assert "states are kept at multiples of 64" in out
    code, _, err = blocksize(
        QWEN3_NEXT, "--backend", "xpu", "--cache-mode", "all", "--multiple", "1"
    )  # fmt: skip
    assert code == 2
    assert "checkpoint_multiple: got None with cache_mode 'all'" in err


def test_a_packed_cache_has_the_bytes_it_is_said_to_have(blocksize):
    words = ["--backend", "xpu", "--kv-dtype", "turboquant_k8v4"]
    assert "pass token_bytes" in blocksize(QWEN3_NEXT, *words)[2]
    _, out, _ = blocksize(QWEN3_NEXT, *words, "--token-bytes", "784")
    assert "token            784 bytes   as given" in out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--backend ascend", "backend 'ascend' is not installed, so its multiple is not known\n"
         "Install it (pip install gdn-dispatch-ascend; no device is needed for this), "
         "or say the multiple by hand: --multiple N\n"),
        ("--backend xqu", "backend 'xqu' is not installed, so its multiple is not known\n"
         "Did you mean 'xpu'? Or say the multiple by hand: --multiple N\n"),
        ("--backend tenstorrent", "backend 'tenstorrent' is not installed, so its multiple is not "
         "known\nSay the multiple by hand: --multiple N\n"),
        ("--backend acme", "backend 'acme' is not loaded, so its multiple is not known: disabled "
         "by GDN_DISPATCH_DISABLE\n"),
        ("--backend cuda", "backend 'cuda' is not loaded, so its multiple is not known: "
         "ModuleNotFoundError: No module named 'no_such_sdk'\n"),
        ("--backend xpu/sycl", "backend: got 'xpu/sycl', expected 'xpu'; a multiple is the "
         "backend's, not a provider's\n"),
        ("--backend a/b/c", "backend: got 'a/b/c'"),
        ("--backend xpu --multiple 0", "backend_multiple: got 0"),
        ("--backend xpu --tp 3", "tp: got 3"),
        ("--backend xpu --block-size 100", "block_size: got 100"),
        ("--backend xpu --cache-mode some", "cache_mode: got 'some'"),
        ("--backend xpu --engine sglang", "engine: got 'sglang', expected vllm or vllm-ascend"),
        ("--backend huge --attention-multiple 16", "attention_multiple: got [16] with vllm-ascend"),
        ("--backend huge --checkpoint-multiple 64", "checkpoint_multiple: got 64 with vllm-ascend"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_with_the_way_out(blocksize, words, complaint):
    code, out, err = blocksize(QWEN3_NEXT, *words.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {complaint}")


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"model_type": "llama"}, "model_type 'llama', expected one of qwen3_next"),
        ({key: QWEN3_NEXT[key] for key in QWEN3_NEXT if key != "head_dim"}, "no head_dim"),
        ("{", "expected JSON"),
        ("[]", "no JSON object"),
    ],
)
def test_another_file_is_refused(blocksize, config, complaint):
    code, out, err = blocksize(config, "--backend", "xpu")
    assert (code, out) == (2, "")
    assert err.startswith("error: model_config: got ")
    assert complaint in err


def test_a_name_is_not_downloaded(capsys):
    assert main(["blocksize", "Qwen/Qwen3-Next-80B-A3B-Instruct", "--backend", "xpu"]) == 2
    assert "nothing is downloaded" in capsys.readouterr().err


def test_help_says_what_the_exit_codes_mean(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["blocksize", "--help"])
    assert "exit codes: 0, a block size was found; 2, refused" in capsys.readouterr().out
