"""The library and what is said where there is none."""

import pytest
import torch
from gdn_dispatch_cpu import probe
from gdn_dispatch_cpu.kernels import library, rule
from gdn_dispatch_cpu.kernels.options import Options
from gdn_dispatch_cpu.meta import CHUNK_SIZE

from gdn_dispatch import Available, InvalidArgumentError, Unavailable
from gdn_dispatch.types import RuleRequest


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setattr(library, "find_library", lambda: None)
    library.load_library.cache_clear()
    yield
    library.load_library.cache_clear()


def test_the_probe_says_what_runs():
    answer = probe.probe_machine()
    assert isinstance(answer, Available)
    assert library.load_library().best_path in answer.detail


def test_the_probe_says_what_is_lost(not_installed):
    answer = probe.probe_machine()
    assert isinstance(answer, Unavailable)
    assert "libgdn_cpu.so is not installed" in answer.reason
    assert "C++17 compiler" in answer.reason


def test_checkpoints_fall_between_chunks():
    assert CHUNK_SIZE % library.load_library().chunk_size == 0


def test_the_portable_path_is_always_there():
    assert "portable" in library.load_library().paths
    assert library.load_library().best_path in library.load_library().paths


def test_a_path_that_is_not_there_is_refused():
    x, g = torch.ones(1, 1, 1, 4), torch.zeros(1, 1, 1)
    request = RuleRequest(
        x, x, x, g, g, 1.0, None, True, False, False, False, False, None, None, None, True
    )
    with pytest.raises(InvalidArgumentError, match="portable"):
        rule.gated_delta_rule(request, Options(path=99))
