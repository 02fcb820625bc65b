"""Imports run one way, the command line stays light, and nothing works at import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trainer"
FILES = sorted(PACKAGE.rglob("*.py"))

# from the top down; a module may import from its own layer and those below it
LAYERS = [
    ["app", "__main__"],
    ["commands"],
    ["job", "estimate"],
    ["preflight"],
    ["launching"],
    ["loop"],
    ["assembly"],
    ["finish", "nonfinite", "evaluation", "step", "state"],
    ["run"],
    ["report", "blueprint", "closure"],
    ["reporting", "checkpoint", "run_folder", "composition", "build", "gradients", "batches"],
    ["config", "console", "metrics", "files", "precision", "signals", "early_stopping", "parameter_groups",
     "test_time"],
    ["data", "preprocessing", "samplers", "augmentation", "models", "initializers", "losses", "schedules",
     "parallelism", "diagnostics", "examples"],
    ["randomness", "duration", "improvement", "errors", "parts", "place"],
    ["base"],
]  # fmt: skip
COMPONENTS = LAYERS[-3]
HELPERS = LAYERS[-2] + LAYERS[-1]  # small and pure; a component may use them
LIGHT = ["app", "__main__", "commands", "job", "launching", "preflight", "composition", "config", "console", "errors",
         "run_folder", "duration", "improvement", "signals", "files", "build", "base"]  # fmt: skip
HEAVY = {"torch", "torchvision", "sklearn", "matplotlib", "tensorboard"}


def part(path: Path) -> str:
    """The first name below `trainer` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, module_level_only: bool = False) -> set[str]:
    """Full names of everything that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if module_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {_module(node.module, alias.name) for alias in node.names}
    return found


def _module(package: str, name: str) -> str:
    """What `from package import name` loads: the module of that name where there is one."""
    inner = ROOT.joinpath(*package.split("."), name)
    is_module = package == "trainer" or inner.with_suffix(".py").is_file() or (inner / "__init__.py").is_file()
    return f"{package}.{name}" if is_module else package


def own(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("trainer.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_down(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return  # the door to the package: loads what is asked for
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    here = part(path)
    assert here in level, f"{here} is new: give it a layer"
    # inside a function a lower module may reach back to the entry, as `resume` does for sweeps
    above = {name for name in own(imports(path, module_level_only=True)) if level[name] < level[here]}
    assert not above


@pytest.mark.parametrize("path", [p for p in FILES if part(p) in COMPONENTS], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_components_know_neither_the_configuration_nor_one_another(path: Path) -> None:
    names = imports(path)
    allowed = {part(path), *HELPERS, *(["data"] if part(path) == "examples" else [])}
    assert own(names) <= allowed
    assert not {name.partition(".")[0] for name in names} & {"hydra", "omegaconf", "rich"}


def test_there_are_no_cycles() -> None:
    graph = {str(p): own_files(p) for p in FILES}
    state: dict[str, int] = {}

    def visit(node: str, trail: list[str]) -> None:
        assert state.get(node) != 1, " -> ".join([*trail, node])
        if state.get(node) == 2:
            return
        state[node] = 1
        for following in graph[node]:
            visit(following, [*trail, node])
        state[node] = 2

    for node in graph:
        visit(node, [])


def own_files(path: Path) -> set[str]:
    found = set()
    for name in imports(path, module_level_only=True):
        if name.startswith("trainer."):
            stem = PACKAGE.joinpath(*name.split(".")[1:])
            for candidate in (stem.with_suffix(".py"), stem / "__init__.py", stem.parent.with_suffix(".py")):
                if candidate.is_file() and candidate != path:
                    found.add(str(candidate))
                    break
    return found


def test_the_command_line_loads_nothing_heavy() -> None:
    modules = sorted(
        ".".join(["trainer", *p.relative_to(PACKAGE).with_suffix("").parts])
        for p in FILES
        if part(p) in LIGHT and p.stem not in ("__init__", "__main__")
    )
    code = f"import sys; [__import__(m) for m in {modules!r}]; print({HEAVY!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_works_at_import(path: Path) -> None:
    """At module level stand only definitions: no bare calls, loops, or files opened."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If)
    for node in ast.parse(path.read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert docstring or isinstance(node, allowed), f"line {node.lineno}"
        if isinstance(node, ast.If):
            test = ast.unparse(node.test)
            assert test in ("TYPE_CHECKING", "__name__ == '__main__'"), test


def test_only_build_turns_a_target_into_an_object() -> None:
    """No other file imports by a name from the configuration, nor uses Hydra's instantiate."""
    for path in FILES:
        text = path.read_text()
        if part(path) not in ("build", "app", "__init__"):
            assert "import_module" not in text, path
        assert "instantiate" not in text, path


def test_checkpoints_are_data() -> None:
    """Every torch.load spells out weights_only=True."""
    calls = [
        node
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert calls
    for call in calls:
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("weights_only") == "True"
