"""Faults that the conformance kit must find: one place each in the torch backend, data only.

They are faults that implementations have had, or that the layouts and the slots invite. Each is
written so that the spoilt backend still runs: what the kit must notice are numbers, not crashes.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault.

    Attributes:
        name: Of the mutant, as in the table.
        file: Relative to ``gdn_dispatch/torch_backend``.
        before: Source that occurs in the file once. after: What stands there instead.
        what: What is wrong then, for the table.
    """

    name: str
    file: str
    before: str
    after: str
    what: str


MUTANTS: tuple[Mutant, ...] = (
    # -- decay and gates -------------------------------------------------------------------------
    Mutant(
        "decay_grows",
        "kernels/gates.py",
        "return -A_log.float().exp() * softplus",
        "return A_log.float().exp() * softplus",
        "the decay has the wrong sign",
    ),
    Mutant(
        "decay_missing_in_first_step",
        "kernels/steps.py",
        "torch.mul(job.read, decay, out=state)",
        "state.copy_(job.read)",
        "steps: a state read from other memory does not decay at the first token",
    ),
    Mutant(
        "decay_missing_between_chunks",
        "kernels/chunk.py",
        "w.state.mul_(gates.whole[j])",
        "pass",
        "chunks: the state does not decay from one to the next",
    ),
    Mutant(
        "decay_summed_in_fp32",
        "kernels/gates.py",
        ".cumsum(-1, dtype=torch.float64)",
        ".cumsum(-1)",
        "chunks: after a reset (g = -1e4) differences of the summed decay have no digits left",
    ),
    Mutant(
        "decay_of_minus_infinity",
        "kernels/gates.py",
        ".clamp_(min=_FLOOR)",
        "",
        "chunks: g = -inf becomes inf - inf",
    ),
    Mutant(
        "gate_in_bf16",
        "kernels/gates.py",
        "x = a.float()",
        "x = a.bfloat16().float()",
        "the gate is rounded to bf16",
    ),
    Mutant(
        "gate_bias_missing",
        "kernels/gates.py",
        "x = x + dt_bias.float()",
        "x = x + 0.0",
        "dt_bias is forgotten",
    ),
    Mutant(
        "gate_overflows",
        "kernels/gates.py",
        "torch.where(x > _LINEAR, x, x.clamp(max=_LINEAR).exp().log1p())",
        "x.clamp(max=_LINEAR).exp().log1p()",
        "softplus ends at 20",
    ),
    Mutant(
        "negative_eigenvalues_missing",
        "kernels/gates.py",
        "return x * 2 if allow_neg_eigval else x",
        "return x",
        "allow_neg_eigval is ignored",
    ),
    # -- the recurrence --------------------------------------------------------------------------
    Mutant(
        "beta_missing_in_steps",
        "kernels/steps.py",
        "torch.addcmul(beta_v, memory.select(1, 0), beta, value=-1, out=d)",
        "torch.sub(beta_v, memory.select(1, 0), out=d)",
        "steps: what the key recalls is taken away whole, whatever beta",
    ),
    Mutant(
        "beta_missing_in_chunks",
        "kernels/chunk.py",
        "system.mul_(gates.beta[span].view(n, H, r, C, 1)).mul_(w.strictly_lower)",
        "system.mul_(w.strictly_lower)",
        "chunks: the system to invert lacks beta",
    ),
    Mutant(
        "own_token_not_seen",
        "kernels/workspace.py",
        'torch.full((C, C), float("-inf"), device=device).triu(1)',
        'torch.full((C, C), float("-inf"), device=device).triu()',
        "chunks: an output does not see its own token",
    ),
    Mutant(
        "inverse_unfinished",
        "kernels/inverse.py",
        "for size in (2, 4, 8):",
        "for size in (2, 4):",
        "chunks: the inverse stops at blocks of 8",
    ),
    Mutant(
        "scale_twice",
        "kernels/steps.py",
        "torch.mul(values, scale, out=",
        "torch.mul(values, scale * scale, out=",
        "steps: the scale is applied twice",
    ),
    Mutant(
        "scale_missing_with_l2norm",
        "kernels/chunk.py",
        "factor[:, :, C:].mul_(heads.scale)",
        "pass",
        "chunks: normalised queries are not scaled",
    ),
    Mutant(
        "epsilon_outside_the_root",
        "kernels/steps.py",
        "key_query.mul_(norm.square_().add_(_L2_EPS).rsqrt_())",
        "key_query.div_(norm.add_(_L2_EPS))",
        "steps: the l2norm's epsilon is added to the norm, not to its square",
    ),
    Mutant(
        "epsilon_missing",
        "kernels/chunk.py",
        "norm.square_().add_(_L2_EPS).rsqrt_()",
        "norm.square_().rsqrt_()",
        "chunks: the l2norm has no epsilon",
    ),
    Mutant(
        "heads_interleaved_in_steps",
        "kernels/steps.py",
        "key_query.unsqueeze(2).expand(n, H, HV // H, 2, K)",
        "key_query.unsqueeze(1).expand(n, HV // H, H, 2, K)",
        "steps: value head j reads key head j % H, not j // (HV/H)",
    ),
    Mutant(
        "heads_interleaved_in_chunks",
        "kernels/chunk.py",
        "heads.v[batch, rows].view(count, tokens, H, -1, V).transpose(1, 2)",
        "heads.v[batch, rows].view(count, tokens, -1, H, V).transpose(2, 3).transpose(1, 2)",
        "chunks: value head j goes with key head j % H",
    ),
    Mutant(
        "fp64_in_fp32",
        "rule.py",
        "if request.q.dtype == torch.float64:",
        "if False:",
        "fp64 inputs are computed in fp32",
    ),
    Mutant(
        "gradient_cut",
        "kernels/differentiable.py",
        "system = (beta.unsqueeze(-1)",
        "system = (beta.detach().unsqueeze(-1)",
        "the gradient of beta lacks a term",
    ),
    # -- chunk and block edges -------------------------------------------------------------------
    Mutant(
        "last_chunk_of_one_token",
        "kernels/chunk.py",
        "for offset in range(0, job.length, CHUNK):",
        "for offset in range(0, job.length - 1, CHUNK):",
        "a last chunk of a single token is not in the chunk list",
    ),
    Mutant(
        "chunk_short_of_a_token",
        "kernels/chunk.py",
        "tokens = min(CHUNK, job.length - offset)",
        "tokens = min(CHUNK - 1, job.length - offset)",
        "the last token of a full chunk is left out",
    ),
    Mutant(
        "partial_chunk_keeps_old_keys",
        "kernels/chunk.py",
        "w.keys_queries[first].zero_()",
        "pass",
        "behind the tokens of a partial chunk are the keys of the chunk before",
    ),
    Mutant(
        "partial_chunk_keeps_any_gates",
        "kernels/chunk.py",
        "g = heads.g.new_zeros(n, CHUNK, HV)",
        "g = heads.g.new_empty(n, CHUNK, HV)",
        "gates behind the tokens of a partial chunk are uninitialised memory",
    ),
    Mutant(
        "state_left_from_the_sequence_before",
        "kernels/chunk.py",
        "starts_from_zero = chunk.is_first and job.read is None",
        "starts_from_zero = False",
        "a sequence without a state starts from what scratch memory holds",
    ),
    Mutant(
        "sick_scratch_memory",
        "kernels/chunk.py",
        "scaled = torch.mul(inverse, gates.beta[span].view(n * HV, 1, C), out=w.scaled[: n * HV])",
        "scaled = inverse.mul_(gates.beta[span].view(n * HV, 1, C))",
        "a NaN stays in scratch memory, in the triangle that nobody writes again",
    ),
    Mutant(
        "block_of_steps_starts_again",
        "kernels/steps.py",
        "read = carry if offset else job.read",
        "read = job.read",
        "steps: every 256 tokens the sequence starts from its initial state again",
    ),
    Mutant(
        "memory_of_the_first_step",
        "kernels/steps.py",
        "memory.zero_()",
        "pass",
        "steps: without a state, the first token recalls uninitialised memory",
    ),
    Mutant(
        "last_row_of_steps_unwritten",
        "kernels/steps.py",
        "torch.mul(values, scale, out=flat[self.start : self.start + self.tokens])",
        "torch.mul(values[:-1], scale, out=flat[self.start : self.start + self.tokens - 1])",
        "steps: the output of the last token is not written",
    ),
    Mutant(
        "last_row_of_a_chunk_unwritten",
        "kernels/chunk.py",
        "rows.view(count, tokens, HV, V).copy_(\n"
        "            w.output[first : first + count, :, :tokens].transpose(1, 2)",
        "rows.view(count, tokens, HV, V)[:, : CHUNK - 1].copy_(\n"
        "            w.output[first : first + count, :, : min(tokens, CHUNK - 1)].transpose(1, 2)",
        "chunks: the output of the last token of a full chunk is not written",
    ),
    # -- packed sequences ------------------------------------------------------------------------
    Mutant(
        "batch_row_ignored",
        "kernels/steps.py",
        "j.job.batch * T + j.job.start",
        "j.job.start",
        "steps: every row of a dense batch is computed from the first",
    ),
    Mutant(
        "rows_taken_for_neighbours",
        "kernels/steps.py",
        "together = together and start == end",
        "together = together or start == end",
        "steps: sequences apart are computed from the rows that follow the first one",
    ),
    Mutant(
        "compact_number_in_the_rule",
        "rule.py",
        "read = None if reads is None else reads[n]",
        "read = None if reads is None else reads[len(jobs)]",
        "initial states are counted without the empty sequences",
    ),
    Mutant(
        "compact_number_in_the_layer",
        "layer.py",
        'target = self._slot("state_indices", int(write[n]))',
        'target = self._slot("state_indices", int(write[len(rows)]))',
        "write slots are looked up by a row's number in its group",
    ),
    Mutant(
        "empty_sequence_loses_its_state",
        "rule.py",
        "write.zero_() if read is None else write.copy_(read)",
        "write.zero_()",
        "the final state of an empty sequence is zero, not its initial state",
    ),
    Mutant(
        "row_past_the_step",
        "rule.py",
        "out[:, request.meta.plan.num_tokens :].zero_()",
        "out[:, request.meta.plan.num_tokens + 1 :].zero_()",
        "the first row past the last sequence is not zeroed",
    ),
    Mutant(
        "kernel_chosen_by_the_batch",
        "rule.py",
        "[StepJob(job) for job in jobs if job.length <= longest_step]\n"
        "    chunks = [job for job in jobs if job.length > longest_step]",
        "[StepJob(job) for job in jobs if max(j.length for j in jobs) <= longest_step]\n"
        "    chunks = [job for job in jobs if max(j.length for j in jobs) > longest_step]",
        "short sequences take chunks where a long one is in the batch: other bits in company",
    ),
    Mutant(
        "rounding_by_the_batch",
        "kernels/steps.py",
        "rows.gather(heads.v) * beta,",
        "rows.gather(heads.v) / n * (beta * n),",
        "steps: values are scaled by the number of tokens and back: other bits in company",
    ),
    Mutant(
        "silu_over_the_batch",
        "kernels/conv.py",
        "result.div_(result.neg().exp_().add_(1))",
        "F.silu(result, inplace=True)",
        "decodes: torch's silu of all rows at once, whose bits depend on where a vector ends",
    ),
    # -- states ----------------------------------------------------------------------------------
    Mutant(
        "v_first_ignored_by_the_rule",
        "rule.py",
        "else state.transpose(2, 3) if request.state_v_first else state\n",
        "else state.view(-1, HV, K, V)\n",
        "an initial state with V first is read as if K were",
    ),
    Mutant(
        "v_first_ignored_by_the_layer",
        "layer.py",
        "self.state = state.transpose(2, 3) if request.state_v_first else state",
        "self.state = state.view(*state.shape[:2], request.head_dim_k, request.head_dim_v)",
        "a pool with V first is used as if K were",
    ),
    Mutant(
        "initial_state_written",
        "rule.py",
        "if request.donate_initial_state and _can_hold_final_state(state):",
        "if _can_hold_final_state(state):",
        "an initial state that was not donated receives the final one",
    ),
    Mutant(
        "state_in_bf16",
        "kernels/chunk.py",
        "target.view(w.state_by_value_head.shape).copy_(w.state_by_value_head)",
        "target.view(w.state_by_value_head.shape).copy_(w.state_by_value_head.bfloat16())",
        "chunks: every state is rounded to bf16 on its way out",
    ),
    Mutant(
        "state_in_the_dtype_of_the_output",
        "rule.py",
        "return GDNOutput(out, final)",
        "return GDNOutput(out, None if final is None else final.to(out.dtype).float())",
        "the final state is rounded to the dtype of the activations",
    ),
    Mutant(
        "pool_in_the_dtype_of_the_output",
        "layer.py",
        "run_jobs(heads, self._jobs(group), request.out.unsqueeze(0), recurrent=False)",
        "run_jobs(heads, self._jobs(group), request.out.unsqueeze(0), recurrent=False)\n"
        "        for row in self.rows[id(group)]:\n"
        "            self.state[row.write] = self.state[row.write].to(request.out.dtype)",
        "states of prefills are rounded to the dtype of the activations",
    ),
    Mutant(
        "address_of_32_bits",
        "layer.py",
        "self.state[row.write],\n",
        "(s := self.state).as_strided(\n"
        "                    s.shape[1:],\n"
        "                    s.stride()[1:],\n"
        "                    s.storage_offset() + row.write * s.stride(0) % 2**31,\n"
        "                ),\n",
        "the offset of a state to write overflows 32 bits",
    ),
    Mutant(
        "address_of_32_bits_in_the_history",
        "layer.py",
        "history[row.write],\n",
        "history.as_strided(\n"
        "                    history.shape[1:],\n"
        "                    history.stride()[1:],\n"
        "                    history.storage_offset() + row.write * history.stride(0) % 2**31,\n"
        "                ),\n",
        "the offset of a conv history to write overflows 32 bits",
    ),
    # -- slots -----------------------------------------------------------------------------------
    Mutant(
        "reads_the_write_slot",
        "layer.py",
        'source = self._slot("initial_state_indices", int(read[n]))',
        'source = self._slot("initial_state_indices", int(write[n]))',
        "a row reads the slot that it writes",
    ),
    Mutant(
        "writes_the_read_slot",
        "layer.py",
        'target = self._slot("state_indices", int(write[n]))',
        'target = self._slot("state_indices", int(read[n]))',
        "a row writes the slot that it reads",
    ),
    Mutant(
        "reads_in_place",
        "kernels/steps.py",
        "elif read is not None and read.data_ptr() == state.data_ptr():",
        "elif read is not None:",
        "steps: the state to start from is taken to be in the slot to write",
    ),
    Mutant(
        "initial_state_always",
        "layer.py",
        "return has is None or bool(has[row])",
        "return True",
        "has_initial_state is ignored",
    ),
    Mutant(
        "initial_history_always",
        "layer.py",
        "from_zero = [i for i, row in enumerate(rows) if row.read is None]",
        "from_zero: list[int] = []",
        "a decode row without a state reads the conv history of slot 0",
    ),
    Mutant(
        "padding_is_read",
        "layer.py",
        'source = self._slot("initial_state_indices", int(read[n]))',
        "source = int(read[n]) % self.pool",
        "a padding read slot is read, not taken for zeros",
    ),
    Mutant(
        "padding_is_written",
        "layer.py",
        'target = self._slot("state_indices", int(write[n]))',
        "slot = int(write[n])\n"
        '            target = self._slot("state_indices", slot % self.pool if slot < 0 else slot)',
        "a negative write slot, which is padding, is counted from the end of the pool",
    ),
    Mutant(
        "pad_slot_is_a_slot",
        "layer.py",
        "if slot < 0 or slot == self.pad_slot:",
        "if slot < 0:",
        "pad_slot is used like any other slot",
    ),
    Mutant(
        "padded_rows_unwritten",
        "layer.py",
        "request.out[start:end].zero_()",
        "request.out[start + 1 : end].zero_()",
        "the first output row of a padded sequence is not zeroed",
    ),
    Mutant(
        "output_written_before_a_refusal",
        "layer.py",
        "return run_layer(request, _Kernels(request, meta))",
        "request.out.zero_()\n    return run_layer(request, _Kernels(request, meta))",
        "the output is written before slots outside the pools are refused",
    ),
    Mutant(
        "state_written_before_a_refusal",
        "layer.py",
        "rows.append(_Row(n, start, length, source, target))",
        "rows.append(_Row(n, start, length, source, target))\n"
        "            if source is None:\n"
        "                self.state[target].zero_()",
        "states that start from zero are zeroed before slots outside the pools are refused",
    ),
    Mutant(
        "slot_outside_the_pools",
        "layer.py",
        "if slot >= self.pool:",
        "slot %= self.pool\n        if slot >= self.pool:",
        "a slot outside the pools becomes one inside",
    ),
    # -- metadata --------------------------------------------------------------------------------
    Mutant(
        "slots_of_the_first_call",
        "meta.py",
        "return HostSlots(write, write if read is None else read, has_state, accepted)",
        'return self._given.setdefault("", HostSlots(write, write if read is None else read, '
        "has_state, accepted))",
        "slots are looked up once per metadata, which may be updated in place",
    ),
    Mutant(
        "slots_by_the_number_of_rows",
        "meta.py",
        "return HostSlots(write, write if read is None else read, has_state, accepted)",
        'return globals().setdefault("_kept", {}).setdefault(write.shape, '
        "HostSlots(write, write if read is None else read, has_state, accepted))",
        "slots are cached by their shape",
    ),
    Mutant(
        "slots_copied_when_built",
        "meta.py",
        "tensor.detach().numpy()",
        "tensor.detach().numpy().copy()",
        "slots in the engine's own buffer are copied when the metadata is built",
    ),
    Mutant(
        "metadata_by_the_number_of_rows",
        "meta.py",
        "meta = build(request, SPEC, backend=backend, cls=TorchChunkMeta)",
        'meta = globals().setdefault("_kept", {}).setdefault('
        "(request.plan.num_seqs, request.plan.total_tokens), "
        "build(request, SPEC, backend=backend, cls=TorchChunkMeta))",
        "metadata is cached by the numbers of rows and tokens",
    ),
    Mutant(
        "chunk_size_misdeclared",
        "plugin.py",
        "chunk_size=CHUNK,",
        "chunk_size=2 * CHUNK,",
        "backend_info names another chunk size than the metadata's",
    ),
    Mutant(
        "host_read_in_the_layer",
        "layer.py",
        "starts = meta.plan.query_start_loc",
        "starts = meta.cu_seqlens.tolist()",
        "the layer reads where sequences start from the device",
    ),
    Mutant(
        "host_read_in_the_rule",
        "rule.py",
        "plan.query_start_loc.tolist(), plan.seq_lens.tolist(), strict=False",
        "request.meta.cu_seqlens.tolist(), plan.seq_lens.tolist(), strict=False",
        "the rule reads where sequences start from the device",
    ),
    # -- checkpoints -----------------------------------------------------------------------------
    Mutant(
        "checkpoint_a_chunk_early",
        "kernels/chunk.py",
        "due.get(end)",
        "due.get(end + CHUNK)",
        "a checkpoint holds the state of one chunk before",
    ),
    Mutant(
        "checkpoint_without_history",
        "layer.py",
        "tuple((o, history[s]) for o, s in self.checkpoints.get(row.number, ())),",
        "(),",
        "a checkpoint lacks the conv history",
    ),
    # -- convolution -----------------------------------------------------------------------------
    Mutant(
        "conv_bias_missing",
        "kernels/conv.py",
        "total.add_(self.bias)",
        "total.add_(0.0)",
        "the convolution's bias is forgotten",
    ),
    Mutant(
        "conv_taps_reversed",
        "kernels/conv.py",
        "self.taps = taps.copy_(weight.t())",
        "self.taps = taps.copy_(weight.flip(1).t())",
        "the convolution's taps are in the wrong order",
    ),
    Mutant(
        "activation_always",
        "kernels/conv.py",
        "self.silu = activation is not None",
        "self.silu = True",
        "activation=None is ignored",
    ),
    Mutant(
        "history_not_written",
        "kernels/conv.py",
        "target.copy_(column)",
        "pass",
        "a prefill leaves the conv history as it was",
    ),
    Mutant(
        "history_not_moved_on",
        "kernels/conv.py",
        "zip(history.unbind(2), columns[1:], strict=True)",
        "zip(history.unbind(2), columns[:-1], strict=True)",
        "a decode step leaves the conv history as it was",
    ),
    Mutant(
        "history_from_the_wrong_end",
        "kernels/conv.py",
        "rows[:missing].copy_(job.read[:, job.read.shape[1] - missing :].t())",
        "rows[:missing].copy_(job.read[:, :missing].t())",
        "a sequence shorter than the history keeps the oldest columns of the old one",
    ),
    Mutant(
        "conv_block_starts_late",
        "kernels/conv.py",
        "rows[from_history:].copy_(x[job.start + offset - from_x : job.start + offset])",
        "rows[from_history:].copy_(x[job.start + offset - from_x + 1 : job.start + offset + 1])",
        "the convolution is off by one token at the edge of a block",
    ),
    # -- speculative decode ----------------------------------------------------------------------
    Mutant(
        "draft_reads_the_next_column",
        "layer.py",
        "int(read[n, taken - 1])",
        "int(read[n, min(taken, columns - 1)])",
        "a draft starts from column `accepted`, not `accepted - 1`",
    ),
    Mutant(
        "draft_history_shifted",
        "layer.py",
        "line,\n                    taken - 1,\n",
        "line,\n                    max(taken - 2, 0),\n",
        "a draft reads its conv line one column early",
    ),
    Mutant(
        "draft_history_cut",
        "layer.py",
        "kept = columns - 1 + row.length",
        "kept = columns",
        "a draft keeps the conv history of its last token only",
    ),
    Mutant(
        "draft_history_of_the_write_slot",
        "layer.py",
        'self._slot("initial_state_indices", int(read[n, 0])) if reads else None',
        'self._slot("initial_state_indices", int(write[n, 0])) if reads else None',
        "a draft that moves to other slots reads the conv line that it writes",
    ),
    Mutant(
        "draft_always_has_a_state",
        "layer.py",
        "reads = self._reads(n)",
        "reads = True",
        "has_initial_state is ignored for drafts",
    ),
    Mutant(
        "draft_states_one_late",
        "kernels/steps.py",
        "(target := writes[t]) is not None",
        "(target := writes[t - 1]) is not None",
        "the state after a draft token goes to the slot of the one before",
    ),
    # -- the caller's surroundings ---------------------------------------------------------------
    Mutant(
        "autocast_in_the_rule",
        "plugin.py",
        "with torch.autocast(device, enabled=False):  # fp32 inside is part of the contract",
        "request.v = request.v.to(torch.get_autocast_dtype(device)).to(request.v.dtype)\n"
        "    with torch.autocast(device, enabled=False):",
        "the rule's values are rounded to the dtype of the caller's autocast",
    ),
    Mutant(
        "autocast_in_the_layer",
        "plugin.py",
        "with torch.no_grad(), torch.autocast(request.out.device.type, enabled=False):",
        "if request.a is not None and torch.is_autocast_enabled(request.out.device.type):\n"
        "        request.a = request.a.to(torch.get_autocast_dtype(request.out.device.type))\n"
        "    with torch.no_grad(), torch.autocast(request.out.device.type, enabled=False):",
        "the layer's gates are rounded to the dtype of the caller's autocast",
    ),
)
