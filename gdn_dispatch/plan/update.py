"""A new step in the place of an old one, for device tensors a captured graph reads.

The sections of a layout become capacities: a step that fits is written to their beginnings, and
their tails are padded so that whatever still reads them finds nothing to do. Offsets and cu_seqlens
repeat their last value, so that what they bound is empty; slots are ``pad_slot``; accepted counts
are 1; row, chunk, tile and token numbers are -1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gdn_dispatch.errors import MetadataError
from gdn_dispatch.plan.arrays import Int32Array
from gdn_dispatch.plan.batch import BatchPlan
from gdn_dispatch.plan.groups import Groups
from gdn_dispatch.plan.layout import GROUP_KINDS, Contents, Layout, fill

__all__ = ["check_fits", "complete", "refit"]

_REPEATS_LAST = frozenset(
    {
        "cu_seqlens",
        "cu_seqlens_nonempty",
        "chunk_offsets",
        "update_chunk_offsets",
        "final_chunk_indices",
    }
)
_SLOTS = frozenset({"state_indices", "initial_state_indices", "checkpoint_slots"})


def complete(what: Contents, layout: Layout, plan: BatchPlan, groups: Groups) -> None:
    """Spell out in ``what`` the defaults of ``plan`` that ``layout`` has sections for.

    Raises:
        MetadataError: A section has no default.
    """
    held = layout.sections
    if "state_indices" in held and plan.state_indices is None:
        raise MetadataError("state_indices", "None", "slots on the host, as built")
    if "initial_state_indices" in held and plan.initial_state_indices is None:
        if plan.state_indices is None:
            raise MetadataError("initial_state_indices", "None", "slots on the host, as built")
        what.arrays["initial_state_indices"] = plan.state_indices
    if "has_initial_state" in held and plan.has_initial_state is None:
        what.arrays["has_initial_state"] = np.ones(plan.num_seqs, np.bool_)
    for kind in GROUP_KINDS:
        # A group built with token_indices is read through them, even where it is one run now.
        group = getattr(groups, kind)
        if group is not None and f"token_indices/{kind}" in held:
            what.token_indices[kind] = group


def check_fits(layout: Layout, what: Contents) -> None:
    """Refuse a step that ``layout`` has no room for.

    Raises:
        MetadataError: A section of ``what`` is not in ``layout``, or larger there.
    """
    for name, shape in what.shapes().items():
        section = layout.sections.get(name)
        if section is None:
            raise MetadataError(
                name, f"shape {list(shape)}", "none: the metadata was built without it"
            )
        if shape[0] > section.shape[0] or shape[1:] != section.shape[1:]:
            raise MetadataError(
                name,
                f"shape {list(shape)}",
                f"at most {list(section.shape)}, what the metadata was built with",
            )


def refit(layout: Layout, what: Contents, plan: BatchPlan, flat: Int32Array) -> None:
    """Write ``what``, which fits, into ``flat``; a section it lacks is padding as a whole."""
    fill(layout, what, flat)
    shapes = what.shapes()
    for name, section in layout.sections.items():
        used = shapes[name][0] if name in shapes else 0
        if used < section.shape[0]:
            target = section.of(flat)
            target[used:] = _padding(name, target[:used], plan)


def _padding(name: str, used: npt.NDArray[Any], plan: BatchPlan) -> int:
    base = name.partition("/")[0]
    if base in _REPEATS_LAST:
        return int(used[-1]) if used.size else 0
    if base in _SLOTS:
        return plan.pad_slot
    if base == "seq_starts":
        return plan.num_tokens  # where rows without tokens begin
    if base == "has_initial_state":
        return 0
    return 1 if base == "num_accepted_tokens" else -1
