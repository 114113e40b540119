"""Which layers of the installed transformers this integration covers.

Found by reading, not from a table: a modeling file is searched for the name of the chunk rule and
parsed only if it has it; no module is imported before its class is needed. The whole search takes
less time than importing one model.
"""

from __future__ import annotations

import ast
import dis
import importlib
import importlib.metadata
import importlib.util
import inspect
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from gdn_dispatch.errors import IntegrationError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CONVOLUTIONS",
    "RULES",
    "LayerClass",
    "calls_the_rules",
    "find_layers",
    "innermost",
    "load_class",
    "transformers_version",
]

RULES = ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule")
"""Globals a Gated DeltaNet layer of transformers >= 5.15 calls; both are required."""

CONVOLUTIONS = ("causal_conv1d_fn", "causal_conv1d_update")
"""Globals replaced where a layer calls them."""

_OLDEST = "5.15"
_INSTALL = "pip install 'gdn-dispatch[transformers]'"


@dataclass(frozen=True, slots=True)
class LayerClass:
    """A layer class, known by name.

    Attributes:
        model: The model's directory in transformers, such as ``qwen3_next``.
        name: The class.
    """

    model: str
    name: str

    @property
    def module(self) -> str:
        """Where it is defined."""
        return f"transformers.models.{self.model}.modeling_{self.model}"


def transformers_version() -> str:
    """Version of the installed transformers.

    Raises:
        IntegrationError: There is none.
    """
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        raise IntegrationError(f"transformers is not installed; {_INSTALL}") from None


@lru_cache(maxsize=1)
def find_layers() -> tuple[LayerClass, ...]:
    """Every layer class of the installed transformers that calls the rules.

    Raises:
        IntegrationError: transformers is missing, or too old to have one.
    """
    version = transformers_version()
    found = tuple(layer for path in _modeling_files() for layer in _layers_of(path))
    if not found:
        raise IntegrationError(
            f"transformers {version}: none of its layers calls {' and '.join(RULES)}, as those of "
            f"{_OLDEST} and later do; upgrade it: pip install -U 'transformers>={_OLDEST}'"
        )
    return found


def _modeling_files() -> Iterator[Path]:
    spec = importlib.util.find_spec("transformers")  # finds, does not import
    for root in (spec and spec.submodule_search_locations) or ():
        yield from sorted(Path(root, "models").glob("*/modeling_*.py"))


def _layers_of(path: Path) -> Iterator[LayerClass]:
    source = path.read_bytes()
    if RULES[0].encode() not in source:
        return
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and _mentions_a_rule(node):
            yield LayerClass(path.parent.name, node.name)


def _mentions_a_rule(node: ast.ClassDef) -> bool:
    # decorators of the class are not part of its body: they only name the functions
    names = (n for statement in node.body for n in ast.walk(statement))
    return any(isinstance(n, ast.Name) and n.id in RULES for n in names)


def load_class(layer: LayerClass) -> Any:
    """Import the class, and check that it is what its source looked like.

    Raises:
        IntegrationError: Its ``forward`` does not call the rules as globals.
    """
    cls = getattr(importlib.import_module(layer.module), layer.name)
    if not calls_the_rules(cls):
        raise IntegrationError(
            f"{layer.module}.{layer.name} (transformers {transformers_version()}): forward() does "
            f"not call {' and '.join(RULES)} as globals of its module, so they cannot be replaced "
            f"there; supported is transformers >= {_OLDEST} as long as it does"
        )
    return cls


def calls_the_rules(cls: type[Any]) -> bool:
    """Whether ``cls.forward`` calls both rules as globals of its module."""
    function = innermost(cls.__dict__.get("forward") or getattr(cls, "forward", None))
    if not isinstance(function, FunctionType):
        return False
    called = {i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL"}
    return called.issuperset(RULES) and function.__globals__.keys() >= set(RULES)


def innermost(function: Any) -> Any:
    """The function below all decorators that keep ``__wrapped__``."""
    return inspect.unwrap(function)
