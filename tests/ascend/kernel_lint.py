"""What an Ascend core gets wrong, or slow, and no compiler says: found in the source of kernels.

    python tests/ascend/kernel_lint.py FILE ...

It reads Python's syntax tree and infers only what it needs, inside one function at a time. What a
called function returns is not known, but for the width of integers within one file; so it may miss
a violation behind a call, and does not invent one.

    left operand     a product may overwrite its left operand: nothing may read it afterwards, under
                     any name it goes by (transposed, reshaped, cast to what it is already)
    run-time if      both sides keep their values in the unified buffer: masks, tl.where and bounds
                     of loops instead; only what is known when compiling may be asked
    pointer advance  a pointer moved in place from one round of a loop to the next is miscompiled
    int64 vector     sums and products of int64 vectors go through the scalar unit, one at a time
    lower bound      triton-adapter-opt 3.2.0 crashes now and then on a mask with a lower bound:
                     move the address instead
    precision        tl.dot has to name a precision that the cube has: "ieee" or "hf32"
    grid             a launch takes its grid from ``grid``, which is bounded by the cores
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

VIEWS = {"trans", "reshape", "cast", "view", "permute", "expand_dims"}
MAKERS = {"arange", "zeros", "full", "zeros_like", "full_like", "trans", "dot", "cumsum"}
LOADS = {"load", "store", "atomic_add", "atomic_cas"}
PRECISIONS = {"ieee", "hf32"}


@dataclass(frozen=True)
class Violation:
    """One find."""

    line: int
    rule: str
    message: str


def violations(source):
    """All finds in the source text of a file, by line."""
    tree = ast.parse(source)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    kernels = [node for node in functions if _is_kernel(node)]
    wide = {node.name: _returned_widths(node) for node in kernels}
    found = []
    for kernel in kernels:
        found += _left_operands(kernel)
        found += _branches(kernel)
        found += _advances(kernel)
        found += _Widths(kernel, wide).found
        found += _precisions(kernel)
    found += _grids(tree)
    return sorted(set(found), key=lambda one: (one.line, one.rule))


def _is_kernel(node):
    names = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(name.startswith("triton.jit") for name in names)


def _called(node):
    """``dot`` of ``tl.dot(...)``, ``to`` of ``x.to(...)``, else the function's name."""
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else None


def _is_tl(node):
    return isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "tl"


def _names(node):
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _targets(statement):
    if isinstance(statement, ast.Assign):
        nodes = statement.targets
    elif isinstance(statement, (ast.AugAssign, ast.AnnAssign, ast.For)):
        nodes = [statement.target]
    else:
        return []
    return [one.id for node in nodes for one in ast.walk(node) if isinstance(one, ast.Name)]


# left operand


def _root(node):
    """The name a value is a view of, or None where it is a value of its own."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call) and _called(node) == "to":
        return _root(node.func.value)
    if isinstance(node, ast.Call) and _is_tl(node) and _called(node) in VIEWS and node.args:
        return _root(node.args[0])
    return None


def _left_operands(kernel):
    found, spent, same = [], {}, {}

    def group(name):
        while name in same:
            name = same[name]
        return name

    def expression(node):
        """Reads, in the order of evaluation; a product spends its left operand at its end."""
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            line = spent.get(group(node.id))
            if line is not None:
                message = f"{node.id} was the left operand of the product in line {line}"
                found.append(Violation(node.lineno, "left operand", message))
        for child in ast.iter_child_nodes(node):
            expression(child)
        if _called(node) == "dot" and _is_tl(node):
            root = _root(node.args[0])
            if root is not None:
                spent[group(root)] = node.lineno

    def statements(body):
        for statement in body:
            if isinstance(statement, (ast.For, ast.While)):
                expression(statement.iter if isinstance(statement, ast.For) else statement.test)
                statements(statement.body)
                statements(statement.body)  # the next round reads what this one has spent
            elif isinstance(statement, ast.If):
                expression(statement.test)
                statements(statement.body)
                statements(statement.orelse)
            else:
                expression(statement)
                value = getattr(statement, "value", None)
                for name in _targets(statement):
                    same.pop(name, None)
                    spent.pop(name, None)
                    root = None if isinstance(statement, ast.AugAssign) else _root(value)
                    if root is not None and group(root) != name:
                        same[name] = group(root)

    statements(kernel.body)
    return found


# run-time if


def _known(node, constants):
    """Whether an expression is known when compiling."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name):
        return node.id in constants
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Is, ast.IsNot)):
        return True
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.UnaryOp, ast.Compare)):
        return all(
            _known(child, constants)
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.expr)
        )
    return False


