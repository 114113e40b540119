"""``gdn-dispatch blocksize``: the attention block an engine has to use for a model, and why."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gdn_dispatch.errors import (
    BackendNotInstalledError,
    BackendUnavailableError,
    InvalidArgumentError,
)
from gdn_dispatch.plan.block_ascend import vllm_ascend_block_size
from gdn_dispatch.plan.block_models import read_model
from gdn_dispatch.plan.block_sizes import CACHE_MODES, vllm_block_size
from gdn_dispatch.plugins.registry import FailedPlugin
from gdn_dispatch.selection.choice import parse_choice
from gdn_dispatch.selection.dispatch import active_registry
from gdn_dispatch.selection.resolver import FROM_ARGUMENT, OFFICIAL

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from gdn_dispatch.plan.block_models import Model
    from gdn_dispatch.plan.block_sizes import BlockSizes

__all__ = ["add_arguments", "run"]

VLLM: Final = "vllm"
VLLM_ASCEND: Final = "vllm-ascend"

_DEFAULT_BLOCK: Final = {"cpu": 128}
"""Where vLLM starts if nobody asks, by device type; 16 elsewhere."""

_EPILOG: Final = """\
exit codes: 0, a block size was found; 2, refused, with the reason and what to pass instead.

MODEL-CONFIG is read from the disk, nothing is downloaded. A backend declares its multiple; where it
is not installed, --multiple says it by hand."""


@dataclass(frozen=True, slots=True)
class _Backend:
    """What of a backend counts here; ``source`` says where the multiple is from."""

    name: str
    device_type: str
    multiple: int
    chunk_size: int | None
    source: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What an engine is started with, and what its kernels ask for."""
    parser.epilog = _EPILOG
    integer: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("model", metavar="MODEL-CONFIG", help="a config.json, or its folder")
    parser.add_argument("--backend", required=True, metavar="NAME", help="of the GDN layers")
    parser.add_argument("--tp", default=1, **integer, help="tensor-parallel ranks (1)")
    parser.add_argument("--block-size", **integer, help="what the engine is told to use, in tokens")
    parser.add_argument(
        "--cache-mode", default="none", metavar="MODE",
        help=f"states kept for cached prefixes: {', '.join(CACHE_MODES)} (none)",
    )  # fmt: skip
    parser.add_argument(
        "--num-speculative-tokens", default=0, **integer, help="draft tokens of a step (0)"
    )
    parser.add_argument("--dtype", metavar="DTYPE", help="of the model, if not its config's")
    parser.add_argument("--state-dtype", metavar="DTYPE", help="of the recurrent state")
    parser.add_argument("--kv-dtype", metavar="DTYPE", help="of keys and values, such as fp8")
    parser.add_argument(
        "--token-bytes", **integer, help="of keys and values, where the cache is packed or scaled"
    )
    parser.add_argument(
        "--multiple", **integer, help="what the backend takes multiples of, in place of its own"
    )
    parser.add_argument(
        "--attention-multiple", action="append", **integer,
        help="what the attention kernels take multiples of (16); once for each attention backend",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint-multiple", **integer,
        help="what offsets of states kept inside a step are multiples of",
    )  # fmt: skip
    parser.add_argument(
        "--engine", metavar="NAME",
        help=f"whose arithmetic: {VLLM}, or {VLLM_ASCEND}, the default of backends for npu",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """0: there is a block size. Refusals are raised, and ``main`` makes them 2."""
    model = read_model(
        _read_config(args.model),
        dtype=args.dtype,
        state_dtype=args.state_dtype,
        kv_dtype=args.kv_dtype,
    )
    if args.token_bytes is not None:
        model = replace(model, attention=replace(model.attention, token_bytes=args.token_bytes))
    backend = _backend(args.backend, args.multiple)
    engine = args.engine or (VLLM_ASCEND if backend.device_type == "npu" else VLLM)
    sizes = _sizes(args, model, backend, engine)
    asked = {
        "engine": engine,
        "tp": args.tp,
        "backend": backend.name,
        "multiple": backend.multiple,
        "multiple_from": backend.source,
        "cache_mode": args.cache_mode,
        "num_speculative_tokens": args.num_speculative_tokens,
        "block_size": args.block_size,
    }
    if args.json:
        print(json.dumps(_record(model, asked, sizes), indent=2))
    else:
        print("\n".join(_lines(model, asked, sizes)))
    return 0


def _sizes(args: argparse.Namespace, model: Model, backend: _Backend, engine: str) -> BlockSizes:
    common: dict[str, Any] = {
        "backend_multiple": backend.multiple,
        "tp": args.tp,
        "cache_mode": args.cache_mode,
        "num_speculative_tokens": args.num_speculative_tokens,
        "block_size": args.block_size,
    }
    if engine == VLLM:
        checkpoints = args.checkpoint_multiple
        if checkpoints is None and args.cache_mode == "all":
            checkpoints = backend.chunk_size
        return vllm_block_size(
            model.state,
            model.attention,
            attention_multiples=args.attention_multiple or (16,),
            checkpoint_multiple=checkpoints,
            default_block_size=_DEFAULT_BLOCK.get(backend.device_type, 16),
            **common,
        )
    if engine != VLLM_ASCEND:
        raise InvalidArgumentError("engine", repr(engine), f"{VLLM} or {VLLM_ASCEND}")
    for name in ("attention_multiple", "checkpoint_multiple"):
        if getattr(args, name) is not None:
            raise InvalidArgumentError(
                name, f"{getattr(args, name)} with {VLLM_ASCEND}", "none",
                hint=f"its only multiple is the backend's; or --engine {VLLM}",
            )  # fmt: skip
    return vllm_ascend_block_size(model.state, model.attention, **common)


def _read_config(word: str) -> dict[str, Any]:
    path = Path(word)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        raise InvalidArgumentError(
            "model_config", f"{word!r}, where there is no such file",
            "the path of a config.json, or of the folder it is in",
            hint="nothing is downloaded: fetch the model's config.json first",
        )  # fmt: skip
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidArgumentError("model_config", f"{path}: {error}", "JSON") from error
    if not isinstance(config, dict):
        raise InvalidArgumentError("model_config", f"{path}: no JSON object", "a model's config")
    return config


def _backend(word: str, by_hand: int | None) -> _Backend:
    choice = parse_choice(word, FROM_ARGUMENT)
    name = str(choice.name)
    if choice.provider is not None:
        raise InvalidArgumentError(
            "backend", repr(word), f"{name!r}", hint="a multiple is the backend's, not a provider's"
        )
    if by_hand is not None:
        return _Backend(name, OFFICIAL.get(name, ""), by_hand, None, "by hand")
    registry = active_registry()
    if name not in registry.names:
        raise BackendNotInstalledError(_not_installed(name, registry.names))
    plugin = registry.plugins[name]
    if isinstance(plugin, FailedPlugin):
        raise BackendUnavailableError(
            f"backend {name!r} is not loaded, so its multiple is not known: {plugin.reason}\n"
            "Run `gdn-dispatch doctor` to see more, or say the multiple by hand: --multiple N"
        )
    info = plugin.info
    device_type = info.device_types[0] if info.device_types else ""
    source = " ".join(filter(None, [plugin.distribution, plugin.version])) or "declared"
    return _Backend(name, device_type, info.block_size_multiple, info.chunk_size, source)


def _not_installed(name: str, known: frozenset[str]) -> str:
    way_out = "Say the multiple by hand: --multiple N"
    if name in OFFICIAL:
        way_out = (
            f"Install it (pip install gdn-dispatch-{name}; no device is needed for this), "
            "or say the multiple by hand: --multiple N"
        )
    elif near := difflib.get_close_matches(name, {*known, *OFFICIAL}, n=1):
        way_out = f"Did you mean {near[0]!r}? Or say the multiple by hand: --multiple N"
    return f"backend {name!r} is not installed, so its multiple is not known\n{way_out}"


def _record(model: Model, asked: dict[str, Any], sizes: BlockSizes) -> dict[str, Any]:
    """Everything as plain data. The keys do not change from release to release."""
    return {
        "model": {
            "model_type": model.model_type,
            "state": asdict(model.state),
            "attention": asdict(model.attention),
        },
        "asked": asked,
        "block_size": sizes.block_size,
        "page_bytes": sizes.page_bytes,
        "state_bytes": sizes.state_bytes,
        "token_bytes": sizes.token_bytes,
        "padding_bytes": sizes.padding_bytes,
        "padding_percent": sizes.padding_percent,
        "state_block_size": sizes.state_block_size,
        "steps": [step._asdict() for step in sizes.steps],
    }


def _lines(model: Model, asked: dict[str, Any], sizes: BlockSizes) -> Iterator[str]:
    s, a = model.state, model.attention
    words = [
        f"{model.model_type}: H={s.num_heads}, HV={s.num_v_heads}, K={s.head_dim_k}",
        f"V={s.head_dim_v}, W={s.conv_width}, state {s.state_dtype} ({model.state_dtype_from})",
        f"{a.num_kv_heads} key-value heads of {a.head_dim}",
    ]
    yield f"model        {', '.join(words)}"
    words = [
        f"{asked['engine']} with tp={asked['tp']}",
        f"backend {asked['backend']} (multiple {asked['multiple']}, {asked['multiple_from']})",
        f"cache mode {asked['cache_mode']}",
    ]
    yield f"requested    {', '.join(words)}"
    width = max(len(str(step.value)) for step in sizes.steps)
    for step in sizes.steps:
        yield f"{step.name:12} {step.value:{width}} {step.unit:6}  {step.why}"
    kept = "the last state of a sequence is kept"
    if sizes.state_block_size is not None:
        kept = f"states are kept every {sizes.state_block_size} tokens"
    yield (
        f"{sizes.block_size} tokens per attention block, {sizes.page_bytes} bytes per page "
        f"({sizes.padding_percent:.2f}% padding); {kept}"
    )
