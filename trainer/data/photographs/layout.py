"""The splits, classes and photographs of a folder, by the names of its folders and files alone.

    root/<class>/...                          the splits are cut from all photographs
    root/train/<class>/...                    with val/, test/ or both beside train/, in any usual spelling

Every photograph below a class's folder is of that class. What is not used is counted.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.base.text import NAME, join_names, nearest
from trainer.data.photographs.decoding import SUFFIXES

SPLITS = ("train", "val", "test")
MANIFEST = "MANIFEST.tsv"

_WORDS = {
    "train": "train training trn trainval trainvalid",
    "val": "val valid validation validate validating vld dev devel development develop",
    "test": "test testing tst",
    "": "eval evaluation evaluate evaluating holdout heldout valtest testval",  # validation or test
}
_AROUND = "(?:data|set|image|img|photo|picture|pic|split|part|sample|folder|dir|full|ilsvrc)s?"
_PATTERNS = {
    split: re.compile(f"(?:{_AROUND})*(?:{words.replace(' ', '|')})s?(?:{_AROUND})*[ab]?")
    for split, words in _WORDS.items()
}
# of operating systems, file managers and servers, beside names that begin with a dot
_HIDDEN = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "lost+found", "$recycle.bin",
           "system volume information", "__pycache__")  # fmt: skip
_MOST_NAMED = 10


@dataclass(frozen=True)
class Files:
    """File names relative to `root`, ascending, and the class of each."""

    names: tuple[str, ...]
    targets: tuple[int, ...]

    def select(self, indices: list[int]) -> "Files":
        return Files(tuple(self.names[i] for i in indices), tuple(self.targets[i] for i in indices))


class Unused:
    """Counts of what a folder contains and is not used, by kind, with the first of each; `ours` are not counted."""

    def __init__(self, ours: frozenset[str] = frozenset()) -> None:
        self.ours = ours
        self._names: dict[tuple[str, str], tuple[int, str]] = {}  # kind -> how many, the first of them
        self.is_expected = True
        """Whether these are only hidden files, and files beside the classes that are no photographs."""

    def add(self, noun: str, name: str, where: str = "", *, expected: bool = False) -> None:
        count, first = self._names.get((noun, where), (0, name))
        self._names[noun, where] = count + 1, first
        self.is_expected = self.is_expected and expected

    def __str__(self) -> str:
        """One phrase, such as "3 .txt files (first a/x.txt), 1 hidden file (a/.DS_Store)"; empty if all is used."""
        phrases = []
        for (noun, where), (count, first) in self._names.items():
            name = first.encode(errors="backslashreplace").decode()  # a name need not be UTF-8
            phrases.append(f"{count:,} {noun}{'s' * (count > 1)}{where} ({'first ' * (count > 1)}{name})")
        return ", ".join(phrases)


@dataclass(frozen=True)
class Layout:
    """What a folder of photographs contains."""

    class_names: tuple[str, ...]
    splits: dict[str, Files]
    """The splits that have a folder; without split folders, all photographs are of "train"."""
    prefixes: tuple[str, ...]
    """What the names of the files of these splits begin with."""
    unused: Unused
    missing: dict[str, list[str]]
    """Classes without photographs, of the splits that have a folder and lack any."""


def scan(root: Path, cache: Path | None = None) -> Layout:
    """Find the splits, classes and files; a `cache` folder inside `root` is neither.

    Raises FileNotFoundError or NotADirectoryError without a root, ValueError for folders of another layout.
    """
    if not root.exists():
        raise FileNotFoundError(f"root={root}: must be an existing folder of photographs")
    if not root.is_dir():
        raise NotADirectoryError(f"root={root}: must be a folder, but is a file")
    within = cache is not None and root.resolve() in cache.resolve().parents
    ours = frozenset([cache.resolve().relative_to(root.resolve()).parts[0]]) if cache and within else frozenset[str]()
    unused = Unused(ours)
    bases = {split: f"{folder}/" for split, folder in _split_folders(root, unused).items()} or {"train": ""}
    class_names = _classes(root, bases["train"], unused)
    splits, missing = {}, {}
    for split, base in bases.items():
        if split != "train":
            _check_classes(root, base, bases["train"], _folders(root, base, unused), class_names)
        splits[split] = _files(root, base, class_names, unused)
        empty = [class_names[c] for c in sorted(set(range(len(class_names))) - set(splits[split].targets))]
        if empty and split == "train":
            without = _contents(root, f"{base}{empty[0]}")
            raise ValueError(f"root={root}: the class '{empty[0]}' has no training photographs: its folder {without}")
        if not splits[split].names:
            raise ValueError(
                f"root={root}: the folder '{base[:-1]}' has no photographs in class folders; if it is moved away, the"
                f" {split} split is cut from the training split"
            )
        if empty:
            missing[base[:-1]] = empty
    return Layout(tuple(class_names), splits, tuple(bases.values()), unused, missing)


def split_of(folder: str) -> str | None:
    """The split that a folder's name means, whatever its case, plural or numbers: "Validation_set" -> "val".

    "" for a name that may mean validation or test; None for other names.
    """
    letters = re.sub(r"[\W\d_]", "", folder).lower()
    return next((split for split, pattern in _PATTERNS.items() if pattern.fullmatch(letters)), None)


def _split_folders(root: Path, unused: Unused) -> dict[str, str]:
    """split -> the name of its folder in `root`; empty if there are none. Raises ValueError if it is not clear."""
    names = _folders(root, "", unused)
    found: dict[str, str] = {}
    others = []
    for name in names:
        split = split_of(name)
        if split is None:
            others.append(name)
        elif not split:
            raise ValueError(f"root={root}: '{name}' may mean a validation or a test split; name it 'val' or 'test'")
        elif split in found:
            raise ValueError(
                f"root={root}: '{found[split]}' and '{name}' both mean the {split} split; leave one of them there"
                " (if they are classes, put all class folders into a folder 'train')"
            )
        else:
            found[split] = name
    if found and "train" not in found:
        name = next(iter(found.values()))
        raise ValueError(
            f"root={root}: has the folder '{name}', but no folder 'train'; put the training split's class folders there"
        )
    if set(found) == {"train"} and (other := next((n for n in others if _has_photographs(root, n)), None)):
        raise ValueError(
            f"root={root}: '{found['train']}' means the training split, but '{other}' beside it has photographs, too;"
            f" move '{other}' away (if they are classes, put all class folders into a folder 'train')"
        )
    for name in others if found else ():
        unused.add("folder", name, " beside the splits")
    return {split: found[split] for split in SPLITS if split in found}


def _classes(root: Path, base: str, unused: Unused) -> list[str]:
    """The names of the classes, which are folders of the training split. Raises ValueError for another layout."""
    names = _folders(root, base, unused if base else Unused(unused.ours))  # the root itself was counted before
    if not names:
        raise ValueError(
            f"root={root / base}: must contain a folder of photographs for each class, but {_contents(root, base)}"
        )
    inner = [name for name in names if split_of(name) is not None]
    if base and len(inner) == len(names):
        raise ValueError(
            f"root={root}: '{base}{inner[0]}' means a split within a split; its class folders must be in '{base}'"
        )
    if len(names) == 1 and (inner := [n for n in _folders(root, f"{base}{names[0]}/", Unused()) if split_of(n)]):
        raise ValueError(
            f"root={root / base}: has one folder, which contains '{inner[0]}'; did you mean"
            f" data.root={root / base / names[0]}?"
        )
    return names


def _check_classes(root: Path, base: str, train: str, names: list[str], class_names: list[str]) -> None:
    for name in names:
        if name not in class_names:
            folded = {known.casefold(): known for known in class_names}
            near = folded.get(name.casefold()) or nearest(name, class_names)
            hint = NAME.format(near) if near else f" Classes: {join_names(class_names, _MOST_NAMED)}"
            raise ValueError(f"root={root}: '{base}{name}' is not a class of '{train[:-1]}'.{hint}")


def _files(root: Path, base: str, class_names: list[str], unused: Unused) -> Files:
    real_base = os.path.realpath(root / base)
    above = {real_base, *map(str, Path(real_base).parents)}
    real = [os.path.realpath(root / base / label) for label in class_names]
    pairs = []
    for number, label in enumerate(class_names):
        folder = f"{base}{label}"
        if real[number] in above:
            unused.add("link", folder, " to a folder above")
        elif (root / folder).is_dir():
            pairs += [(name, number) for name in _photographs(root, folder, above.union(real), unused)]
    return Files(tuple(name for name, _ in pairs), tuple(target for _, target in pairs))


def _photographs(root: Path, folder: str, known: set[str], unused: Unused) -> Iterator[str]:
    """Yield the names of photographs in a class's folder and its subfolders, ascending.

    Links to `known` folders (those above, and of other classes) are not followed, and no folder is read twice: its
    photographs would be repeated, under another class or forever.
    """
    seen = set(known)
    pending = [(os.path.realpath(root / folder), _entries(root, folder))]
    while pending:
        above, entries = pending[-1]
        entry = next(entries, None)
        if entry is None:
            pending.pop()
            continue
        path, name, is_folder = entry
        if path in unused.ours:
            continue
        if _is_hidden(name):
            unused.add("hidden folder" if is_folder else "hidden file", path, expected=True)
        elif is_folder:
            if len(pending) == 1 and (split := split_of(name)):
                _refuse_split(root, folder, name, split)
            real = os.path.realpath(root / path) if (root / path).is_symlink() else f"{above}/{name}"
            if real in seen:
                unused.add("link", path, " to a folder that is above it or read already")
            else:
                seen.add(real)
                pending.append((real, _entries(root, path)))
        elif name.lower().endswith(SUFFIXES):
            yield path
        else:
            suffix = Path(name).suffix.lower()
            unused.add(f"{suffix} file" if suffix else "file", path, "" if suffix else " without a suffix")


def _refuse_split(root: Path, folder: str, name: str, split: str) -> None:
    if split != "train":
        raise ValueError(
            f"root={root}: '{folder}/{name}' means the {split} split, but is within the class '{folder}'; folders of"
            f" splits contain those of classes: {split}/{folder.rpartition('/')[2]}"
        )


def _has_photographs(root: Path, folder: str) -> bool:
    return next(_photographs(root, folder, set(), Unused()), None) is not None


def _contents(root: Path, folder: str) -> str:
    """What a folder has instead of photographs in class folders."""
    unused = Unused()
    for path, name, _ in _entries(root, folder):
        kind = "photograph" if name.lower().endswith(SUFFIXES) else "other file or folder"
        unused.add("hidden file" if _is_hidden(name) else kind, path)
    return f"has {unused}" if str(unused) else "is empty"


def _folders(root: Path, base: str, unused: Unused) -> list[str]:
    """The names of folders in `base`, ascending; counts what else there is."""
    found = []
    for path, name, is_folder in _entries(root, base):
        if path in unused.ours:
            continue
        if _is_hidden(name):
            unused.add("hidden folder" if is_folder else "hidden file", path, expected=True)
        elif name == MANIFEST:
            continue  # a folder of this name is reported when it is read
        elif is_folder:
            found.append(name)
        elif name.lower().endswith(SUFFIXES):
            unused.add("photograph", path, " outside the folders of classes")
        else:
            unused.add("other file", path, " beside the folders", expected=True)
    return found


def _entries(root: Path, folder: str) -> Iterator[tuple[str, str, bool]]:
    """Yield (path relative to `root`, name, whether it is a folder or a link to one), ascending."""
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    with os.scandir(root / folder) as entries:
        names = sorted((entry.name, _is_folder(entry)) for entry in entries)
    return ((f"{prefix}{name}", name, is_folder) for name, is_folder in names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _HIDDEN
