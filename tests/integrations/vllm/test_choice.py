"""Which backend serves an engine, from the shapes of its state pools."""

import pytest
import torch

from gdn_dispatch.capability import Feature
from gdn_dispatch.errors import IntegrationError
from gdn_dispatch.integrations.vllm.choice import backend_argument, choose
from gdn_dispatch.integrations.vllm.observability import counters

H, HV, K, V, W = 2, 4, 32, 64, 4
D = 2 * H * K + HV * V
DTYPES = (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("conv_dim_first", [False, True])
@pytest.mark.parametrize("num_spec", [0, 3])
def test_sizes_come_from_the_shapes_of_the_pools(conv_dim_first, num_spec):
    conv = (W - 1 + num_spec, D)
    shapes = (conv[::-1] if conv_dim_first else conv, (HV, V, K))
    selection = choose("cpu", shapes, DTYPES, num_spec=num_spec, conv_dim_first=conv_dim_first)
    facts = selection.facts
    assert (facts.num_heads, facts.num_v_heads, facts.head_dim_k, facts.head_dim_v) == (H, HV, K, V)
    assert facts.conv_width == W
    assert (facts.dtype, facts.state_dtype) == ("bfloat16", "float32")
    assert (Feature.SPECULATIVE in facts.features) == bool(num_spec)
    assert Feature.STATE_V_FIRST in facts.features
    assert backend_argument(selection) == selection.chosen


def test_without_a_backend_every_reason_and_the_way_out_are_told():
    shapes = ((W - 1, D), (HV, V, K))
    with pytest.raises(IntegrationError) as failed:
        choose("privateuseone", shapes, DTYPES, num_spec=0, conv_dim_first=False)
    for word in ("torch", "privateuseone", "GDN_DISPATCH_DISABLE=vllm", "GDN_DISPATCH_BACKEND"):
        assert word in str(failed.value)


def test_counters_are_a_copy():
    counters()["layer"] = 10**9
    assert counters().get("layer", 0) < 10**9
