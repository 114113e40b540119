"""What serves the engine: one line of the log per process, and counters that can be read."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from gdn_dispatch.integrations.vllm.versions import TESTED

if TYPE_CHECKING:
    from gdn_dispatch.meta import ChunkMeta
    from gdn_dispatch.selection.resolver import Selection

__all__ = ["WorkerExtension", "announce", "count", "count_step", "counters"]

# Below vLLM's own logger, the only one it gives a handler: elsewhere an INFO line is never seen.
_logger = logging.getLogger("vllm.gdn_dispatch")
_lock = threading.Lock()
_announced = False
_counts: Counter[str] = Counter()


def announce(selection: Selection, version: str, *, captured: bool) -> None:
    """Say, once per process, which backend serves and how it gets its metadata.

    Args:
        selection: How the backend was chosen.
        version: vLLM's.
        captured: Whether whole steps are captured in graphs, whose metadata is updated in place.
    """
    global _announced
    with _lock:
        if _announced:
            return
        _announced = True
    mode = "built once per step and KV cache group"
    if captured:
        mode += ", updated in place for captured graphs"
    _logger.info(
        "gdn_dispatch serves the Gated DeltaNet layers of vLLM %s%s: backend %s, provider %s (%s); "
        "metadata %s",
        version,
        "" if version.startswith(TESTED) else " (not tested; its seam is as expected)",
        selection.chosen,
        selection.provider or "default",
        selection.why,
        mode,
    )


def count(name: str, number: int = 1) -> None:
    """Add to a counter."""
    _counts[name] += number


def count_step(meta: ChunkMeta) -> None:
    """Count a step by the groups of rows it holds, such as ``step:prefill+decode``."""
    kinds = [
        kind
        for kind in ("prefill", "decode", "speculative")
        if (group := getattr(meta, kind)) is not None and group.num_tokens
    ]
    _counts["step:" + ("+".join(kinds) or "empty")] += 1


def counters() -> dict[str, int]:
    """Counts of this process, by name; sorted.

    ``step:KINDS``: metadata made for a step whose rows were of these kinds, once per KV cache
    group. ``layer``: layer calls served; ``layer:profile``: those of a profile run, which has no
    metadata; a replayed graph calls no layer. ``metadata:updated``: steps written into the metadata
    of a captured graph.
    """
    return dict(sorted(_counts.items()))


class WorkerExtension:
    """For vLLM's ``worker_extension_cls``: the counters of every worker, from outside.

    With ``LLM(..., worker_extension_cls="gdn_dispatch.integrations.vllm.observability.
    WorkerExtension")``, ``llm.collective_rpc("gdn_dispatch_counters")`` returns one dict per rank.
    """

    def gdn_dispatch_counters(self) -> dict[str, Any]:
        """``counters()`` of this worker."""
        return counters()
