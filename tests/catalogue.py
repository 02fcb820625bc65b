"""The catalogue of options, docs/catalogue.md; `python -m tests.catalogue` writes it.

An entry is made of three places, none of which is imported:

- the option's YAML file: its first line, and further comment lines `# rule: ...`, `# slide: ...`, `# torch: ...` and
  `# show: ...` above the keys (a line that continues another begins with three spaces);
- the docstring of the class that the file names, if it is ours; a paragraph `Slide: ...` tells where the rule departs
  from a slide and why;
- the tests: `@pytest.mark.proves("optimizer=sgdw", ..., reference="...", tolerance="...")` at the test that compares
  the option with something that we did not write. The operations of augmentations are named by their class.
"""

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/catalogue.md"
GROUPS = ("optimizer", "schedule", "initializer", "model", "loss", "regularizer", "averaging", "augmentation",
          "preprocessing", "sampler", "parallelism")  # fmt: skip
WITH_TORCHS = ("optimizer", "schedule", "initializer", "loss", "averaging")  # of which torch has some
OPERATION = "trainer.augmentation."  # where the operations of augmentations are defined, beside their pipeline
LABELS = ("rule", "slide", "torch", "show")
HOW_TO = (
    '@pytest.mark.proves("{name}", reference="what it is compared with", tolerance="how close") at a test that compares'
    " it with a library, a closed form or a table by hand; then python -m tests.catalogue"
)
_NAME = r"[A-ZÄÖÜ][\w'’-]+"
_CITED = re.compile(rf"\b{_NAME}(?: & {_NAME}|(?:, {_NAME})* and {_NAME}| et al\.)? (?:1[89]|20)\d\d\b")
_LECTURES = ("CUHK ELEG 5491", "UVic PHYS 555", "CS7150", "UIUC ECE 598", "Optimization (Part 2)")
_HEADER = """# Catalogue

For each option: its rule, its source, where it departs from a slide, and what it was checked against. Made by
`python -m tests.catalogue` from the options' files, the docstrings and the declarations of the tests; a test verifies
that it is current. `train help GROUP=OPTION` prints an entry with the option's keys and their defaults.

[sources.md](sources.md) has the lectures and papers in full. g is the gradient, w the weights, t the step.
"""


@dataclass(frozen=True)
class Proof:
    """A declaration of a test: `reference` is what the subject is compared with, `tolerance` how close it has to be."""

    subject: str
    reference: str
    tolerance: str
    test: str
    is_slow: bool


@dataclass
class Entry:
    """What the catalogue tells about an option, or about an operation of augmentations."""

    name: str
    summary: str
    target: str
    labels: dict[str, str]
    docstring: str = ""
    operations: list[str] = field(default_factory=list)

    @property
    def slide(self) -> str:
        found = [self.labels["slide"]] if "slide" in self.labels else []
        found += [p.removeprefix("Slide: ") for p in self.docstring.split("\n\n") if p.startswith("Slide: ")]
        return " ".join(" ".join(found).split())

    @property
    def rule(self) -> str:
        parts = [textwrap.fill(self.labels["rule"], 116)] if "rule" in self.labels else []
        return "\n\n".join([*parts, *(p for p in self.docstring.split("\n\n") if p and not p.startswith("Slide: "))])

    @property
    def source(self) -> str:
        text = " ".join(f"{self.summary} {self.docstring} {self.slide}".split())
        cited = dict.fromkeys(match.group().replace(" and ", " & ") for match in _CITED.finditer(text))
        return "; ".join([*(name for name in _LECTURES if name in text), *cited])


