"""Whether torch can run here: it can, wherever it was imported."""

from __future__ import annotations

import torch

from gdn_dispatch.types import Available

__all__ = ["probe_machine"]


def probe_machine() -> Available:
    """Always available; says with how many threads."""
    threads = torch.get_num_threads()
    return Available(f"torch {torch.__version__}, {threads} thread{'s' * (threads != 1)}")
