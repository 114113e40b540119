"""What can be seen in a module without running it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path


def imported_at_load(source: str) -> Iterator[str]:
    """Names of the modules that loading ``source`` imports; not what its functions import.

    ``from a import b`` gives ``a.b`` as well as ``a``: b may be a module.
    """
    for node in _at_load(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base
            if not node.level:
                yield from (f"{base}.{alias.name}" for alias in node.names)


def foreign_imports(module: Path, top: Path, allowed: frozenset[str]) -> set[str]:
    """Packages outside ``allowed`` that loading ``module`` of the package ``top`` imports.

    What it imports of its own package is followed, by its full name; a relative import is not, and
    is given back as foreign.
    """
    foreign: set[str] = set()
    seen: set[Path] = set()
    waiting = [top / "__init__.py", module]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imported_at_load(path.read_text(encoding="utf-8")):
            first, *rest = name.split(".")
            if first == top.name:
                inside = top.joinpath(*rest)
                found = (inside.with_suffix(".py"), inside / "__init__.py")
                waiting += [file for file in found if file.is_file()]
            elif first not in allowed | sys.stdlib_module_names:
                foreign.add(first or name)
    return foreign


def writes_to_imports(source: str) -> list[str]:
    """``line: what``, for everything imported that is changed: another module's state.

    By assignment to, or deletion of, an attribute or item whose root is an imported name; or by
    ``setattr`` and ``delattr`` on one.
    """
    tree = ast.parse(source)
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    return [
        f"{target.lineno}: {ast.unparse(target)}"
        for node in ast.walk(tree)
        for target in _written(node)
        if _root(target) in imported
    ]


def _at_load(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield other
                yield from _at_load(other)
        else:
            yield from _at_load(node)


def _written(node: ast.AST) -> Iterator[ast.expr]:
    """Attributes and items that ``node`` changes."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign | ast.Delete):
        targets = list(node.targets)
    elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For | ast.comprehension):
        targets = [node.target]
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        targets = [node.optional_vars]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id in ("setattr", "delattr") and node.args:
            yield node.args[0]
        return
    for target in targets:
        for part in ast.walk(target) if isinstance(target, ast.Tuple | ast.List) else [target]:
            if isinstance(part, ast.Attribute | ast.Subscript):
                yield part


def _root(node: ast.expr) -> str:
    """The name an expression starts from: ``a`` of ``a.b[c].d`` and of ``vars(a)[b]``."""
    while True:
        if isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "vars" and node.args:
            node = node.args[0]
        else:
            return node.id if isinstance(node, ast.Name) else ""
