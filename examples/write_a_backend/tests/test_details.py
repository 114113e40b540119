"""What the kit leaves open, and this backend promises."""

import pytest
import torch

import gdn_dispatch
from gdn_dispatch import InvalidArgumentError

H, HV, K, V, W, T = 1, 2, 8, 4, 4, 3
D = 2 * H * K + HV * V


def test_slot_outside_the_pools_is_refused_before_anything_is_written():
    """The slot is in a tensor of the engine's, which the core does not read."""
    written = {
        "conv_state": torch.randn(2, D, W - 1),
        "ssm_state": torch.randn(2, HV, K, V),
        "out": torch.randn(T, HV, V),
    }
    before = [tensor.clone() for tensor in written.values()]
    meta = gdn_dispatch.build_chunk_meta(
        gdn_dispatch.plan_batch([0, T]), "cpu", state_indices=torch.tensor([2]), backend="numpy"
    )
    with pytest.raises(InvalidArgumentError, match="slot 2"):
        gdn_dispatch.gdn_attention(
            torch.randn(T, D),
            torch.randn(T, HV),
            torch.randn(T, HV),
            meta=meta,
            conv_weight=torch.randn(D, W),
            A_log=torch.zeros(HV),
            dt_bias=torch.zeros(HV),
            backend="numpy",
            **written,
        )
    assert all(map(torch.equal, written.values(), before))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_output_is_contiguous_and_state_at_least_fp32(dtype):
    q, v, g = torch.rand(1, T, H, K), torch.rand(1, T, HV, V), torch.zeros(1, T, HV)
    q, v, g = q.to(dtype), v.to(dtype).transpose(1, 2).contiguous().transpose(1, 2), g.to(dtype)
    output, state = gdn_dispatch.chunk_gated_delta_rule(
        q, q, v, g, g, output_final_state=True, backend="numpy"
    )
    assert state.dtype is torch.promote_types(dtype, torch.float32)
    assert output.dtype is dtype
    assert output.is_contiguous()
