"""Running tests with mutants.

Tests are collected once, and forked for each mutant of a function, whose code is replaced in the fork; a mutant of what
is outside of functions is imported by a fork of a process that has not yet imported the product. In either case, the
tests must first pass with all files made anew by `ast` and brought in the same way, so that no mutant is killed for
another reason than its change.
"""

import ast
import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest

from mutants.change import ROOT, Mutant

# A mutant whose tests need this many times the processor time that they need without a change hangs, which kills it,
# too. If they only take long because the machine is busy, nothing follows.
TIMES, LEAST_SECONDS, WALL_SECONDS = 4, 10, 900
MOST_BYTES = 16 * 2**30  # of addresses, of which torch reserves most
WORKERS = 2


@dataclass(frozen=True)
class Ran:
    """How the tests of one process ended; `outcome` is "killed", "hangs", "survived", or anything else: undecided."""

    outcome: str
    failed: str
    seconds: Mapping[str, float]
    cpu_seconds: float


class Watch:
    """A plugin of pytest that runs the tests which are likely to fail first, and notes what failed."""

    def __init__(self, first: Mapping[str, float]) -> None:
        self.first = first  # smaller is earlier
        self.seconds: dict[str, float] = {}
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.first.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = f"import of {report.nodeid}"


class Child:
    """A fork of this process that calls `run`, which returns an exit code of pytest and what `Watch` has noted."""

    def __init__(self, run: Callable[[Path], tuple[int, Watch]], out: Path, cpu_seconds: float) -> None:
        self.out, self.answer, self.began = out, out.with_suffix(".json"), time.monotonic()
        self.answer.unlink(missing_ok=True)
        self.pid = os.fork()
        if self.pid:
            return
        code = 99
        try:
            os.setsid()
            log = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (round(cpu_seconds), round(cpu_seconds) + 5))
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))  # a mutant may fill a list without end
            code, watch = run(out.with_suffix(".tmp"))
            noted = {"failed": watch.failed, "seconds": watch.seconds, "cpu_seconds": time.process_time()}
            self.answer.write_text(json.dumps(noted))
        finally:
            os._exit(code)

    def ended(self) -> Ran | None:
        """Return how it ended, or None while it runs."""
        done, status = os.waitpid(self.pid, os.WNOHANG)
        if not done and time.monotonic() - self.began < WALL_SECONDS:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # also what its tests have started
        if not done:
            os.waitpid(self.pid, 0)
            return Ran("too slow", "", {}, 0.0)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return Ran("hangs" if number == signal.SIGXCPU else f"signal {number}", "", {}, 0.0)
        noted = {"failed": "", "seconds": {}, "cpu_seconds": 0.0}
        if self.answer.is_file():
            noted = json.loads(self.answer.read_text())
        code = os.WEXITSTATUS(status)
        if code == pytest.ExitCode.OK:
            return Ran("survived", **noted)
        if code in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED) and noted["failed"]:
            return Ran("killed", **noted)
        return Ran(f"exit code {code}", **noted)

    def wait(self) -> Ran:
        while (ran := self.ended()) is None:
            time.sleep(0.02)
        return ran


Start = Callable[[Mutant | None, Mapping[str, float], Path, float], Child]


def outcomes(group: Sequence[Mutant], start: Start, folder: Path) -> Iterator[tuple[Mutant, Ran]]:
    """Yield each mutant with what its tests did, WORKERS at a time."""
    unchanged = start(None, {}, folder / "unchanged.log", WALL_SECONDS)
    whole = unchanged.wait()
    if whole.outcome != "survived" or not whole.seconds:
        raise SystemExit(f"{whole.outcome} without a change: {whole.failed}; see {unchanged.out}")
    most = max(LEAST_SECONDS, TIMES * whole.cpu_seconds)
    killers: dict[str, Counter[str]] = {mutant.file: Counter() for mutant in group}
    waiting, running = deque(enumerate(group)), dict[int, tuple[Mutant, Child]]()
    while waiting or running:
        while waiting and len(running) < WORKERS:
            number, mutant = waiting.popleft()
            first = {**whole.seconds, **{test: -float(count) for test, count in killers[mutant.file].items()}}
            running[number] = mutant, start(mutant, first, folder / f"{number % 8}.log", most)
        time.sleep(0.01)
        for number, (mutant, child) in list(running.items()):
            if (ran := child.ended()) is not None:
                del running[number]
                killers[mutant.file][ran.failed] += 1
                yield mutant, ran


def made_anew(file: str) -> str:
    return ast.unparse(ast.parse((ROOT / file).read_text()))


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


