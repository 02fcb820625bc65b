"""Imports run down, the command line does not import torch, and no module does work at import."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import figures

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trainer"
FILES = sorted(PACKAGE.rglob("*.py"))

# from top to bottom; a room may import from itself and from rooms below it
LAYERS = [
    ["app", "__main__"],
    ["commands"],
    ["hydra_entry"],
    ["studies"],
    ["launching", "planning"],
    ["assembly"],
    ["training"],
    ["reporting"],
    ["storage"],
    ["configuration"],
    ["data", "preprocessing", "samplers", "augmentation", "models", "initializers", "losses", "regularizers",
     "optimizers", "schedules", "averaging", "parallelism", "diagnostics", "metrics", "early_stopping", "examples"],
    ["contracts"],
    ["base"],
]  # fmt: skip
COMPONENTS = LAYERS[-3]
# imported by the command line before a job needs torch
LIGHT = ["app", "__main__", "commands", "hydra_entry", "launching", "configuration.compose", "configuration.rules",
         "configuration.settings", "configuration.hydra_errors", "configuration.options", "configuration.build",
         "reporting.console", "storage.run_folder", "storage.files", "base.duration", "base.errors", "base.improvement",
         "base.signals", "base.rank"]  # fmt: skip
HEAVY = {"torch", "torchvision", "sklearn", "matplotlib", "tensorboard"}


def room_of(path: Path) -> str:
    """The name below `trainer` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name(path: Path) -> str:
    """Name of a module below `trainer`, such as `storage.files`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


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
    """The module that `from package import name` loads: that submodule if it exists."""
    inner = ROOT.joinpath(*package.split("."), name)
    is_module = package == "trainer" or inner.with_suffix(".py").is_file() or (inner / "__init__.py").is_file()
    return f"{package}.{name}" if is_module else package


def own(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("trainer.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_down(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return  # the package's own lazy imports
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    room = room_of(path)
    assert room in level, f"{room} is new: give it a layer"
    # functions may import the entry point from above, as `resume` does for sweeps
    above = {name for name in own(imports(path, module_level_only=True)) if level[name] < level[room]}
    assert not above


@pytest.mark.parametrize(
    "path", [p for p in FILES if room_of(p) in COMPONENTS], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_components_know_neither_the_configuration_nor_one_another(path: Path) -> None:
    names = imports(path)
    allowed = {room_of(path), "contracts", "base", *(["data"] if room_of(path) == "examples" else [])}
    assert own(names) <= allowed
    assert not {name.partition(".")[0] for name in names} & {"hydra", "omegaconf", "rich"}


@pytest.mark.parametrize(
    "path", [p for p in FILES if room_of(p) in COMPONENTS], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_components_are_not_handed_a_run(path: Path) -> None:
    """A run typed as `Any` would pass the import test, and a training loop could hide in a component."""
    assert not runs_taken(path.read_text())


def test_a_run_that_is_handed_to_a_component_is_found() -> None:
    hidden = "class Strategy:\n    def work(self, run: Any, train_step: Any) -> None: ...\n"
    assert runs_taken(hidden) == ["work: run", "work: train_step"]
    assert runs_taken("def steps(*, run=None): ...\nstep_of = lambda run: run.step\n") == ["steps: run", "lambda: run"]
    assert not runs_taken("def crop(run_length: int) -> int:\n    run = run_length\n    return run\n")


def runs_taken(source: str) -> list[str]:
    """Names of parameters that are a run, or a function of one."""
    return [
        f"{getattr(node, 'name', 'lambda')}: {argument.arg}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for argument in ast.walk(node.args)
        if isinstance(argument, ast.arg) and argument.arg in ("run", "train_step")
    ]


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
        f"trainer.{name(p)}"
        for p in FILES
        if {room_of(p), name(p)} & set(LIGHT) and p.stem not in ("__init__", "__main__")
    )
    code = f"import sys; [__import__(m) for m in {modules!r}]; print({HEAVY!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_works_at_import(path: Path) -> None:
    """Modules contain only definitions at top level: no bare calls, loops or opened files."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If)
    for node in ast.parse(path.read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert docstring or isinstance(node, allowed), f"line {node.lineno}"
        if isinstance(node, ast.If):
            test = ast.unparse(node.test)
            assert test in ("TYPE_CHECKING", "__name__ == '__main__'"), test


def test_only_build_turns_a_target_into_an_object() -> None:
    """No other file imports by a name from the configuration or uses Hydra's instantiate."""
    for path in FILES:
        text = path.read_text()
        if name(path) not in ("configuration.build", "app", "__init__"):
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


def libraries(tree: ast.Module) -> dict[str, Any]:
    """Name in a file -> what it refers to in torch or torchvision."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        module = getattr(node, "module", None)
        if (module or "".join(names[:1])).partition(".")[0] not in ("torch", "torchvision"):
            continue
        for alias in node.names:  # type: ignore[attr-defined]
            if module:
                package = importlib.import_module(module)
                has = hasattr(package, alias.name)
                found[alias.asname or alias.name] = (
                    getattr(package, alias.name) if has else importlib.import_module(f"{module}.{alias.name}")
                )
            else:
                whole = importlib.import_module(alias.name)
                top = alias.name.partition(".")[0]
                found[alias.asname or top] = whole if alias.asname else sys.modules[top]
    return found


def deprecated(source: str) -> set[str]:
    """Names in torch that the installed version marks as deprecated."""
    tree = ast.parse(source)
    names = libraries(tree)
    found = {name for name, value in names.items() if "__deprecated__" in vars_of(value)}
    for node in ast.walk(tree):
        path, inner = [], node
        while isinstance(inner, ast.Attribute):
            path.insert(0, inner.attr)
            inner = inner.value
        if not path or not isinstance(inner, ast.Name) or inner.id not in names:
            continue
        value = names[inner.id]
        for name in path:
            value = getattr(value, name, None)
        if "__deprecated__" in vars_of(value):
            found.add(".".join((inner.id, *path)))
    return found


def vars_of(value: object) -> dict[str, Any]:
    return getattr(value, "__dict__", {})


def test_no_function_of_torch_is_called_that_is_deprecated() -> None:
    # marked by every supported version
    assert deprecated("import torch.distributed as d\nd.all_reduce_coalesced([])") == {"d.all_reduce_coalesced"}
    assert deprecated("from torch.distributed import all_reduce_coalesced as f") == {"f"}
    for path in FILES:
        assert deprecated(path.read_text()) == set(), path


# --- ceilings, counted by tests/figures.py -----------------------------------------------------------------

MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 400, 60
MOST_LINES_OF_THE_LOOP, MOST_BRANCHES_OF_THE_LOOP = 25, 8
ASKING = ("contracts.py", "base/capabilities.py")  # only these inspect components
# `hasattr` and `getattr` on anything but components: file -> (count, reason).
# A count may only decrease.
GUESSES = {
    "__init__.py": (1, "a module of ours, whose names are loaded when they are asked for"),
    "base/chunks.py": (1, "torch's count of a storage's users, which has no public name"),
    "base/members.py": (1, "the members of components, for contracts.py"),
    "base/torch_optimizers.py": (1, "an attribute of torch's fused optimizers"),
    "configuration/build.py": (4, "modules, and annotations of a signature"),
    "configuration/compose.py": (1, "an error of the system or of decoding"),
    "data/from_dataset.py": (8, "the user's own Dataset and its images, which are torchvision's, PIL's or NumPy's"),
    "data/photographs/caching.py": (1, "the system's posix_fallocate"),
    "data/photographs/storage.py": (3, "the system's memfd_create and posix_fallocate; an object half made"),
    "data/photographs/workers.py": (3, "the process of Python's fork server; the system's waitid"),
    "data/torchvision_sets.py": (3, "a class of torchvision by name; the system's posix_fallocate; an error"),
    "hydra_entry/hydra.py": (1, "flags of the command line by name"),
    "hydra_entry/preflight.py": (1, "what Hydra's parser made of a sweep"),
    "metrics.py": (1, "the name of a user's callable"),
    "parallelism/parameter_server.py": (1, "a type of torch by name"),
    "parallelism/split_layers.py": (1, "a layer of the model"),
    "planning/sections.py": (3, "estimates by name"),
    "reporting/console.py": (2, "an exception's exit code"),
    "reporting/tensorboard.py": (1, "a function of TensorBoard's"),
    "training/finish.py": (2, "an exception's exit code"),
}
BARE_ANY_BEFORE = 23.28  # per thousand lines, before the rebuild (CHANGELOG)
MOST_BARE_ANY = 2.0


def test_files_are_short() -> None:
    assert {file: n for file, n in figures.lines_of(PACKAGE).items() if n > MOST_LINES_OF_A_FILE} == {}


def test_functions_are_short() -> None:
    functions = figures.functions_of(PACKAGE)
    assert {(f.file, f.name): f.lines for f in functions if f.lines > MOST_LINES_OF_A_FUNCTION} == {}


def test_the_loop_is_read_at_a_glance() -> None:
    (train,) = [f for f in figures.functions_of(PACKAGE) if (f.file, f.name) == ("training/loop.py", "train")]
    assert train.lines <= MOST_LINES_OF_THE_LOOP, f"{train.lines} lines"
    assert train.branches <= MOST_BRANCHES_OF_THE_LOOP, f"{train.branches} branches"


def test_components_are_asked_by_their_contracts_alone() -> None:
    counts = {file: sum(found.values()) for file, found in figures.attribute_guesses(PACKAGE).items()}
    allowed = {file: most for file, (most, _) in GUESSES.items()}
    too_many = {file: n for file, n in counts.items() if n > allowed.get(file, 0) and file not in ASKING}
    assert too_many == {}, "ask the contract, or give the reason in GUESSES"


def test_no_more_is_allowed_than_there_is() -> None:
    counts = {file: sum(found.values()) for file, found in figures.attribute_guesses(PACKAGE).items()}
    too_few = {file: counts.get(file, 0) for file, (most, _) in GUESSES.items() if counts.get(file, 0) < most}
    assert too_few == {}, "lower the numbers in GUESSES"


def test_bare_any_is_rare_and_less_than_a_quarter_of_before() -> None:
    assert MOST_BARE_ANY < BARE_ANY_BEFORE / 4
    assert figures.any_per_thousand_lines(PACKAGE) <= MOST_BARE_ANY, "a type, or a name for what has none (base/config)"


def test_no_import_leads_back() -> None:
    assert figures.import_cycles(figures.import_graph(PACKAGE)) == []


def test_what_the_counts_mean() -> None:
    """Counted by hand."""
    tree = ast.parse(
        "def f(a: dict[str, Any], b: 'list[Any] | None', c: int) -> Any:\n"
        "    for x in a if a else b:\n"
        "        while x and b and c or x:\n"
        "            x: typing.Any = [y for y in x if y]\n"
        "    try:\n"
        "        return 1\n"
        "    except ValueError:\n"
        "        return 2\n"
    )
    assert figures.branches(tree) == 7  # for, a conditional expression, while, two of `and`, one of `or`, except
    assert [ast.unparse(node) for node in figures.annotations(tree) if figures.has_any(node)] == [
        "Any",
        "dict[str, Any]",
        "'list[Any] | None'",
        "typing.Any",
    ]


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest imports them by name, and a second file of a name is not collected."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
