"""A spoilt copy of the torch backend, published as a third party's, and the kit run on it.

A copy: the kit's own oracle is ``torch_backend/reference.py``, which must stay as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from gdn_dispatch.plugins.discovery import GROUP
from tests.kit.mutants import Mutant

__all__ = ["BACKEND", "SOURCE", "Outcome", "hunt", "mutated", "publish", "run_kit"]

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "gdn_dispatch" / "torch_backend"
BACKEND = "mutant"
_PACKAGE = "gdn_mutant"
_ORIGINAL = "gdn_dispatch.torch_backend"
_LAST = "random_serving or graph or operator"
_FINDINGS = (
    "AssertionError",
    "assert ",
    "Failed: DID NOT RAISE",
    "gdn_dispatch.errors.",
    "torch.testing.",  # opcheck's
)
"""How the message begins of a test that found something, rather than broke down."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run of the kit.

    Attributes:
        code: pytest's exit status.
        killed_by: The first test that failed with an assertion or a typed error, or None.
        output: What pytest printed.
    """

    code: int
    killed_by: str | None
    output: str


def mutated(mutant: Mutant) -> str:
    """The source of the mutant's file, with the fault in it."""
    text = (SOURCE / mutant.file).read_text(encoding="utf-8")
    found = text.count(mutant.before)
    if found != 1:
        raise ValueError(f"mutant {mutant.name} is stale: found {found} times in {mutant.file}")
    return text.replace(mutant.before, mutant.after)


def publish(folder: Path, mutant: Mutant | None) -> None:
    """Write the copy and the metadata pip would write; without a mutant the copy is healthy."""
    package = folder / _PACKAGE
    for file in SOURCE.rglob("*.py"):
        path = file.relative_to(SOURCE).as_posix()
        if path == "reference.py":
            continue
        is_spoilt = mutant is not None and mutant.file == path
        text = mutated(mutant) if is_spoilt else file.read_text(encoding="utf-8")
        text = text.replace(_ORIGINAL, _PACKAGE)
        text = text.replace(f"{_PACKAGE}.reference", f"{_ORIGINAL}.reference")
        if path == "plugin.py":
            text = text.replace('_NAME = "torch"', f'_NAME = "{BACKEND}"')
        target = package / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    info = folder / f"{_PACKAGE}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {_PACKAGE}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{BACKEND} = {_PACKAGE}.plugin\n")


def run_kit(folder: Path, *arguments: str) -> Outcome:
    """Run the kit on what was published in ``folder``, up to the first failure."""
    # its own settings: a third party does not have those of this repository
    (folder / "pytest.ini").write_text("[pytest]\n")
    report = folder / "report.xml"
    ours = ("GDN_DISPATCH", "PYTEST", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "pytest", "-c", "pytest.ini", "--rootdir", str(folder), "-x", "-q",
        "-p", "no:cacheprovider", "--junitxml", str(report), "--pyargs", "gdn_dispatch.testing",
        "--gdn-require", "--gdn-backend", BACKEND, *arguments,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder)
    killed_by = _first_finding(report) if report.exists() else None
    return Outcome(result.returncode, killed_by, result.stdout + result.stderr)


def hunt(folder: Path) -> Outcome:
    """Run the kit on a mutant: first without the random trace and ``torch.compile``, then those.

    The trace finds nearly everything, so it would hide that nothing else does; and what it says is
    less to the point than what a small test says. The compiler takes longest to start.
    """
    outcome = run_kit(folder, "-k", f"not ({_LAST})")
    return outcome if outcome.code else run_kit(folder, "-k", _LAST)


def _first_finding(report: Path) -> str | None:
    """Name of the first test whose body failed; a fixture or an import that broke is an error."""
    for case in ElementTree.parse(report).iter("testcase"):
        failure = case.find("failure")
        if failure is not None and failure.get("message", "").startswith(_FINDINGS):
            return case.get("name")
    return None
