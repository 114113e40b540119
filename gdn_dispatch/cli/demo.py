"""``gdn-dispatch demo``: two small models, with and without this package, side by side."""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gdn_dispatch import __version__
from gdn_dispatch.cli import require
from gdn_dispatch.cli.progress import progress
from gdn_dispatch.selection.dispatch import explain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    import torch

    from gdn_dispatch.cli.demo_models import DemoModel
    from gdn_dispatch.cli.progress import Progress

__all__ = ["add_arguments", "run"]

_ROUNDS: Final = 3
_PROMPT: Final = 2048
_GENERATED: Final = 24
_BATCH: Final = 8
_EXCERPT: Final = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much, where, and on which backend."""
    parser.add_argument("--quick", action="store_true", help="one short round, for a first look")
    parser.add_argument("--device", default="cpu", help="where the models run (default: cpu)")
    parser.add_argument("--backend", metavar="NAME", help="name or name/provider, as in a call")


def run(args: argparse.Namespace) -> int:
    """0: the same tokens, or a tie that rounding decided. 1: other tokens."""
    transformers = require("transformers", extra="demo", purpose="the demo")
    import torch

    from gdn_dispatch.cli import demo_models

    rounds, length, new = (1, 512, 8) if args.quick else (_ROUNDS, _PROMPT, _GENERATED)
    text = demo_models.load_text()[:length]
    prompt = torch.tensor([list(text)], device=args.device)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(f"gdn-dispatch {__version__}, {versions}, {torch.get_num_threads()} threads")
    print(
        f"{new} tokens after {len(text)} bytes of Pride and Prejudice, one token each, and after "
        f"{_BATCH} excerpts of {_EXCERPT} bytes at once"
    )

    agreed = True
    cases = demo_models.MODELS
    with _quiet(transformers), progress(len(cases), 2 * rounds) as shown:
        results = [_measure(case, args, prompt, new, rounds, shown) for case in cases]
    for case, comparison in zip(cases, results, strict=True):
        print(f"\n{_headline(case)}")
        print(f"  backend   {_backend(args, case)}")
        print("\n".join(f"  {line}" for line in comparison.lines()))
        agreed = agreed and comparison.agrees
    return 0 if agreed else 1


@dataclass(frozen=True, slots=True)
class _Text:
    """One continuation, both ways: tokens, and the logits [generated, vocabulary] they are of."""

    theirs: list[int]
    ours: list[int]
    their_logits: torch.Tensor
    our_logits: torch.Tensor

    @property
    def equal(self) -> int:
        """How many tokens agree before the first that does not."""
        pairs = zip(self.theirs, self.ours, strict=True)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(self.ours))

    @property
    def difference(self) -> float:
        """Largest difference of a logit, as long as both continue the same text."""
        common = slice(self.equal + 1)
        return float((self.their_logits[common] - self.our_logits[common]).abs().max())

    @property
    def margin(self) -> float:
        """By how much transformers prefers its token to the next, where tokens part."""
        first, second = self.their_logits[self.equal].topk(2).values.tolist()
        return float(first - second)

    @property
    def agrees(self) -> bool:
        """All tokens equal, or parted by a tie: each logit may be off by the largest difference."""
        if self.equal == len(self.ours):
            return True
        small = self.difference <= 1e-4 * float(self.their_logits.abs().max())
        return small and self.margin <= 2 * self.difference


@dataclass(slots=True)
class _Side:
    """What one implementation did: seconds per round, and tokens and logits of its last."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    batched: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)

    def run(self, model: Any, prompt: torch.Tensor, new: int) -> None:
        """Continue the prompt, then several short excerpts of it at once."""
        excerpts = prompt[:, : _BATCH * _EXCERPT].view(_BATCH, _EXCERPT)
        one, several = _generate(model, prompt, new), _generate(model, excerpts, new)
        self.prefill.append(one.prefill)
        self.decode.append(one.decode)
        self.batched.append(several.decode)
        self.tokens = [*one.tokens.tolist(), *several.tokens.tolist()]
        self.logits = [*one.logits, *several.logits]

    def forget_times(self) -> None:
        """After warming up."""
        for times in (self.prefill, self.decode, self.batched):
            times.clear()


