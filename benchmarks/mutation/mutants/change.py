"""Mutants of a file: one operator, comparison, number, condition or statement of it is changed."""

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]

ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult, ast.MatMult: ast.Add,
}  # fmt: skip
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A file, with one change in a line; `function` is the path of the outermost function around it, if any."""

    file: str
    line: int
    node: str
    what: str
    function: tuple[str, ...]
    source: str

    @property
    def text(self) -> str:
        return (ROOT / self.file).read_text().splitlines()[self.line - 1].strip()

    @property
    def key(self) -> str:
        """What it is called in a record of outcomes: the same only for the same change of the same file."""
        return f"{self.file}:{self.line} {self.what} {hashlib.sha256(self.source.encode()).hexdigest()[:12]}"

    @property
    def name(self) -> str:
        """What it is called in the list of those that are explained: without the line number, which changes often."""
        return f"{self.file}: {self.text[:80]} | {self.node[:60]} | {self.what}"


def number_of_mutants(file: str) -> int:
    return len(list(_places(ast.parse((ROOT / file).read_text()))))


def mutant_of(file: str, number: int) -> Mutant:
    """Make one of the mutants of a file."""
    tree = ast.parse((ROOT / file).read_text())
    node, kind = list(_places(tree))[number]
    before = ast.unparse(node)
    what = _change(node, kind)
    return Mutant(file, node.lineno, before, what, _function_of(node), ast.unparse(ast.fix_missing_locations(tree)))


def _function_of(node: ast.AST) -> tuple[str, ...]:
    """Return the names of the classes around the outermost function, and its own; empty outside of functions."""
    path: list[str] = []
    while (node := getattr(node, "parent", None)) is not None:  # type: ignore[assignment]
        if isinstance(node, ast.FunctionDef):
            path = [node.name]
        elif isinstance(node, ast.ClassDef) and path:
            path.insert(0, node.name)
    return tuple(path)


def _places(tree: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Yield the nodes that can be changed, and how; not annotations, defaults, messages or docstrings."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if _is_aside(node):
            continue
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            yield node, "operator"
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            yield node, "comparison"
        elif isinstance(node, ast.BoolOp):
            yield node, "and/or"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
            yield node, "unary"
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, "number"
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            yield node, "condition"
        elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            yield node, "statement"


def _is_aside(node: ast.AST) -> bool:
    """Whether a node is in a message, an annotation, a default, an import guard or a class of types."""
    while (parent := getattr(node, "parent", None)) is not None:
        if isinstance(parent, ast.Raise | ast.JoinedStr | ast.arguments | ast.Assert):
            return True
        if isinstance(parent, ast.AnnAssign) and node is parent.annotation:
            return True
        if isinstance(parent, ast.FunctionDef) and (node is parent.returns or node in parent.decorator_list):
            return True
        if isinstance(parent, ast.Subscript) and isinstance(parent.value, ast.Name) and parent.value.id == "Literal":
            return True
        if isinstance(parent, ast.If) and isinstance(parent.test, ast.Name) and parent.test.id == "TYPE_CHECKING":
            return True
        node = parent
    return False


def _change(node: ast.expr | ast.stmt, kind: str) -> str:
    """Change a node in place; returns what was done."""
    if isinstance(node, ast.BinOp):
        before, node.op = type(node.op), ARITHMETIC[type(node.op)]()
        return f"{before.__name__} -> {type(node.op).__name__}"
    if isinstance(node, ast.Compare):
        before, node.ops[0] = type(node.ops[0]), COMPARISONS[type(node.ops[0])]()
        return f"{before.__name__} -> {type(node.ops[0]).__name__}"
    if isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return "and <-> or"
    if isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
        if isinstance(node.op, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
        return "sign or not dropped"
    if isinstance(node, ast.Constant):
        before_value = node.value
        node.value = before_value + 1 if isinstance(before_value, int) else before_value * 2 + 0.1  # type: ignore[operator]
        return f"{before_value} -> {node.value}"
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return "condition negated"
    parent = node.parent  # type: ignore[attr-defined]
    for body in (getattr(parent, name, None) for name in ("body", "orelse", "finalbody")):
        if isinstance(body, list) and node in body:
            # not `pass`: a function that still mentions `super` can replace the original one
            body[body.index(node)] = ast.If(ast.Constant(False), [node], [])
    return "statement dropped"
