"""The hooks a backend implements; their docstrings are the plugin author's manual.

A backend is a module (or object) whose functions carry ``@hookimpl``, published as an entry point
of group ``gdn_dispatch.backends``::

    from gdn_dispatch import hookimpl

    @hookimpl
    def backend_info(): ...

Three rules follow from how pluggy works, and the loader enforces them:

* No parameter of a hook implementation may have a default: pluggy would never pass it.
* Every compute hook takes one request object and must take it: an implementation that omits it
  would run without its inputs.
* A compute hook returns a ``GDNOutput``, never ``None``.

The entry module imports the standard library and ``gdn_dispatch`` only. Vendor SDKs are imported
inside hook bodies, so that a machine without the SDK can still load the module and say why the
backend is unavailable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from gdn_dispatch.meta import ChunkMeta
    from gdn_dispatch.plan.layout import Tables, TablesRequest
    from gdn_dispatch.types import (
        Available,
        BackendInfo,
        GDNOutput,
        GDNRequest,
        MetaRequest,
        RuleRequest,
        Unavailable,
    )

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "gdn_dispatch"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def backend_info() -> BackendInfo:  # type: ignore[empty-body]
    """State the backend's static facts: name, device types, priority, capability, block sizes.

    Called once, at ``import gdn_dispatch``. May assume nothing about the machine: must not import
    an SDK and must not touch a device. Must return a ``BackendInfo``, the same on every machine,
    whose ``name`` is that of the entry point. Required.

    .. versionadded:: 0.1
    """


@hookspec
def probe() -> Available | Unavailable:  # type: ignore[empty-body]
    """Look at the machine and answer whether the backend can run here.

    Called once, when an answer is first needed: not during ``import gdn_dispatch``, so that it may
    import what it likes. May assume nothing about the machine; may look at installed distributions,
    device nodes, ``torch.version`` and at ``torch.<device>.is_available()`` where that creates no
    device context. Must not create one itself, must not block (it is given a few seconds), and
    should not raise: an exception is recorded as the reason of unavailability. Must return
    ``Available`` or ``Unavailable``, whose ``reason`` says what is missing and what to install.
    Required.

    .. versionadded:: 0.1
    """


@hookspec(firstresult=True)
def build_chunk_meta(request: MetaRequest) -> ChunkMeta:  # type: ignore[empty-body]
    """Build the metadata all layers of a step share.

    Called by ``gdn_dispatch.build_chunk_meta``, once a step, and by a rule that is given lengths
    instead of metadata. May assume a validated ``request``: a consistent plan; device tensors of
    the right shape and dtype on ``request.device``. May read device tensors on the host only here,
    and a backend for an accelerator should not do even that. Must return a ``ChunkMeta`` (or a
    subclass) whose ``backend`` is the backend's name, and must not keep ``request``'s tensors in a
    cache keyed on their identity. Optional: without it, the core's builder makes the block sizes
    declared in ``backend_info`` and copies them to the device with one asynchronous copy.

    .. versionadded:: 0.1
    """


@hookspec(firstresult=True)
def chunk_tables(request: TablesRequest) -> Tables:  # type: ignore[empty-body]
    """Count the chunks and conv tiles of a step's prefill rows, and write their tables.

    Called by the core's builder of metadata, once a step, for metadata of any backend: of the
    available backends with this hook, the one of highest priority does it for all. May assume what
    ``TablesRequest`` says. Must return ``gdn_dispatch.plan.layout.Tables`` that write, element for
    element, what ``NumpyTables`` write. Optional: without it numpy does the same, more slowly.

    .. versionadded:: 0.1
    """


@hookspec(firstresult=True)
def gdn_attention(request: GDNRequest) -> GDNOutput:  # type: ignore[empty-body]
    """Run the layer core: conv, heads and gates, recurrence, on the engine's state pools.

    Computes, for every sequence of ``request.meta`` and with fp32 (or better) arithmetic::

        c = act(bias + sum_i w[:, i] * h[t + i]),  h = [history | x];  cast to activation dtype
        q, k, v = split(c);  q, k = x / sqrt(sum x^2 + 1e-6)
        g = -exp(A_log) * softplus(a + dt_bias);  beta = sigmoid(b), doubled by allow_neg_eigval
        S = exp(g) * S;  d = beta * (v - S^T k);  S = S + k d^T;  o = scale * S^T q

    Slots, ``has_initial_state``, speculative rows and checkpoints are those of ``request.meta``
    (see ``gdn_dispatch.plan_batch``).

    Called by every ``gdn_dispatch.gdn_attention`` that this backend was chosen for: once a layer.
    May assume metadata that this backend built, and shapes, dtypes, devices and a capability that
    the core has validated. Must write all of ``request.out`` (rows that belong to no sequence, and
    padded rows, with zeros), must update only the slots the plan names, and must not read a device
    tensor on the host. Slots and accepted counts that came as tensors are the backend's to refuse
    where it can look at them (on a CPU), before anything is written. Runs in the caller's grad and
    autocast modes, which must not change the arithmetic. Work is queued on the current stream.
    Must return ``GDNOutput(request.out, None)``. Optional: a backend without it
    serves the recurrence only.

    .. versionadded:: 0.1
    """


@hookspec(firstresult=True)
def gated_delta_rule(request: RuleRequest) -> GDNOutput:  # type: ignore[empty-body]
    """Run the recurrence alone, in chunks or (``request.recurrent``) token by token.

    Called by every ``chunk_gated_delta_rule`` and ``fused_recurrent_gated_delta_rule`` of
    ``gdn_dispatch`` that this backend was chosen for. May assume a ``request`` that the core has
    validated, against the declared capability too; inputs of any strides. ``g`` is natural-log
    decay and -inf is an ordinary value: it resets the state. Inputs are never written. Must return
    a ``GDNOutput`` whose ``output`` is contiguous ``[B, T, HV, V]`` in v's dtype, zero in rows past
    the last sequence, and whose ``final_state``, where one was asked for, is fp32 (fp64 for fp64
    inputs), newly allocated or the donated initial state, and equals the initial state for an empty
    sequence. Optional.

    .. versionadded:: 0.1
    """
