"""``python tests/kit/table.py [--jobs N]``: run every mutant and write ``mutants.md``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.kit.harness import hunt, publish
from tests.kit.mutants import MUTANTS, Mutant

TABLE = Path(__file__).with_name("mutants.md")
HEAD = """\
# Mutants of the torch backend

Every line is the torch backend with one fault (`mutants.py`), and the test of the conformance kit
that found it first; the random serving trace and `torch.compile` are asked last. `make mutants`
shows that each is still found; `python tests/kit/table.py` writes this page.

| mutant | what is wrong | killed by |
|---|---|---|
"""


def killer(mutant: Mutant) -> str | None:
    """Name of the test that finds the mutant, or None; then what the kit printed is shown."""
    with tempfile.TemporaryDirectory() as folder:
        publish(Path(folder), mutant)
        outcome = hunt(Path(folder))
    print(f"{mutant.name}: {outcome.killed_by}", flush=True)
    if outcome.killed_by is None:
        print(outcome.output[-3000:], file=sys.stderr)
    return outcome.killed_by


def row(mutant: Mutant, killed_by: str) -> str:
    """One line of the table."""
    return f"| {mutant.name} | {mutant.what} | `{killed_by}` |\n"


def main() -> int:
    """Write the table; 1 if a mutant lives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="mutants run at the same time")
    with ThreadPoolExecutor(parser.parse_args().jobs) as pool:
        killers = list(pool.map(killer, MUTANTS))
    alive = [m.name for m, killed_by in zip(MUTANTS, killers, strict=True) if killed_by is None]
    if alive:
        print(f"not found, and the table is left as it was: {', '.join(alive)}", file=sys.stderr)
        return 1
    rows = [row(m, name) for m, name in zip(MUTANTS, killers, strict=True) if name is not None]
    TABLE.write_text(HEAD + "".join(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