WORDS = ("-x", "-q", "-s", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not slow", "--tb=short")

# --- mutants of functions ---------------------------------------------------------------------------------


class InFunctions:
    """A plugin of pytest that, in place of running the tests that are collected, forks for each mutant."""

    def __init__(self, group: Sequence[Mutant], folder: Path, tell: Callable[[Mutant, Ran], None]) -> None:
        self.group, self.folder, self.tell = group, folder, tell

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("tests cannot be collected")

        def start(mutant: Mutant | None, first: Mapping[str, float], out: Path, cpu_seconds: float) -> Child:
            if mutant is None:
                changes = [change for file in {m.file for m in self.group} for change in codes(file, made_anew(file))]
            else:
                changes = [each for each in codes(mutant.file, mutant.source) if each[2] == mutant.function]
                assert len(changes) == 1, (mutant.name, changes)
            return Child(lambda _: self._run(session, changes, first), out, cpu_seconds)

        for mutant, ran in outcomes(self.group, start, self.folder):
            self.tell(mutant, ran)
        return True

    def _run(self, session: pytest.Session, changes: "list[Change]", first: Mapping[str, float]) -> tuple[int, Watch]:
        for function, code, _ in changes:
            function.__code__ = code
        watch = Watch(first)
        session.config.pluginmanager.register(watch)
        items = list(session.items)
        watch.pytest_collection_modifyitems(items)
        for item, following in zip(items, [*items[1:], None], strict=True):
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if watch.failed:
                return pytest.ExitCode.TESTS_FAILED, watch
        return pytest.ExitCode.OK, watch


Change = tuple[FunctionType, CodeType, tuple[str, ...]]


def codes(file: str, source: str) -> list[Change]:
    """Return the functions and methods of a file with their code in another source, and the path to each."""
    found: list[Change] = []
    module = importlib.import_module(module_of(file))
    tree, original = (ast.parse(text) for text in (source, (ROOT / file).read_text()))
    compiled = dict(_inside(compile(source, str(ROOT / file), "exec"), ()))
    for path, node in _functions(tree, ()):
        function = _function_at(module, path)
        assert function.__module__ == module.__name__ and function.__code__.co_name == node.name, path
        found.append((function, compiled[path], path))
    assert [path for path, _ in _functions(original, ())] == [path for _, _, path in found]
    return found


def _functions(tree: ast.AST, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ast.FunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield (*path, node.name), node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, (*path, node.name))


def _inside(code: CodeType, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], CodeType]]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield (*path, constant.co_name), constant
            yield from _inside(constant, (*path, constant.co_name))


def _function_at(module: ModuleType, path: tuple[str, ...]) -> FunctionType:
    """Return the function itself, without what decorates it."""
    found: object = module
    for name in path:
        found = vars(found)[name]
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    while not isinstance(found, FunctionType) or "__wrapped__" in vars(found):
        found = vars(found)["__wrapped__"]
    return found


# --- mutants of what is outside of functions --------------------------------------------------------------


class Changed:
    """An import hook that loads some modules from other source."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = {module_of(file): (ROOT / file, source) for file, source in sources.items()}

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name not in self.sources:
            return None
        place, _ = self.sources[name]
        spec = ModuleSpec(name, self, origin=str(place))  # type: ignore[arg-type]
        spec.has_location = True
        if place.name == "__init__.py":
            spec.submodule_search_locations = [str(place.parent)]
        return spec

    def create_module(self, spec: object) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        place, source = self.sources[module.__name__]
        exec(compile(source, str(place), "exec"), vars(module))


def outside_functions(
    group: Sequence[Mutant], tests: Sequence[str], folder: Path, tell: Callable[[Mutant, Ran], None]
) -> None:
    def start(mutant: Mutant | None, first: Mapping[str, float], out: Path, cpu_seconds: float) -> Child:
        sources = {m.file: made_anew(m.file) for m in group} if mutant is None else {mutant.file: mutant.source}
        assert not any(module_of(file) in sys.modules for file in sources)

        def run(temporary: Path) -> tuple[int, Watch]:
            sys.meta_path.insert(0, Changed(sources))  # type: ignore[arg-type]
            watch = Watch(first)
            code = pytest.main([*WORDS, f"--basetemp={temporary}", *tests], plugins=[watch])
            return int(code), watch

        return Child(run, out, cpu_seconds)

    for mutant, ran in outcomes(group, start, folder):
        tell(mutant, ran)


def inside_functions(
    group: Sequence[Mutant], tests: Sequence[str], folder: Path, tell: Callable[[Mutant, Ran], None]
) -> None:
    code = pytest.main(
        [*WORDS, f"--basetemp={folder / 'tests.tmp'}", *tests], plugins=[InFunctions(group, folder, tell)]
    )
    if code != pytest.ExitCode.OK:
        raise SystemExit(f"pytest ended with {code!r}")