# --- the three places -----------------------------------------------------------------------------------------------


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def definition(target: str) -> tuple[Path, ast.ClassDef | ast.FunctionDef]:
    """The class or function that a `_target_` of ours names, also if its package only imports it."""
    module, _, name = target.rpartition(".")
    base = ROOT / module.replace(".", "/")
    path = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
    for node in _parsed(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return path, node
        if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
            return definition(f"{node.module}.{name}")
    raise ValueError(f"{target}: there is no such class or function")


def docstring_of(target: str) -> str:
    """The docstring without errors raised, and with that of each class of the same file that it refers to.

    These are the classes from which a function chooses, and those named after "as in" or "of".
    """
    path, node = definition(target)
    text = ast.get_docstring(node) or ""
    named = r"`([A-Z]\w+)`" if isinstance(node, ast.FunctionDef) else r"(?:as in|of) `([A-Z]\w+)`"
    classes = {n.name: n for n in _parsed(path).body if isinstance(n, ast.ClassDef) and n is not node}
    wanted = [name for name in dict.fromkeys(re.findall(named, text)) if name in classes]
    others = [f"{name}: {ast.get_docstring(classes[name]) or ''}" for name in wanted]
    cut = [re.sub(r"\s*\bRaises\s+[A-Z]\w+.*?\.(?=\s|$)", "", one, flags=re.DOTALL) for one in (text, *others)]
    return "\n\n".join(part.strip() for part in cut if part.strip())


def header(path: Path) -> tuple[str, dict[str, str]]:
    """The first line of an option's file, and its labelled comment lines."""
    summary, labels, label = "", {}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#")
        name, colon, value = text.strip().partition(": ")
        if line.startswith("# @package"):
            continue
        if not summary:
            summary = text.strip()
        elif text.startswith("   ") and label:
            labels[label] += " " + text.strip()
        elif colon and name in LABELS:
            label = name
            labels[label] = value
    return summary, labels


def entries() -> list[Entry]:
    """Every option of the groups, and after them the operations of the augmentations."""
    found, operations = [], {}
    for group in GROUPS:
        for path in sorted((ROOT / "configs" / group).glob("*.yaml")):
            node = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader) or {}
            target = str(node.get("_target_", ""))
            if target.startswith("trainer.examples."):
                continue
            entry = Entry(f"{group}={path.stem}", *header(path)[:1], target, header(path)[1])
            inner = [part["_target_"] for part in node.values() if isinstance(part, dict) and "_target_" in part]
            if inner:
                entry.operations = [name.removeprefix(OPERATION) for name in inner]
                operations |= dict(zip(entry.operations, inner, strict=True))
            elif target.startswith("trainer."):
                entry.docstring = docstring_of(target)
            found.append(entry)
    for name, target in sorted(operations.items()):
        docstring = docstring_of(target)
        found.append(Entry(name, docstring.partition("\n")[0], target, {}, docstring))
    return found


def proofs(folder: Path = ROOT / "tests") -> list[Proof]:
    """The declarations of all tests, found without importing them."""
    found = []
    for path in sorted(folder.rglob("test_*.py")):
        if "mark.proves(" not in path.read_text(encoding="utf-8"):
            continue
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found += _declared(node, f"{path.relative_to(folder.parent)}::{node.name}")
    return found


def _declared(test: ast.FunctionDef, name: str) -> Iterator[Proof]:
    marks = [ast.unparse(one) for one in test.decorator_list]
    is_slow = any(mark.startswith("pytest.mark.slow") for mark in marks)
    for call in test.decorator_list:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.proves":
            given: dict[str, Any] = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
            if given.keys() != {"reference", "tolerance"}:
                raise ValueError(f"{name}: proves needs reference= and tolerance=, not {', '.join(given) or 'nothing'}")
            for subject in call.args:
                yield Proof(ast.literal_eval(subject), given["reference"], given["tolerance"], name, is_slow)


