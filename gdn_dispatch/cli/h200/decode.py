"""Who takes part in decode: a step of B sequences, their states in a pool larger than the cache.

``DECODE`` is the layer core: the convolution's update, gates, recurrence. ``STEPS`` is the
recurrence alone, gates included, since that is what FlashInfer offers. Bytes counted are those of
the states, read once and written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from gdn_dispatch import api
from gdn_dispatch.cli.h200.contest import Contestant, NotApplicable, Ready, missing, relative_error
from gdn_dispatch.cli.h200.inputs import DecodeInputs
from gdn_dispatch.cli.h200.layer import VLLM_CONV
from gdn_dispatch.cli.h200.prefill import VLLM_OPS, Ours, load

__all__ = ["DECODE", "STEPS", "OurDecode", "OurSteps"]


def _ready(x: DecodeInputs, calls: Sequence[Any], *, conv: bool) -> Ready:
    return Ready(calls, partial(_errors, x, calls[0], conv), x.state_bytes)


def _errors(x: DecodeInputs, run: Any, conv: bool) -> dict[str, float]:
    """Of one step of the first set, on the sample of ``DecodeInputs.exact``."""
    sample = x.exact(conv=conv)
    output = run()
    output = output[0] if isinstance(output, tuple) else output
    got = output.reshape(*x.a.shape, x.pool.shape[2])[sample.rows, sample.heads]
    return {
        "output": relative_error(got, sample.output),
        "state": relative_error(x.pool[sample.sequence, sample.heads].mT, sample.state),
    }


@dataclass(frozen=True)
class OurDecode:
    """``gdn_attention`` of this package, one call a step.

    Attributes:
        name: ``backend`` of the call.
    """

    name: str

    def unavailable(self) -> str:
        """See ``Contestant``."""
        return Ours(self.name).unavailable()

    def prepare(self, x: DecodeInputs) -> Ready:
        """See ``Contestant``."""
        plan = api.plan_batch(list(range(x.shape.B + 1)))
        out = x.a.new_empty(*x.a.shape, x.pool.shape[2])
        calls = [
            partial(
                api.gdn_attention,
                x.mixed_qkv,
                x.a,
                x.b,
                meta=api.build_chunk_meta(plan, x.a.device, state_indices=slots, backend=self.name),
                conv_state=x.conv_state,
                ssm_state=x.pool,
                conv_weight=x.conv_weight,
                A_log=x.A_log,
                dt_bias=x.dt_bias,
                state_v_first=True,
                out=out,
                backend=self.name,
            )
            for slots in x.slots
        ]
        return _ready(x, calls, conv=True)


class VLLMDecode:
    """vLLM's convolution update and packed decode."""

    name = "vLLM Triton"

    def unavailable(self) -> str:
        """See ``Contestant``."""
        return missing("vllm", "vllm")

    def prepare(self, x: DecodeInputs) -> Ready:
        """See ``Contestant``."""
        conv, step = load(VLLM_CONV, "causal_conv1d_update"), _packed_decode()
        mixed = torch.empty_like(x.mixed_qkv)
        out = _out(x)

        def run(slots: torch.Tensor) -> torch.Tensor:
            conv(
                x.mixed_qkv,
                x.conv_state,
                x.conv_weight,
                None,
                "silu",
                conv_state_indices=slots,
                out=mixed,
            )
            _step(step, x, mixed, out, slots)
            return out

        return _ready(x, [partial(run, slots) for slots in x.slots], conv=True)


@dataclass(frozen=True)
class OurSteps:
    """``fused_recurrent_gated_delta_rule`` of this package, raw gates, states in place.

    Attributes:
        name: ``backend`` of the call.
    """

    name: str

    def unavailable(self) -> str:
        """See ``Contestant``."""
        return Ours(self.name).unavailable()

    def prepare(self, x: DecodeInputs) -> Ready:
        """See ``Contestant``."""
        if x.pool.dtype != torch.float32:
            raise NotApplicable("the rule returns fp32 states; other pools are for gdn_attention")
        q, k, v = (y.unsqueeze(1) for y in x.heads())
        B = x.shape.B
        calls = [
            partial(
                api.fused_recurrent_gated_delta_rule,
                q,
                k,
                v,
                x.a.unsqueeze(1),
                beta=x.b.unsqueeze(1),
                initial_state=x.pool[1 + n * B : 1 + (n + 1) * B],
                output_final_state=True,
                use_qk_l2norm_in_kernel=True,
                use_gate_in_kernel=True,
                A_log=x.A_log,
                dt_bias=x.dt_bias,
                use_beta_sigmoid_in_kernel=True,
                state_v_first=True,
                backend=self.name,
                donate_initial_state=True,
            )
            for n in range(x.sets)
        ]
        return _ready(x, calls, conv=False)


class VLLMSteps:
    """vLLM's packed decode."""

    name = "vLLM Triton"

    def unavailable(self) -> str:
        """See ``Contestant``."""
        return missing("vllm", "vllm")

    def prepare(self, x: DecodeInputs) -> Ready:
        """See ``Contestant``."""
        step, out = _packed_decode(), _out(x)

        def run(slots: torch.Tensor) -> torch.Tensor:
            _step(step, x, x.mixed_qkv, out, slots)
            return out

        return _ready(x, [partial(run, slots) for slots in x.slots], conv=False)


class FlashInferSteps:
    """FlashInfer's decode with V-first states, in place."""

    name = "FlashInfer"

    def unavailable(self) -> str:
        """See ``Contestant``."""
        return missing("flashinfer-python", "flashinfer")

    def prepare(self, x: DecodeInputs) -> Ready:
        """See ``Contestant``."""
        step = load("flashinfer.gdn_decode", "gated_delta_rule_decode_pretranspose")
        q, k, v = (y.unsqueeze(1).contiguous() for y in x.heads())
        a, b, out, B = x.a.unsqueeze(1), x.b.unsqueeze(1), _out(x), x.shape.B
        calls = [
            partial(
                step,
                q,
                k,
                v,
                x.pool[1 + n * B : 1 + (n + 1) * B],
                x.A_log,
                a,
                x.dt_bias,
                b,
                scale=q.shape[3] ** -0.5,
                output=out,
                use_qk_l2norm=True,
            )
            for n in range(x.sets)
        ]
        return _ready(x, calls, conv=False)


def _packed_decode() -> Any:
    return load(VLLM_OPS + ".fused_recurrent", "fused_recurrent_gated_delta_rule_packed_decode")


def _step(step: Any, x: DecodeInputs, mixed: Any, out: torch.Tensor, slots: torch.Tensor) -> None:
    step(
        mixed_qkv=mixed,
        a=x.a,
        b=x.b,
        A_log=x.A_log,
        dt_bias=x.dt_bias,
        scale=x.pool.shape[3] ** -0.5,
        initial_state=x.pool,
        out=out,
        ssm_state_indices=slots,
        use_qk_l2norm_in_kernel=True,
    )


def _out(x: DecodeInputs) -> torch.Tensor:
    return x.a.new_empty(x.shape.B, 1, x.shape.HV, x.pool.shape[2])


DECODE: Final[tuple[Contestant[DecodeInputs], ...]] = (OurDecode("cuda"), VLLMDecode())

STEPS: Final[tuple[Contestant[DecodeInputs], ...]] = (
    OurSteps("cuda/triton"),
    VLLMSteps(),
    FlashInferSteps(),
)
