"""Intel's operator in plain torch, under its own contract: what its documentation and code say.

Written apart from this project's kernels and from the torch backend, token by token, with the
names of the operator. Index tensors of other lengths than the exact ones fail here as they do
there; a negative slot fails, where there it would address memory.

Per token of a row, h the row's history and inputs:  c = silu(bias + sum_i w[:, i] h[t + i]);
q, k = c / sqrt(sum c^2 + 1e-6);  g = exp(-exp(A_log) softplus(a + dt_bias));  b = sigmoid(b);
S = g S;  S += b (v - S k) (x) k;  o = S q / sqrt(dk), with S of [dv, dk] for every value head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from gdn_dispatch_xpu.providers.schema import ARGUMENTS


def run(*arguments: Any) -> None:
    """One call; the first two arguments and both pools are written."""
    _Call(dict(zip(ARGUMENTS, arguments, strict=True))).run()


class _Call:
    def __init__(self, arguments: dict[str, Any]) -> None:
        self.a = arguments
        self.nk, self.nv = arguments["num_k_heads"], arguments["num_v_heads"]
        assert arguments["tp_size"] == 1
        self.dk, self.dv = arguments["head_k_dim"], arguments["head_v_dim"]
        self.dtype = arguments["core_attn_out"].dtype
        for name in ("core_attn_out", "z", "projected_states_qkvz", "projected_states_ba"):
            assert arguments[name].is_contiguous(), name
            assert arguments[name].dtype == self.dtype, name
            assert arguments[name].shape[0] >= arguments["num_actual_tokens"], name
        assert arguments["conv_state"][0].is_contiguous()
        assert arguments["ssm_state"][0].is_contiguous()
        assert arguments["A_log"].dtype == torch.float32
        assert arguments["dt_bias"].dtype == arguments["conv_weights"].dtype == self.dtype
        assert arguments["activation"] in ("silu", "swish")

    def run(self) -> None:
        a = self.a
        x, z, beta, gate = self._split()
        rows = a["num_prefills"] + a["num_decodes"]
        if a["num_spec_decodes"]:
            starts = self._exact("spec_query_start_loc", a["num_spec_decodes"] + 1)
            table = a["spec_state_indices_tensor"]
            accepted = self._exact("num_accepted_tokens", a["num_spec_decodes"])
            tokens = self._tokens("spec_token_indx", starts[-1])
            assert table.dtype == torch.int32
            assert table.is_contiguous()
            assert table.shape[0] == a["num_spec_decodes"]
            for n, slots in enumerate(table.tolist()):
                own = tokens[starts[n] : starts[n + 1]]
                self._draft(own, slots, accepted[n] - 1, x, beta, gate)
                a["z"][own] = z[own]
        if rows:
            starts = self._exact("non_spec_query_start_loc", rows + 1)
            slots = self._exact("non_spec_state_indices_tensor", rows)
            has_state = [True] * rows
            if a["has_initial_state"] is not None:
                assert a["has_initial_state"].dtype == torch.bool
                assert a["has_initial_state"].shape == (rows,)
                has_state = a["has_initial_state"].tolist()
            tokens = self._tokens("non_spec_token_indx", starts[-1])
            for n, slot in enumerate(slots):
                own = tokens[starts[n] : starts[n + 1]]
                assert own, "a row without tokens"
                self._row(own, slot, has_state[n], x, beta, gate)
                a["z"][own] = z[own]

    def _exact(self, name: str, length: int) -> list[int]:
        x = self.a[name]
        assert (x.dtype, x.is_contiguous(), x.shape) == (torch.int32, True, (length,)), name
        return x.tolist()

    def _tokens(self, name: str, count: int) -> list[int]:
        x = self.a[name]
        if x is None:
            assert count == self.a["num_actual_tokens"], "tokens that belong to no row"
            return list(range(count))
        assert (x.dtype, x.is_contiguous(), x.shape) == (torch.int32, True, (count,)), name
        return x.tolist()

    def _split(self) -> tuple[torch.Tensor, ...]:
        """Conv channels [q | k | v], z, raw beta and raw gate, by token."""
        qkvz, ba = self.a["projected_states_qkvz"], self.a["projected_states_ba"]
        T, r = qkvz.shape[0], self.nv // self.nk
        if self.a["reorder_input"]:
            sizes = [self.nk * self.dk, self.nk * self.dk, self.nv * self.dv, self.nv * self.dv]
            q, k, v, z = qkvz.split(sizes, dim=1)
            beta, gate = ba.chunk(2, dim=1)
        else:
            heads = qkvz.view(T, self.nk, -1)
            sizes = [self.dk, self.dk, r * self.dv, r * self.dv]
            q, k, v, z = (part.flatten(1) for part in heads.split(sizes, dim=2))
            beta, gate = (part.flatten(1) for part in ba.view(T, self.nk, -1).chunk(2, dim=2))
        return torch.cat([q, k, v], dim=1), z.view(T, self.nv, self.dv), beta, gate

    def _slot(self, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert slot >= 0, "a negative slot"
        return self.a["conv_state"][slot], self.a["ssm_state"][slot]

    def _row(
        self, own: list[int], slot: int, has_state: bool, x: Any, beta: Any, gate: Any
    ) -> None:
        line, pool = self._slot(slot)
        width = self.a["conv_weights"].shape[1] - 1
        old = line[:width].clone() if has_state else torch.zeros_like(line[:width])
        history = torch.cat([old, x[own]])
        line[:width] = history[len(history) - width :]
        state = pool.float() if has_state else torch.zeros(pool.shape)
        steps = self._steps(own, history, state, beta, gate)
        for token, (out, after) in zip(own, steps, strict=True):
            self.a["core_attn_out"][token] = out.to(self.dtype)
            state = after
        pool.copy_(state)

    def _draft(
        self, own: list[int], slots: list[int], column: int, x: Any, beta: Any, gate: Any
    ) -> None:
        width = self.a["conv_weights"].shape[1] - 1
        assert self.a["conv_state"].shape[1] >= width + len(slots) - 1
        line, _ = self._slot(slots[0])
        history = torch.cat([line[column : column + width].clone(), x[own]])
        line[: width - 1 + len(own)] = history[1:]
        state = self._slot(slots[column])[1].float()
        for t, (out, after) in enumerate(self._steps(own, history, state, beta, gate)):
            self.a["core_attn_out"][own[t]] = out.to(self.dtype)
            self._slot(slots[t])[1].copy_(after)

    def _steps(self, own: list[int], history: Any, state: Any, beta: Any, gate: Any) -> Any:
        """Output and state after each token of a row."""
        a, W = self.a, self.a["conv_weights"].shape[1]
        c = torch.einsum("tdw,dw->td", history.float().unfold(0, W, 1), a["conv_weights"].float())
        if a["conv_bias"] is not None:
            c = c + a["conv_bias"].float()
        c = F.silu(c).to(self.dtype).float()
        q, k, v = c.split([self.nk * self.dk, self.nk * self.dk, self.nv * self.dv], dim=1)
        r = self.nv // self.nk
        q, k = (
            (y := part.view(-1, self.nk, self.dk)).div((y.square().sum(-1, True) + 1e-6).sqrt())
            .repeat_interleave(r, dim=1)
            for part in (q, k)
        )  # fmt: skip
        v = v.view(-1, self.nv, self.dv)
        decay = (-a["A_log"].exp() * F.softplus(gate[own].float() + a["dt_bias"].float())).exp()
        strength = beta[own].float().sigmoid()
        for t in range(len(own)):
            state = state * decay[t, :, None, None]
            change = strength[t, :, None] * (v[t] - torch.einsum("hvk,hk->hv", state, k[t]))
            state = state + change[:, :, None] * k[t][:, None, :]
            yield torch.einsum("hvk,hk->hv", state, q[t]) * self.dk**-0.5, state
