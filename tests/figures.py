"""Figures of a package's source, from `ast`; `python tests/figures.py [FOLDER...]` prints one column per folder.

Branches are `if`, `for`, `while`, `except`, conditional expressions, and each further operand of `and` and `or`. A
bare `Any` is an annotation that is `Any`, or has it as a type argument at any depth; aliases are not followed.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[1]
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp)


@dataclass(frozen=True)
class Function:
    """`file` is relative to the package; `lines` counts from `def` to the last line, without decorators."""

    file: str
    name: str
    lines: int
    branches: int


@cache
def sources(package: Path) -> dict[str, ast.Module]:
    """Path relative to the package -> parsed file."""
    return {str(path.relative_to(package)): ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}


def lines_of(package: Path) -> dict[str, int]:
    """Path -> number of lines, longest file first."""
    counts = {str(path.relative_to(package)): len(path.read_text().splitlines()) for path in package.rglob("*.py")}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def branches(node: ast.AST) -> int:
    """Number of branches inside `node`, including functions defined in it."""
    inside = list(ast.walk(node))
    further = sum(len(part.values) - 1 for part in inside if isinstance(part, ast.BoolOp))
    return sum(isinstance(part, _BRANCHES) for part in inside) + further


@cache
def functions_of(package: Path) -> list[Function]:
    """Every function and method, longest first; nested functions also have their own entries."""
    found = [
        Function(file, name, (node.end_lineno or node.lineno) - node.lineno + 1, branches(node))
        for file, tree in sources(package).items()
        for name, node in _named(tree, "")
    ]
    return sorted(found, key=lambda function: (-function.lines, function.file, function.name))


def _named(node: ast.AST, prefix: str) -> Iterator[tuple[str, FunctionNode]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        is_scope = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _named(child, f"{prefix}{child.name}." if is_scope else prefix)


def attribute_guesses(package: Path) -> dict[str, Counter[str]]:
    """Calls of `hasattr` and `getattr` in each file that has any: file -> name -> count."""
    found: dict[str, Counter[str]] = {}
    for file, tree in sources(package).items():
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        names = Counter(f.id for f in calls if isinstance(f, ast.Name) and f.id in ("hasattr", "getattr"))
        if names:
            found[file] = names
    return found


def bare_any(package: Path) -> dict[str, int]:
    """Number of bare `Any` in the annotations of each file that has any."""
    counts = {file: sum(map(has_any, annotations(tree))) for file, tree in sources(package).items()}
    return {file: count for file, count in counts.items() if count}


def annotations(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            yield node.returns


def has_any(annotation: ast.AST) -> bool:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):  # a quoted annotation
        try:
            annotation = ast.parse(annotation.value, mode="eval").body
        except SyntaxError:  # a string in Literal["..."]
            return False
    if isinstance(annotation, ast.Name | ast.Attribute):
        return (annotation.id if isinstance(annotation, ast.Name) else annotation.attr) == "Any"
    return any(map(has_any, ast.iter_child_nodes(annotation)))


def any_per_thousand_lines(package: Path) -> float:
    return 1000 * sum(bare_any(package).values()) / sum(lines_of(package).values())


def import_graph(package: Path) -> dict[str, set[str]]:
    """File of the package -> files of the package that it imports when it is loaded."""
    return {file: _loaded(package, file, tree) for file, tree in sources(package).items()}


def _loaded(package: Path, file: str, tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in tree.body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {target for name in names if (target := _file_of(package, name)) is not None}
    return found - {file}


def _file_of(package: Path, name: str) -> str | None:
    """File of an imported name: the module itself, or the one that defines it."""
    top, *rest = name.split(".")
    if top != package.name:
        return None
    for parts in (rest, rest[:-1]):
        stem = package.joinpath(*parts)
        for path in (stem.with_suffix(".py") if parts else stem, stem / "__init__.py"):
            if path.is_file():
                return str(path.relative_to(package))
    return None


def import_cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Import cycles; each begins and ends with the same file."""
    found: list[list[str]] = []
    finished: set[str] = set()

    def visit(node: str, trail: list[str]) -> None:
        if node in trail:
            found.append([*trail[trail.index(node) :], node])
        elif node not in finished:
            for following in sorted(graph.get(node, ())):
                visit(following, [*trail, node])
            finished.add(node)

    for node in sorted(graph):
        visit(node, [])
    return found


def figures(package: Path) -> dict[str, str]:
    """Rows of the table: metric -> value."""
    functions, lines = functions_of(package), lines_of(package)
    lengths = sorted(function.lines for function in functions)
    guesses = attribute_guesses(package)
    graph = import_graph(package)
    most = max(functions, key=lambda function: function.branches)
    longest, longest_file = functions[0], next(iter(lines))
    train = next(f for f in functions if f.name == "train" and f.file.endswith("loop.py"))
    calls = {name: sum(counts[name] for counts in guesses.values()) for name in ("hasattr", "getattr")}
    return {
        "files": f"{len(lines)}",
        "lines": f"{sum(lines.values()):,}",
        "files over 400 lines": f"{sum(count > 400 for count in lines.values())}",
        "longest file": f"{lines[longest_file]} (`{longest_file}`)",
        "functions": f"{len(functions):,}",
        "lines of a function: median, 90th percentile": f"{median(lengths):g}, {quantiles(lengths, n=10)[-1]:g}",
        "functions over 60 lines": f"{sum(length > 60 for length in lengths)}",
        "longest function": f"{longest.lines} (`{longest.name}`)",
        "most branches in a function": f"{most.branches} (`{most.name}`)",
        "`train`: lines, branches": f"{train.lines}, {train.branches}",
        "`hasattr`, `getattr`": f"{calls['hasattr']}, {calls['getattr']}",
        "files with either": f"{len(guesses)}",
        "bare `Any`": f"{sum(bare_any(package).values())}",
        "bare `Any` per thousand lines": f"{any_per_thousand_lines(package):.2f}",
        "imports between files": f"{sum(map(len, graph.values()))}",
        "import cycles": f"{len(import_cycles(graph))}",
    }


def main(folders: list[str]) -> None:
    packages = [Path(folder).resolve() for folder in folders] or [ROOT / "trainer"]
    tables = [figures(package) for package in packages]
    print("| |" + "".join(f" {folder} |" for folder in folders or ["trainer"]))
    print("|---" * (len(packages) + 1) + "|")
    for row in tables[0]:
        print(f"| {row} |" + "".join(f" {table[row]} |" for table in tables))
    for package in packages:
        print(f"\n{package.parent.name}: files over 400 lines, functions over 60, guesses by file, bare Any by file")
        print(*[f"{n:5} {file}" for file, n in lines_of(package).items() if n > 400], sep="\n")
        print(
            *[f"{f.lines:5} {f.file} {f.name} ({f.branches})" for f in functions_of(package) if f.lines > 60], sep="\n"
        )
        print(*[f"{sum(c.values()):5} {file}" for file, c in attribute_guesses(package).items()], sep="\n")
        print(*[f"{n:5} {file}" for file, n in bare_any(package).items()], sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
