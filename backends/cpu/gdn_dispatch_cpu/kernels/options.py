"""How a call is run, besides what it computes: for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["BEST", "Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """How to run a call.

    Attributes:
        path: A ``gdn_path``; 0 for the best.
        num_threads: 0 for as many as torch uses.
        exact: No bf16 products, whatever the inputs.
    """

    path: int = 0
    num_threads: int = 0
    exact: bool = False

    @property
    def threads(self) -> int:
        """Threads to run on."""
        return self.num_threads or torch.get_num_threads()


BEST = Options()
"""What the hooks use."""
