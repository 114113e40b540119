"""How many tokens an attention block has in a model with Gated DeltaNet layers, and why.

Such a model keeps in one pool of pages what grows with a sequence, keys and values, and what does
not, the states of its Gated DeltaNet layers. A page therefore holds a block of tokens or one state,
and the block is made long enough for a state, and a multiple of what every kernel asks for. The
state is padded to the same page.

Backends declare their multiple (``BackendInfo.block_size_multiple``); the arithmetic is that of the
engine: vLLM's here, vllm-ascend's in ``block_ascend``. The result holds every number on the way
with its reason. Sizes of pages are in bytes, of blocks in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, Final

from gdn_dispatch.errors import InvalidArgumentError
from gdn_dispatch.plan.block_pages import AttentionShape, StateShape, Step, at_least, up_to

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "CACHE_MODES",
    "AttentionShape",
    "BlockSizes",
    "StateShape",
    "Step",
    "check_cache_mode",
    "page_steps",
    "vllm_block_size",
]

CACHE_MODES: Final = ("none", "align", "all")
"""Which states an engine keeps: the last one, those its steps end on, or those of every block."""

MLA_MULTIPLE: Final = 128
"""Tokens a block is a multiple of with MLA: what TRTLLM's decode kernels in FlashInfer ask for."""


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """An attention block and its page, and how they came about.

    Attributes:
        block_size: Tokens of an attention block.
        page_bytes: Bytes of a page, of attention and of Gated DeltaNet alike: the padded page.
        state_bytes: Bytes of it that a state fills.
        token_bytes: Bytes of a token's keys and values.
        state_block_size: Tokens from one state that is kept to the next, or None: only the last is.
        steps: Every number on the way, with its reason.
    """

    block_size: int
    page_bytes: int
    state_bytes: int
    token_bytes: int
    state_block_size: int | None
    steps: tuple[Step, ...]

    @property
    def padding_bytes(self) -> int:
        """Bytes of a page that a state leaves empty."""
        return self.page_bytes - self.state_bytes

    @property
    def padding_percent(self) -> float:
        """The same, in percent of the state, as vLLM logs it."""
        return 100 * self.padding_bytes / self.state_bytes


