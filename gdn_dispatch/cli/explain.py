"""``gdn-dispatch explain``: the decision for one call, without making it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gdn_dispatch.capability import Feature
from gdn_dispatch.selection.dispatch import explain
from gdn_dispatch.selection.report import selection_text
from gdn_dispatch.selection.resolver import HOOK_OF_OP

if TYPE_CHECKING:
    import argparse

    from gdn_dispatch.selection.resolver import Selection

__all__ = ["add_arguments", "run", "selection_record"]

_SIZES = {
    "head_dim_k": "K, the width of a query or key head",
    "head_dim_v": "V, the width of a value head",
    "num_heads": "H, query and key heads",
    "num_v_heads": "HV, value heads",
    "conv_width": "W, taps of the convolution",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of ``report.explain_command``, so that a line out of an error can be pasted."""
    parser.add_argument(
        "--op", default="gdn_attention", metavar="NAME", help=f"one of {', '.join(HOOK_OF_OP)}"
    )
    parser.add_argument("--device", default="cpu", help="such as cuda; it need not exist here")
    parser.add_argument("--dtype", help="of the activations, such as bfloat16")
    parser.add_argument("--state-dtype", metavar="DTYPE", help="of the state pool")
    for name, meaning in _SIZES.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=0, metavar="N", help=meaning)
    features = ", ".join(feature.name.lower() for feature in Feature)
    parser.add_argument(
        "--feature", action="append", default=[], metavar="NAME",
        help=f"what the call needs besides; may be repeated: {features}",
    )  # fmt: skip
    parser.add_argument("--backend", metavar="NAME", help="name or name/provider, as in a call")
    parser.add_argument("--json", action="store_true", help="print the decision as JSON")


def run(args: argparse.Namespace) -> int:
    """0: a backend would run the call. 1: it would be refused."""
    selection = explain(
        args.op,
        device=args.device,
        dtype=args.dtype,
        state_dtype=args.state_dtype,
        features=args.feature,
        backend=args.backend,
        **{name: getattr(args, name) for name in _SIZES},
    )
    print(
        json.dumps(selection_record(selection), indent=2)
        if args.json
        else selection_text(selection)
    )
    return 0 if selection.chosen else 1


def selection_record(selection: Selection) -> dict[str, Any]:
    """A selection as plain data, for JSON. The keys do not change from release to release."""
    facts, choice = selection.facts, selection.choice
    return {
        "call": {
            "op": facts.op,
            "device": facts.device_type,
            "dtype": facts.dtype,
            "state_dtype": facts.state_dtype,
            **{name: getattr(facts, name) for name in _SIZES},
            "features": sorted(feature.name.lower() for feature in facts.features),
        },
        "requested": {"name": choice.name, "provider": choice.provider, "source": choice.source},
        "chosen": selection.chosen,
        "provider": selection.provider,
        "why": selection.why,
        "refusal": selection.refusal,
        "rejections": [
            {"backend": r.backend, "stage": r.stage, "reasons": list(r.reasons)}
            for r in selection.rejections
        ],
    }
