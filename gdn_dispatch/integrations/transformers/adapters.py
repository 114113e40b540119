"""What the four names mean inside an adapted layer.

A layer hands the keywords of the model's call down to these functions: some are ours, most belong
to attention kernels, losses and recorders, and anyone may add more, so there is no list of what may
be ignored. There is one of what may not: a keyword that names an option of the delta rule is
passed on to it, or refused where it cannot be; a packed batch is kept apart or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from gdn_dispatch import api
from gdn_dispatch.calls.validation import describe
from gdn_dispatch.errors import InvalidArgumentError, MetadataError
from gdn_dispatch.integrations.transformers import convolution
from gdn_dispatch.integrations.transformers.discovery import CONVOLUTIONS, RULES

__all__ = ["replacements"]

_Result = tuple[torch.Tensor, torch.Tensor | None]

_HONOURED = frozenset(
    (
        "A_log",
        "allow_neg_eigval",
        "cu_seqlens_cpu",
        "dt_bias",
        "scale",
        "state_v_first",
        "use_beta_sigmoid_in_kernel",
        "use_gate_in_kernel",
    )
)
"""Options of the rule that no layer passes today; should one begin to, they mean what they say."""

_REFUSED = frozenset(("cp_context", "gk", "gv", "head_first", "transpose_state_layout"))
"""Options of FLA's rule that change the result and that this package does not have."""

_PACKED_HINT = (
    "model(input_ids, **packed(lengths, device=...)), from gdn_dispatch.integrations.transformers, "
    "gives a model all it needs"
)


def replacements(originals: Mapping[str, Any], backend: str | None) -> dict[str, Any]:
    """The names and what they mean now.

    Args:
        originals: Globals of the modeling file; what it does not have is not replaced.
        backend: Passed on with every call of a rule.
    """
    chunk, recurrent = RULES
    ours: dict[str, Any] = {
        chunk: _adapt(api.chunk_gated_delta_rule, backend),
        recurrent: _adapt(_decode, backend),
    }
    conv, update = CONVOLUTIONS
    if conv in originals:
        ours[conv] = partial(convolution.causal_conv, originals[conv])
    if update in originals:
        ours[update] = partial(convolution.update, originals[update])
    return ours


def _adapt(rule: Callable[..., _Result], backend: str | None) -> Callable[..., _Result]:
    def adapted(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        chunk_size: int | None = None,  # how the reference tiles; backends have their own
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        cu_seqlens: torch.Tensor | None = None,
        seq_idx: torch.Tensor | None = None,
        gdn_meta: Any = None,
        **model_kwargs: Any,
    ) -> _Result:
        options = _rule_options(model_kwargs) if model_kwargs else model_kwargs
        if cu_seqlens is not None or seq_idx is not None or gdn_meta is not None:
            _check_packed(query, cu_seqlens, gdn_meta, options)
        return rule(
            query,
            key,
            value,
            g=_gate(g, query),
            beta=_gate(beta, query),
            initial_state=initial_state,
            output_final_state=output_final_state,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
            cu_seqlens=cu_seqlens,
            meta=gdn_meta,
            backend=backend,
            **options,
        )

    return adapted


def _decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    initial_state: torch.Tensor | None,
    **options: Any,
) -> _Result:
    """One more token, in the memory of the cache where that is what the cache would copy into."""
    return api.fused_recurrent_gated_delta_rule(
        query,
        key,
        value,
        initial_state=initial_state,
        donate_initial_state=_is_overwritten(initial_state),
        **options,
    )


def _is_overwritten(state: torch.Tensor | None) -> bool:
    """Whether the state lies in a buffer that its cache fills again and again.

    Only such a cache tells torch that the buffer's address will not change. Any other may keep the
    tensor it handed out, so that must not be written to.
    """
    return getattr(state, "_dynamo_static_input_type", None) is not None


def _gate(gate: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Autocast may leave a gate in a third dtype; widening it loses nothing."""
    if gate.dtype is torch.float32 or gate.dtype is query.dtype:
        return gate
    return gate.float()


def _rule_options(model_kwargs: dict[str, Any]) -> dict[str, Any]:
    for name in sorted(_REFUSED.intersection(model_kwargs)):
        value = model_kwargs[name]
        if value is not None and value is not False:
            raise InvalidArgumentError(
                name, describe(value), "nothing: this delta rule has no such option",
                hint="it would change the result, so it is not ignored",
            )  # fmt: skip
    return {name: model_kwargs[name] for name in _HONOURED.intersection(model_kwargs)}


def _check_packed(
    query: torch.Tensor, cu_seqlens: torch.Tensor | None, gdn_meta: Any, options: dict[str, Any]
) -> None:
    """What the public function does not check: the way in, and that the sequences fill the row."""
    if cu_seqlens is None and gdn_meta is None:
        raise MetadataError(
            "cu_seq_lens_q", "None, with seq_idx", "the boundaries of the packed sequences",
            hint=f"seq_idx alone does not reach the recurrence; {_PACKED_HINT}",
        )  # fmt: skip
    if gdn_meta is None and cu_seqlens is not None:
        if cu_seqlens.device.type == "cpu":
            # A compiled graph cannot branch on a value: there, boundaries are taken as they are.
            if not torch.compiler.is_compiling():
                _check_filled("cu_seq_lens_q", int(cu_seqlens[-1]), query.shape[1])
        elif options.get("cu_seqlens_cpu") is None:
            raise MetadataError(
                "gdn_meta", f"None, with cu_seq_lens_q on {cu_seqlens.device}", "a ChunkMeta",
                hint="reading the lengths back would stall the device in every layer; "
                + _PACKED_HINT,
            )  # fmt: skip
    elif (plan := getattr(gdn_meta, "plan", None)) is not None:
        _check_filled("gdn_meta.plan", plan.num_tokens, plan.total_tokens)


def _check_filled(field: str, end: int, tokens: int) -> None:
    if end != tokens:
        raise MetadataError(
            field, f"sequences that end at token {end}", f"the end of the row, {tokens}",
            hint="give padding at the end a sequence of its own",
        )  # fmt: skip
