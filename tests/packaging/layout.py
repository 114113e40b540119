"""The distributions of this repository: where they stand, and what their pyproject files say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from gdn_dispatch.plugins.discovery import GROUP

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
BACKENDS = ("ascend", "cpu", "cuda", "xpu")


def folder(name: str) -> Path:
    """Project folder of a backend."""
    return ROOT / "backends" / name


def package(name: str) -> Path:
    """Import package of a backend."""
    return folder(name) / f"gdn_dispatch_{name}"


def pyproject(where: Path) -> dict[str, Any]:
    return tomllib.loads((where / "pyproject.toml").read_text(encoding="utf-8"))


def write_metadata(name: str, where: Path) -> None:
    """Write to ``where`` what pip writes when it installs a backend, without its modules."""
    project = pyproject(folder(name))["project"]
    info = where / f"gdn_dispatch_{name}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    entries = "".join(f"{n} = {m}\n" for n, m in project["entry-points"][GROUP].items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}")
