"""``ascend/aclnn``: the recurrence by CANN's own operators, as torch_npu offers them.

``npu_chunk_gated_delta_rule`` for the chunk rule, ``npu_recurrent_gated_delta_rule`` token by
token. Both take packed tokens, natural-log decay in fp32, states ``[N, HV, V, K]``, and everything
else in bf16; the docstrings of torch_npu 2.13.0 say so, and what they do not take is refused before
they see it. **Neither has run here: there was no NPU.** The adapters were tested with stand-ins of
the documented schema, which compute on a CPU.

Copies and casts made here:

* q, k normalised here where that is asked for, in fp32, and rounded to bf16 again.
* q, k, v contiguous, where they are not.
* decay in fp32; for the chunk rule no less than e^-60 a token (``SMALLEST_DECAY``), as nobody says
  how it treats -inf.
* beta to bf16, which is what the operators take. Raw gates and logits are computed here.
* a new tensor for the initial states, which the operators write into; transposed where states are
  ``[N, HV, K, V]``. Final states come back in bf16 and are widened to the contract's fp32.
* Rows past the last sequence are cut off and added as zeros; sequences of length zero are left out
  and their states carried over.

Refused: activations and initial states of another dtype than bf16, since states would silently lose
16 bits; K or V other than 128 and more than 64 heads in the chunk rule; K or V above 256, more than
256 heads, and sequences of more than 8 tokens in the recurrent one; gradients. Declared is K = V =
128 for both, which is what the released models have.

The documentation gives the chunk rule the bound of 8 tokens a sequence as well, and an example of
100: vllm-ascend runs it on whole prompts, so that bound is taken for a slip and is not enforced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from gdn_dispatch.capability import Capability, Feature
from gdn_dispatch_ascend.providers.convert import (
    SMALLEST_DECAY,
    Batch,
    decay,
    initial_states,
    normalised,
    result,
    strength,
)
from gdn_dispatch_ascend.providers.operators import Operator

if TYPE_CHECKING:
    from gdn_dispatch.types import GDNOutput, RuleRequest

__all__ = [
    "CHUNK",
    "PROVIDER",
    "RECURRENT",
    "capability",
    "check",
    "gated_delta_rule",
    "unavailable",
]

PROVIDER: Final = "aclnn"

CHUNK: Final = Operator(
    "npu_chunk_gated_delta_rule(Tensor query, Tensor key, Tensor value, *, Tensor? beta=None, "
    "Tensor? initial_state=None, Tensor? actual_seq_lengths=None, float? scale=None, "
    "Tensor? g=None) -> (Tensor, Tensor)"
)

RECURRENT: Final = Operator(
    "npu_recurrent_gated_delta_rule(Tensor query, Tensor key, Tensor value, Tensor(a!) state, *, "
    "Tensor? beta=None, float? scale=None, Tensor? actual_seq_lengths=None, "
    "Tensor? ssm_state_indices=None, Tensor? num_accepted_tokens=None, Tensor? g=None, "
    "Tensor? gk=None) -> Tensor"
)

CHUNK_HEAD_DIM: Final = 128
CHUNK_MAX_HEADS: Final = 64
RECURRENT_MAX: Final = 256
RECURRENT_MAX_TOKENS: Final = 8

_OWN: Final = 'pass backend="ascend" for the kernels of this project'

_STATES: Final = (
    "pass initial_state.bfloat16() if that is precise enough, or "
    'backend="ascend" for the kernels of this project'
)

_CAPABILITY: Final = Capability(
    features=frozenset(
        (
            Feature.CHUNK_RULE,
            Feature.RECURRENT_RULE,
            Feature.VARLEN,
            Feature.STATE_V_FIRST,
            Feature.RAW_GATE,
            Feature.NO_HOST_READ,
        )
    ),
    dtypes=("bfloat16",),
    state_dtypes=("bfloat16",),
    head_dims_k=(CHUNK_HEAD_DIM,),
    head_dims_v=(CHUNK_HEAD_DIM,),
    notes=(
        "has not run on an NPU: tested with stand-ins of the documented schema",
        "final states have the precision of bfloat16",
        "chunk rule: up to 64 heads; decay of less than e^-60 a token counts as e^-60",
        "recurrent rule: sequences of up to 8 tokens, longer ones are refused",
    ),
)


def capability() -> Capability:
    """What ``ascend/aclnn`` can do."""
    return _CAPABILITY


def unavailable() -> str:
    """Why it cannot be used here; empty if nothing is known against it. Imports nothing."""
    return CHUNK.unavailable() or RECURRENT.unavailable()


def check(request: RuleRequest) -> None:
    """Refuse what the operators do not take, by their documentation.

    Raises:
        UnsupportedRequestError: Says what, why, and the way out.
    """
    op = RECURRENT if request.recurrent else CHUNK
    op.check_device(request.q)
    if _wants_gradients(request):
        raise op.refuse("gradients", "has none", "run under torch.no_grad()")
    for name, x in (("q", request.q), ("k", request.k), ("v", request.v)):
        op.check_dtype(name, x, torch.bfloat16, _OWN)
    if request.initial_state is not None:
        op.check_dtype("initial_state", request.initial_state, torch.bfloat16, _STATES)
    (H, K), (HV, V) = request.k.shape[2:], request.v.shape[2:]
    if not request.recurrent:
        if (K, V) != (CHUNK_HEAD_DIM, CHUNK_HEAD_DIM):
            raise op.refuse(f"K={K}, V={V}", f"takes K = V = {CHUNK_HEAD_DIM}", _OWN)
        if max(H, HV) > CHUNK_MAX_HEADS:
            raise op.refuse(f"H={H}, HV={HV}", f"takes up to {CHUNK_MAX_HEADS} heads", _OWN)
        return
    if max(K, V) > RECURRENT_MAX:
        raise op.refuse(f"K={K}, V={V}", f"takes up to {RECURRENT_MAX}", _OWN)
    if max(H, HV) > RECURRENT_MAX:
        raise op.refuse(f"H={H}, HV={HV}", f"takes up to {RECURRENT_MAX} heads", _OWN)
    longest = request.q.shape[1] if request.meta is None else request.meta.plan.max_seqlen
    if longest > RECURRENT_MAX_TOKENS:
        raise op.refuse(
            f"a sequence of {longest} tokens", f"takes up to {RECURRENT_MAX_TOKENS}",
            f"call chunk_gated_delta_rule, or {_OWN}",
        )  # fmt: skip


def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """Run the rule; see ``gdn_dispatch.hookspecs`` for what may be assumed.

    Raises:
        UnsupportedRequestError: See ``check``.
        BackendUnavailableError: The operator is not here, or is another one.
    """
    check(request)
    op = (RECURRENT if request.recurrent else CHUNK).load()
    with torch.no_grad():
        batch = Batch.of(request)
        if not batch.lengths:
            return result(request, batch, None, None)
        tokens = slice(0, batch.num_tokens)
        q = normalised(request.q, request.use_qk_l2norm_in_kernel)[tokens].contiguous()
        k = normalised(request.k, request.use_qk_l2norm_in_kernel)[tokens].contiguous()
        v = request.v.flatten(0, 1)[tokens].contiguous()
        g = decay(request)[tokens].contiguous()
        beta = strength(request)[tokens].to(torch.bfloat16).contiguous()
        states = initial_states(request, batch)
        if request.recurrent:
            # every token of a sequence has its sequence's slot: the last one's state stays there
            output, final = (
                op(
                    q, k, v, states, beta=beta, scale=request.scale,
                    actual_seq_lengths=batch.seq_lens,
                    ssm_state_indices=batch.sequence_of_token(), g=g,
                ),
                states,
            )  # fmt: skip
        else:
            output, final = op(
                q, k, v, beta=beta, initial_state=states, actual_seq_lengths=batch.seq_lens,
                scale=request.scale, g=g.clamp(min=SMALLEST_DECAY),
            )  # fmt: skip
        return result(request, batch, output, final)


def _wants_gradients(request: RuleRequest) -> bool:
    if not torch.is_grad_enabled():
        return False
    r = request
    tensors = (r.q, r.k, r.v, r.g, r.beta, r.initial_state, r.A_log, r.dt_bias)
    return any(x is not None and x.requires_grad for x in tensors)
