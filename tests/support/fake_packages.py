"""Distributions that are nothing but metadata and a module, and processes that find them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from gdn_dispatch.plugins.discovery import GROUP

__all__ = ["ROOT", "distribution", "fresh_process", "fresh_python"]

ROOT = Path(__file__).parents[2]


def distribution(
    folder: Path, dist: str, name: str, value: str, version: str = "1.0"
) -> list[metadata.EntryPoint]:
    """Write the metadata pip would write, and return the entry points found in it."""
    info = folder / f"{dist.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {value}\n")
    return list(metadata.PathDistribution(info).entry_points)


def fresh_process(
    folder: Path, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments where the distributions in ``folder`` are installed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("GDN_DISPATCH")}
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, "PYTHONPATH": path, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def fresh_python(folder: Path, code: str, **environ: str) -> str:
    """What ``code`` prints there; it has to end well."""
    result = fresh_process(folder, "-c", code, **environ)
    assert result.returncode == 0, result.stderr
    return result.stdout