def _is_constexpr(annotation):
    return annotation is not None and "constexpr" in ast.unparse(annotation)


def _branches(kernel):
    constants = {one.arg for one in kernel.args.args if _is_constexpr(one.annotation)}
    for node in ast.walk(kernel):
        if isinstance(node, ast.AnnAssign) and _is_constexpr(node.annotation):
            constants |= set(_targets(node))
        if isinstance(node, ast.For) and _called(node.iter) == "static_range":
            constants |= set(_targets(node))
    return [
        Violation(node.lineno, "run-time if", f"`{ast.unparse(node.test)}` is not a constant")
        for node in ast.walk(kernel)
        if isinstance(node, (ast.If, ast.IfExp)) and not _known(node.test, constants)
    ]


# pointer advance


def _pointers(kernel):
    """Parameters that addresses are made of, and names made of such."""
    addresses = [
        node.args[0]
        for node in ast.walk(kernel)
        if isinstance(node, ast.Call) and _called(node) in LOADS and _is_tl(node) and node.args
    ]
    assigned = [node for node in ast.walk(kernel) if isinstance(node, (ast.Assign, ast.AugAssign))]
    found = {name for address in addresses if (name := _base(address)) is not None}
    while True:
        more = {_base(node.value) for node in assigned if set(_targets(node)) & found}
        more |= {
            name for node in assigned if _base(node.value) in found for name in _targets(node)
            if isinstance(node.value, (ast.BinOp, ast.Name))
        }  # fmt: skip
        more.discard(None)
        if more <= found:
            return found
        found |= more


def _base(node):
    """The leftmost name of a sum."""
    while isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
        node = node.left
    return node.id if isinstance(node, ast.Name) else None


def _advances(kernel):
    pointers = _pointers(kernel)
    for loop in ast.walk(kernel):
        if not isinstance(loop, (ast.For, ast.While)):
            continue
        made = set()  # names that the loop makes anew before it changes them
        for node in (one for statement in loop.body for one in ast.walk(statement)):
            if isinstance(node, ast.Assign):
                for name in _targets(node):
                    if name in pointers and name in _names(node.value) and name not in made:
                        yield _advance(node, name)
                    made.add(name)
            elif isinstance(node, ast.AugAssign):
                for name in _targets(node):
                    if name in pointers:
                        yield _advance(node, name)


def _advance(node, name):
    message = f"{name} is a pointer and moves in place: add the distance to where it began"
    return Violation(node.lineno, "pointer advance", message)


# int64 vector


def _says_int64(node):
    return "int64" in ast.unparse(node)


def _returned_widths(kernel):
    """For each value a function returns, whether it is an int64."""
    last = [node for node in kernel.body if isinstance(node, ast.Return)]
    if not last or last[-1].value is None:
        return ()
    value = last[-1].value
    widths = _Widths(kernel, {})
    return tuple(
        widths.is_int64(one) for one in (value.elts if isinstance(value, ast.Tuple) else [value])
    )