def vllm_block_size(
    state: StateShape,
    attention: AttentionShape,
    *,
    attention_multiples: Sequence[int] = (16,),
    backend_multiple: int = 1,
    tp: int = 1,
    cache_mode: str = "none",
    checkpoint_multiple: int | None = None,
    num_speculative_tokens: int = 0,
    block_size: int | None = None,
    default_block_size: int = 16,
) -> BlockSizes:
    """The block size of vLLM 0.33, with every page equal.

    With state and token as in ``block_pages``, kernels the lcm of ``attention_multiples``,
    checkpoints ``checkpoint_multiple`` or 1, mla 128 with MLA and else 1, and up(x, m) the smallest
    multiple of m that is at least x::

        start   block_size, or default_block_size where kernels divides it, or kernels
        stride  lcm(max(start, mla), checkpoints)
        fit     up(state / token, stride)
        block   up(fit, lcm(kernels, backend_multiple, checkpoints, mla))
        page    block * token

    The source is ``Platform.update_block_size_for_backend`` with ``_align_hybrid_block_size``, and
    for ``backend_multiple`` its override for XPU, where it is 64. Two results differ from vLLM's:

    * Where a state fills its block exactly and the block then grows to the backend's multiple, that
      override leaves the state's page as it was: the pages it settles on are unequal, and it takes
      vLLM's planning of the pool to pad the state after all. Here there is one page throughout.
    * With MLA, vLLM means a multiple of 128, but lets a larger ``block_size`` through that is none.

    ``align`` is vLLM's mode for cached prefixes. ``all`` is that of earlier releases, whose
    arithmetic was the same with the chunk size of the kernels as the checkpoint multiple.

    Args:
        state: What a Gated DeltaNet layer keeps of a sequence.
        attention: What an attention layer keeps of a token.
        attention_multiples: For every attention backend of the model the smallest block its kernels
            take: 16 for FlashAttention, Triton and FlashInfer, 64 for FlashAttention on XPU, 32 on
            a CPU.
        backend_multiple: ``BackendInfo.block_size_multiple`` of the Gated DeltaNet backend.
        tp: Ranks of tensor parallelism.
        cache_mode: One of ``CACHE_MODES``.
        checkpoint_multiple: What offsets of states kept inside a step are multiples of: the chunk
            size of the kernels. Needed with ``all``; with ``align`` only where prefill exports such
            states, as FlashInfer's does (64); refused with ``none``.
        num_speculative_tokens: Draft tokens of a step.
        block_size: What the user asks for, a multiple of ``attention_multiples``. Never made
            smaller; where it is too small, it grows in strides of itself.
        default_block_size: Where vLLM starts if nobody asks: 16, but 128 on its CPU platform.

    Raises:
        InvalidArgumentError: A number is impossible, or two contradict each other.
    """
    if not attention_multiples:
        raise InvalidArgumentError(
            "attention_multiples", "none", "one multiple for every attention backend"
        )
    kernels = lcm(*(at_least(1, "attention_multiples", m) for m in attention_multiples))
    at_least(1, "backend_multiple", backend_multiple)
    at_least(1, "default_block_size", default_block_size)
    checkpoints = _checkpoint_multiple(cache_mode, checkpoint_multiple)
    conv, recurrent = state.steps(tp, num_speculative_tokens)
    need = Step("state", conv.value + recurrent.value, "bytes", "both, in one page")
    token = attention.step(tp)

    start = _start(block_size, default_block_size, kernels)
    stride = start.value
    reasons = []
    if attention.mla and stride < MLA_MULTIPLE:
        stride = MLA_MULTIPLE
        reasons.append(f"MLA asks for {MLA_MULTIPLE}")
    if stride % checkpoints:
        stride = lcm(stride, checkpoints)
        reasons.append(f"states are kept at multiples of {checkpoints}")
    steps = [conv, recurrent, need, token, start]
    if reasons:
        steps.append(Step("stride", stride, "tokens", "; ".join(reasons)))
    asked = {
        "the attention kernels": kernels,
        "the GDN backend": backend_multiple,
        "kept states": checkpoints,
        "MLA": MLA_MULTIPLE if attention.mla else 1,
    }
    multiple = lcm(*asked.values())
    tokens = -(-need.value // token.value)
    fit = up_to(tokens, stride)
    why = f"{tokens} tokens hold {need.value} bytes; up to a multiple of {stride}"
    if block_size is not None and block_size < fit > up_to(tokens, multiple):
        why += f"; block_size={up_to(tokens, multiple)} would do"
    steps.append(Step("fit", fit, "tokens", why))
    block = up_to(fit, multiple)
    steps.append(Step("block", block, "tokens", _why_aligned(fit, asked)))
    page = block * token.value
    steps += page_steps(page, need.value, f"{block} tokens x {token.value} bytes")
    if fit != block and fit * token.value == need.value:
        steps[-1] = steps[-1]._replace(
            why=f"{steps[-1].why}; {fit} tokens were an exact fit, and the state's page grows too"
        )
    return BlockSizes(
        block_size=block,
        page_bytes=page,
        state_bytes=need.value,
        token_bytes=token.value,
        state_block_size=None if cache_mode == "none" else block,
        steps=tuple(steps),
    )


def page_steps(page: int, state: int, why: str) -> Iterator[Step]:
    """The last lines of a trace: the page and what a state of so many bytes leaves of it empty."""
    yield Step("page", page, "bytes", f"{why}; the same for attention and state")
    percent = 100 * (page - state) / state
    yield Step("padding", page - state, "bytes", f"{percent:.2f}% of the state")


def check_cache_mode(cache_mode: str) -> None:
    """Refuse what is not one of ``CACHE_MODES``."""
    if cache_mode not in CACHE_MODES:
        raise InvalidArgumentError("cache_mode", repr(cache_mode), f"one of {_list(CACHE_MODES)}")


def _checkpoint_multiple(cache_mode: str, multiple: int | None) -> int:
    check_cache_mode(cache_mode)
    if multiple is None:
        if cache_mode != "all":
            return 1
        raise InvalidArgumentError(
            "checkpoint_multiple", "None with cache_mode 'all'", "the chunk size of the kernels"
        )
    if cache_mode == "none":
        raise InvalidArgumentError(
            "checkpoint_multiple", f"{multiple!r} with cache_mode 'none'",
            "None: no states are kept on the way", hint="or cache_mode 'align'",
        )  # fmt: skip
    return at_least(1, "checkpoint_multiple", multiple)


def _start(asked: int | None, default: int, kernels: int) -> Step:
    if asked is not None:
        if at_least(1, "block_size", asked) % kernels:
            raise InvalidArgumentError(
                "block_size",
                f"{asked}",
                f"a multiple of {kernels}, as the attention kernels take",
                hint=f"pass {up_to(asked, kernels)}",
            )
        return Step("start", asked, "tokens", "asked for; grows in strides of itself")
    if default % kernels:
        why = f"the attention kernels take multiples of {kernels}, so not the default of {default}"
        return Step("start", kernels, "tokens", why)
    return Step("start", default, "tokens", "the engine's default")


def _why_aligned(fit: int, asked: dict[str, int]) -> str:
    missed = [f"{multiple} for {who}" for who, multiple in asked.items() if fit % multiple]
    if missed:
        return f"up from {fit} to a multiple of {_list(missed)}"
    met = [f"{multiple} for {who}" for who, multiple in asked.items() if multiple > 1]
    return f"already a multiple of {_list(met)}" if met else "nothing else is asked for"


def _list(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