def problems(all_entries: Iterable[Entry], declared: Iterable[Proof]) -> list[str]:
    """Options without a proof or a rule, and declarations for what does not exist; each with what to do."""
    known, shown = {entry.name: entry for entry in all_entries}, {proof.subject for proof in declared}
    found = [f"{proof.test}: proves {proof.subject!r}, which is no option" for proof in declared
             if proof.subject not in known]  # fmt: skip
    for name, entry in known.items():
        if not entry.target:  # nothing is built
            continue
        if name not in shown and not entry.operations:
            found.append(f"{name} has no proof: add {HOW_TO.format(name=name)}")
        if not entry.rule and not entry.operations:
            found.append(f"{name} has no rule: add a line '# rule: ...' below the first line of its file")
    return found


# --- the page -------------------------------------------------------------------------------------------------------


def catalogue() -> str:
    """The whole page. Raises ValueError if something is missing."""
    all_entries, declared = entries(), proofs()
    if missing := problems(all_entries, declared):
        raise ValueError("\n".join(missing))
    by_subject: dict[str, list[Proof]] = {}
    for proof in declared:
        by_subject.setdefault(proof.subject, []).append(proof)
    parts = [_HEADER]
    for group in (*GROUPS, ""):
        mine = [e for e in all_entries if e.name.partition("=")[0] == group or ("=" not in e.name and not group)]
        parts.append(f"## {group or 'Operations of augmentations'}\n")
        parts.append(_table(mine, by_subject))
        parts += [_section(entry, by_subject) for entry in mine]
    return "\n".join(parts)


def _table(some: list[Entry], by_subject: dict[str, list[Proof]]) -> str:
    rows = ["| option | what it does | checked against |", "|---|---|---|"]
    for entry in some:
        short = entry.name.partition("=")[2] or entry.name
        anchor = re.sub(r"[^\w-]", "", entry.name.lower())
        checked = "; ".join(f"{p.reference} ({p.tolerance})" for p in by_subject.get(entry.name, []))
        checked = checked or ("its operations" if entry.operations else "nothing to check")
        rows.append(f"| [{short}](#{anchor}) | {_cell(entry.summary)} | {_cell(checked)} |")
    return "\n".join([*rows, ""])


def _cell(text: str) -> str:
    return re.sub(r"([|*_<])", r"\\\1", text)


def _section(entry: Entry, by_subject: dict[str, list[Proof]]) -> str:
    mine = by_subject.get(entry.name, [])
    lines = [f"### {entry.name}", ""]
    if entry.rule or entry.operations:
        lines += ["```text"] + ([] if "=" not in entry.name else [entry.summary, ""])
        lines += [entry.rule.rstrip()] if entry.rule else [f"Operations: {', '.join(entry.operations)}"]
        lines += ["```", ""]
    else:
        lines += [f"`{entry.summary}`", ""]
    lines.append(f"- Source: {entry.source or 'none'}")
    if entry.slide:
        lines.append(f"- Departs from the slide: {_cell(entry.slide)}")
    if entry.target and entry.name.partition("=")[0] in WITH_TORCHS:
        lines.append(f"- Equal to torch's: {_torch(entry, mine)}")
    for proof in mine:
        lane = ", in the slow lane" if proof.is_slow else ""
        lines.append(f"- Checked against {proof.reference}: {proof.tolerance} (`{proof.test}`{lane})")
    if "=" in entry.name:
        lines.append(f"- Shown by: `{entry.labels.get('show', f'train {entry.name}')}`")
    return "\n".join([*lines, ""])


def _torch(entry: Entry, mine: list[Proof]) -> str:
    said = f"; {entry.labels['torch']}" if "torch" in entry.labels else ""
    if entry.target.startswith(("torch.", "torchvision.")):
        return f"it is `{entry.target}`{said}"
    equal = dict.fromkeys(proof.reference for proof in mine if proof.reference.startswith("torch."))
    return ", ".join(equal) + said if equal else entry.labels.get("torch", "no")


def main() -> None:
    """Write the page."""
    PAGE.write_text(catalogue(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(entries())} entries, {len(proofs())} proofs")


if __name__ == "__main__":
    main()