class _Widths:
    """Which names of a function are vectors, and which are int64."""

    def __init__(self, kernel, returned):
        self.returned, self.vectors, self.int64, self.found = returned, set(), set(), []
        self.pointers = _pointers(kernel)
        self.masks = {}
        self._statements(kernel.body)

    def _statements(self, body):
        for statement in body:
            for node in (one for one in ast.walk(statement) if isinstance(one, ast.expr)):
                if not isinstance(statement, (ast.For, ast.If, ast.While)):
                    self._check(node)
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Assign):
                self._assign(statement, value)
            for inner in ("body", "orelse"):
                self._statements(getattr(statement, inner, ()))

    def _assign(self, statement, value):
        names = _targets(statement)
        widths = self.returned.get(_called(value), ())
        if len(names) == len(widths) and widths:
            self.int64 |= {name for name, wide in zip(names, widths, strict=True) if wide}
        elif isinstance(value, ast.Tuple) and len(value.elts) == len(names):
            for name, one in zip(names, value.elts, strict=True):
                self._name(name, one)
        elif len(names) == 1:
            self._name(names[0], value)

    def _name(self, name, value):
        if self.is_vector(value):
            self.vectors.add(name)
            self.masks[name] = [value]
        if self.is_int64(value):
            self.int64.add(name)

    def is_vector(self, node):
        """Whether an expression certainly has elements."""
        if isinstance(node, ast.Name):
            return node.id in self.vectors
        if isinstance(node, ast.Subscript):
            return isinstance(node.slice, ast.Tuple)
        if isinstance(node, (ast.BinOp, ast.Compare, ast.UnaryOp)):
            return any(self.is_vector(one) for one in ast.iter_child_nodes(node)
                       if isinstance(one, ast.expr))  # fmt: skip
        if isinstance(node, ast.Call):
            name = _called(node)
            if name == "to":
                return self.is_vector(node.func.value)
            if name in MAKERS:
                return True
            if name in {"load", "cast", "where", "minimum", "maximum", "exp", "exp2", "abs"}:
                return any(self.is_vector(one) for one in node.args)
        return False

    def is_int64(self, node):
        """Whether an expression certainly is an int64, and not an address."""
        if isinstance(node, ast.Name):
            return node.id in self.int64 and node.id not in self.pointers
        if isinstance(node, ast.BinOp):
            return _base(node) not in self.pointers and (
                self.is_int64(node.left) or self.is_int64(node.right)
            )
        if isinstance(node, ast.UnaryOp):
            return self.is_int64(node.operand)
        if isinstance(node, ast.Call):
            name = _called(node)
            if name in {"to", "cast"}:
                return _says_int64(node.args[-1])
            if name in {"zeros", "full"}:
                return any(_says_int64(one) for one in (*node.args[1:], *node.keywords))
            if name in {"where", "minimum", "maximum"}:
                return any(self.is_int64(one) for one in node.args)
            widths = self.returned.get(name, ())
            return len(widths) == 1 and widths[0]
        return False

    def _mask(self, node):
        """Comparisons of a mask, by whatever name it goes."""
        if isinstance(node, ast.Name):
            for value in self.masks.get(node.id, ()):
                yield from self._mask(value)
        elif isinstance(node, ast.Compare):
            yield node
        else:
            for one in ast.iter_child_nodes(node):
                yield from self._mask(one)

    def _check_mask(self, mask):
        for one in self._mask(mask):
            if isinstance(one.ops[0], (ast.Gt, ast.GtE)) and self.is_vector(one.left):
                message = f"`{ast.unparse(one)}` bounds a mask from below"
                self.found.append(Violation(one.lineno, "lower bound", message))

    def _check(self, node):
        if isinstance(node, ast.Call) and _called(node) in LOADS:
            for one in node.keywords:
                if one.arg == "mask":
                    self._check_mask(one.value)
        if isinstance(node, ast.Call) and _called(node) in {"to", "cast"} and node.args:
            value = node.func.value if _called(node) == "to" else node.args[0]
            if _says_int64(node.args[-1]) and self.is_vector(value):
                self._add(node, "a vector is made int64")
        if isinstance(node, ast.BinOp) and _base(node) not in self.pointers:
            for one, other in ((node.left, node.right), (node.right, node.left)):
                if self.is_vector(one) and self.is_int64(other):
                    self._add(node, "a vector meets an int64: add that to the address first")

    def _add(self, node, why):
        self.found.append(Violation(node.lineno, "int64 vector", f"{ast.unparse(node)}: {why}"))


# precision and grid


def _precisions(kernel):
    for node in ast.walk(kernel):
        if isinstance(node, ast.Call) and _called(node) == "dot" and _is_tl(node):
            said = [one.value for one in node.keywords if one.arg == "input_precision"]
            names = [one.value for one in said if isinstance(one, ast.Constant)]
            if len(names) != 1 or names[0] not in PRECISIONS:
                message = f"input_precision is one of {sorted(PRECISIONS)}"
                yield Violation(node.lineno, "precision", message)


def _grids(tree):
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Subscript):
            continue
        kernel = ast.unparse(node.func.value)
        if kernel.endswith("_kernel") and _called(node.func.slice) != "grid":
            yield Violation(node.lineno, "grid", f"{kernel} takes its grid from grid(tasks, cores)")


def main():
    """Print what is found in the files named; 1 where anything is."""
    count = 0
    for name in sys.argv[1:]:
        for one in violations(Path(name).read_text()):
            print(f"{name}:{one.line}: {one.rule}: {one.message}")
            count += 1
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