@dataclass(frozen=True, slots=True)
class _Comparison:
    theirs: _Side
    ours: _Side

    @property
    def texts(self) -> list[_Text]:
        columns = (self.theirs.tokens, self.ours.tokens, self.theirs.logits, self.ours.logits)
        return [_Text(*row) for row in zip(*columns, strict=True)]

    @property
    def agrees(self) -> bool:
        """Whether every text does."""
        return all(text.agrees for text in self.texts)

    def lines(self) -> list[str]:
        """The result in words."""
        theirs, ours, texts = self.theirs, self.ours, self.texts
        difference = max(text.difference for text in texts)
        largest = max(float(text.their_logits.abs().max()) for text in texts)
        return [
            *(f"tokens    {line}" for line in _verdicts(texts)),
            f"logits    largest difference {difference:.1e} (largest logit {largest:.2g})",
            f"prefill   {_speed_up(theirs.prefill, ours.prefill)}",
            f"decode    {_speed_up(theirs.decode, ours.decode)}  a token",
            f"{_BATCH} at once {_speed_up(theirs.batched, ours.batched)}  a token of each",
        ]


def _verdicts(texts: list[_Text]) -> Iterator[str]:
    parted = [text for text in texts if text.equal < len(text.ours)]
    total = sum(len(text.ours) for text in texts)
    if not parted:
        yield f"all {total} equal, in {len(texts)} texts"
    for text in parted:
        why = "a tie" if text.agrees else "NOT explained by rounding"
        yield (
            f"a text parts after {text.equal} of {len(text.ours)}; {why}: transformers' own choice "
            f"leads by {text.margin:.1e}"
        )


def _measure(
    case: DemoModel,
    args: argparse.Namespace,
    prompt: torch.Tensor,
    new: int,
    rounds: int,
    shown: Progress,
) -> _Comparison:
    """Both sides in turn, the first of one round being the last of the next."""
    from gdn_dispatch.cli.demo_models import make_model
    from gdn_dispatch.integrations.transformers import eject, inject

    shown.case(case.title)
    model = make_model(case, device=args.device)
    theirs, ours = _Side(), _Side()
    for number in range(-1, rounds):  # the round before the first warms up
        for side in (theirs, ours) if number % 2 else (ours, theirs):
            if side is ours:
                inject(model, backend=args.backend)
            if number < 0:
                side.run(model, prompt[:, : _BATCH * _EXCERPT], 2)
                side.forget_times()
            else:
                side.run(model, prompt, new)
                shown.step("with gdn_dispatch" if side is ours else "transformers alone")
            if side is ours:
                eject(model)
    return _Comparison(theirs, ours)


class _Generated(NamedTuple):
    tokens: torch.Tensor  # [B, new]
    logits: torch.Tensor  # [B, new, vocabulary]
    prefill: float
    decode: float  # per step


def _generate(model: Any, prompts: torch.Tensor, new: int) -> _Generated:
    """Prefill and greedy decoding, timed apart."""
    import torch

    tokens: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    with torch.inference_mode():
        started = _now(prompts.device)
        result = model(prompts, use_cache=True, logits_to_keep=1)
        prefilled = _now(prompts.device)
        for step in range(new):
            if step:
                past = result.past_key_values
                result = model(tokens[-1][:, None], past_key_values=past, use_cache=True)
            logits.append(result.logits[:, -1])
            tokens.append(logits[-1].argmax(-1))
        ended = _now(prompts.device)
        return _Generated(
            torch.stack(tokens, 1).cpu(),
            torch.stack(logits, 1).float().cpu(),
            prefilled - started,
            (ended - prefilled) / (new - 1),
        )


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        import torch

        torch.get_device_module(device).synchronize()
    return time.perf_counter()


def _speed_up(theirs: list[float], ours: list[float]) -> str:
    """Medians, and the median of the ratios round by round: neighbours share what disturbs them."""
    ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
    before, after = (1e3 * statistics.median(side) for side in (theirs, ours))
    return f"{before:7.1f} ms -> {after:7.1f} ms  {ratio:5.2f}x"


def _headline(case: DemoModel) -> str:
    heads = f"H = {case.num_heads}, HV = {case.num_v_heads}, K = V = 128"
    return f"{case.title}, 3 Gated DeltaNet layers of 4, {heads}, fp32, random weights"


def _backend(args: argparse.Namespace, case: DemoModel) -> str:
    selection = explain(
        "chunk_gated_delta_rule", device=args.device, dtype="float32", head_dim_k=128,
        head_dim_v=128, num_heads=case.num_heads, num_v_heads=case.num_v_heads,
        backend=args.backend,
    )  # fmt: skip
    return f"{selection.chosen}: {selection.why}"


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' warnings that it falls back, which is what is being shown."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
