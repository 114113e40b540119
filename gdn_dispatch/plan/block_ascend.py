"""The attention block of vllm-ascend in a model with Gated DeltaNet layers, and its reasons."""

from __future__ import annotations

from gdn_dispatch.errors import InvalidArgumentError
from gdn_dispatch.plan.block_pages import AttentionShape, StateShape, Step, at_least, up_to
from gdn_dispatch.plan.block_sizes import BlockSizes, check_cache_mode, page_steps

__all__ = ["vllm_ascend_block_size"]


def vllm_ascend_block_size(
    state: StateShape,
    attention: AttentionShape,
    *,
    backend_multiple: int = 128,
    tp: int = 1,
    cache_mode: str = "none",
    num_speculative_tokens: int = 0,
    block_size: int | None = None,
) -> BlockSizes:
    """The block size of vllm-ascend, whose pages have three parts: keys, values, convolution.

    A block's keys and a recurrent state lie in the same bytes and fill them exactly; values lie
    behind them, and the convolution's history behind those. With state and token as in
    ``block_pages``, and up(x, m) the smallest multiple of m that is at least x::

        keys   token / 2
        block  up(recurrent / keys, backend_multiple), and block * keys = recurrent
        page   block * token + conv

    The source is ``vllm_ascend/patch/platform/patch_mamba_config.py``. A ``block_size`` that is
    smaller is replaced. A larger one is refused: vllm-ascend takes it, and writing keys then
    overwrites states (vllm-ascend #15408).

    Args:
        state: What a Gated DeltaNet layer keeps of a sequence.
        attention: What an attention layer keeps of a token; MLA is not covered.
        backend_multiple: ``BackendInfo.block_size_multiple`` of the backend, 128 on Ascend.
        tp: Ranks of tensor parallelism.
        cache_mode: One of ``CACHE_MODES``.
        num_speculative_tokens: Draft tokens of a step.
        block_size: What the user asks for.

    Raises:
        InvalidArgumentError: A number is impossible, two contradict each other, or no block fits.
    """
    at_least(1, "backend_multiple", backend_multiple)
    check_cache_mode(cache_mode)
    conv, recurrent = state.steps(tp, num_speculative_tokens)
    token = attention.step(tp)
    if attention.mla or attention.token_bytes is not None:
        raise InvalidArgumentError(
            "attention", "MLA or token_bytes", "keys and values of one width: two equal halves"
        )
    keys = Step("keys", token.value // 2, "bytes", f"half of the {token.value} of a token")
    tokens = -(-recurrent.value // keys.value)
    block = up_to(tokens, backend_multiple)
    if block * keys.value != recurrent.value:
        raise InvalidArgumentError(
            "state",
            f"a recurrent state of {recurrent.value} bytes",
            f"a multiple of {backend_multiple * keys.value}, the keys of {backend_multiple} tokens",
            hint="another tp, state_dtype or kv_dtype may fit; vllm-ascend refuses this one, too",
        )
    if block_size is not None and at_least(1, "block_size", block_size) > block:
        raise InvalidArgumentError(
            "block_size", f"{block_size}", f"{block}, whose keys are as long as a state"
        )
    page = block * token.value + conv.value
    steps = (
        conv, recurrent, token, keys,
        Step(
            "block", block, "tokens",
            f"the keys of {tokens} tokens are {recurrent.value} bytes; "
            f"a multiple of {backend_multiple}",
        ),
        *page_steps(
            page, conv.value + recurrent.value,
            f"{block} tokens x {token.value} bytes, and {conv.value} for the convolution",
        ),
    )  # fmt: skip
    return BlockSizes(
        block_size=block,
        page_bytes=page,
        state_bytes=conv.value + recurrent.value,
        token_bytes=token.value,
        state_block_size=None if cache_mode == "none" else block,
        steps=steps,
    )
