"""Scratch memory of the chunk kernel, with every view the inner loop needs made once.

A chunk takes well under a millisecond, and one view of a tensor costs a microsecond: making them
in the loop would cost as much as one of its matrix products. The buffers hold ``UNIT`` chunks, so
that what one phase writes is still in cache when the next reads it.
"""

from __future__ import annotations

import threading

import torch

from gdn_dispatch.torch_backend.capability import CHUNK
from gdn_dispatch.torch_backend.kernels.inverse import InverseBuffers

__all__ = ["UNIT", "Workspace", "workspace_for"]

UNIT = 4
"""Chunks whose state-independent part is computed together."""


class Workspace:
    """Buffers for one geometry; H key heads, r = HV/H value heads each, head dims K and V.

    The r value heads of a key head lie side by side in the last dimension wherever they meet the
    key head's rows, so that a product with k or q is one matrix product per *key* head:

        keys_queries [H, 2C, K] @ state [H, K, r*V]

    Products with per-value-head C x C matrices use [HV, C, V]. The elementwise steps between the
    two read one layout and write the other.
    """

    def __init__(self, H: int, r: int, K: int, V: int, device: torch.device) -> None:
        C, HV = CHUNK, H * r

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        self.keys_queries = empty(UNIT, H, 2 * C, K)
        self.values = empty(UNIT, H, C, r * V)
        self.state = empty(H, K, r, V)
        self.state_by_value_head = self.state.permute(0, 2, 1, 3)  # [H, r, K, V]
        self.state_matrix = self.state.view(H, K, r * V)

        self.dots = empty(UNIT * H, 2 * C, C)
        self.pairwise = empty(UNIT, HV, C, C)
        self.pairwise_fraction = empty(UNIT, HV, C, C)
        self.attention = empty(UNIT, H, r, C, C)
        self.scaled = empty(UNIT * HV, C, C)
        self.solve = empty(UNIT, HV, 2 * C, C)
        self.inverse = InverseBuffers(UNIT * HV, device)

        self.products = empty(H, 2 * C, r * V)  # [k; q] @ state
        self.residual = empty(HV, C, V)
        self.solved = empty(HV, 2 * C, V)
        self.update = empty(H, C, r, V)
        self.output = empty(UNIT, HV, C, V)

        lower = torch.ones(C, C, device=device).tril(-1)
        self.strictly_lower = lower
        self.future = torch.full((C, C), float("-inf"), device=device).triu(1)

        # Views for the inner loop, named by what they are.
        products = self.products.view(H, 2 * C, r, V)
        self.key_products = products[:, :C].transpose(1, 2)  # [H, r, C, V]
        self.query_products = products[:, C:].transpose(1, 2)
        self.residual_by_head = self.residual.view(H, r, C, V)
        self.new_values = self.solved[:, :C].view(H, r, C, V).transpose(1, 2)  # [H, C, r, V]
        self.intra_output = self.solved[:, C:].view(H, r, C, V)
        self.update_matrix = self.update.view(H, C, r * V)
        self.chunk_keys_queries = self.keys_queries.unbind(0)
        self.chunk_keys_t = [x[:, :C].transpose(1, 2) for x in self.chunk_keys_queries]
        self.chunk_values = [x.view(H, C, r, V).transpose(1, 2) for x in self.values.unbind(0)]
        self.chunk_pairwise = self.pairwise.unbind(0)
        self.chunk_solve = self.solve.unbind(0)
        self.chunk_output = [x.view(H, r, C, V) for x in self.output.unbind(0)]


_local = threading.local()
_KEPT = 4


def workspace_for(H: int, r: int, K: int, V: int, device: torch.device) -> Workspace:
    """This thread's workspace of that geometry; the last few geometries are kept."""
    kept: dict[tuple[int, int, int, int, torch.device], Workspace]
    kept = _local.__dict__.setdefault("workspaces", {})
    key = (H, r, K, V, device)
    found = kept.pop(key, None)
    if found is None:
        with torch.inference_mode(False):  # whoever asks first, everyone may write to it
            found = Workspace(H, r, K, V, device)
        while len(kept) >= _KEPT:
            del kept[next(iter(kept))]
    kept[key] = found  # last used last
    return found
