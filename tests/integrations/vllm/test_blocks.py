"""The engine's block size against what the chosen backend asks for."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from gdn_dispatch import explain, list_backends
from gdn_dispatch.errors import IntegrationError
from gdn_dispatch.integrations.vllm import blocks


@pytest.fixture
def check(monkeypatch):
    """``check(multiple, block_size, mamba_block_size, mode)`` for a backend with that multiple."""
    torch_backend = next(status for status in list_backends() if status.name == "torch")

    def run(multiple, block_size, mamba_block_size=None, mode="none"):
        info = replace(torch_backend.info, block_size_multiple=multiple)
        monkeypatch.setattr(blocks, "list_backends", lambda: (replace(torch_backend, info=info),))
        config = SimpleNamespace(
            block_size=block_size, mamba_block_size=mamba_block_size, mamba_cache_mode=mode
        )
        blocks.check_block_size(explain(), config)

    return run


@pytest.mark.parametrize(("multiple", "size"), [(1, 7), (16, 528), (64, 576), (128, 1024)])
def test_a_multiple_is_accepted(check, multiple, size):
    check(multiple, size, size, "align")
    check(multiple, size, 7)  # without kept states nobody looks at the states' blocks


@pytest.mark.parametrize(("multiple", "size", "way_out"), [(64, 528, 576), (128, 1088, 1152)])
def test_another_one_is_refused_with_the_value_to_pass(check, multiple, size, way_out):
    with pytest.raises(IntegrationError) as failed:
        check(multiple, size)
    text = str(failed.value)
    assert f"block_size is {size} tokens" in text
    assert f"'torch' needs a multiple of {multiple}" in text
    assert f"--block-size {way_out};" in text


def test_kept_states_count_too(check):
    with pytest.raises(IntegrationError, match="mamba_block_size is 528 tokens"):
        check(64, 576, 528, "align")
