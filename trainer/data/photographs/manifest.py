"""The files of an image folder, their classes, and the manifest of their checksums."""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.data.photographs.decoding import SUFFIXES

MANIFEST = "MANIFEST.tsv"
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Files:
    """File names relative to `root`, ascending, and the class of each."""

    names: tuple[str, ...]
    targets: tuple[int, ...]

    def select(self, indices: list[int]) -> "Files":
        return Files(tuple(self.names[i] for i in indices), tuple(self.targets[i] for i in indices))


def scan(root: Path) -> tuple[tuple[str, ...], dict[str, Files]]:
    """The class names and the files of each existing split; without a `train` folder, all are of the split "train".

    Raises FileNotFoundError or NotADirectoryError without a root, ValueError for folders of another layout.
    """
    if not root.exists():
        raise FileNotFoundError(f"root={root}: must be an existing folder of photographs")
    if not root.is_dir():
        raise NotADirectoryError(f"root={root}: must be a folder, but is a file")
    present = [part for part in PARTS if (root / part).is_dir()]
    if present and "train" not in present:
        raise ValueError(f"root={root}: has the folder '{present[0]}', but no folder 'train'")
    bases = {part: f"{part}/" for part in present} or {"train": ""}
    class_names = _folders(root / bases["train"])
    if not class_names:
        raise ValueError(f"root={root / bases['train']}: must contain a folder of photographs for each class")
    found = {}
    for part, base in bases.items():
        unknown = sorted(set(_folders(root / base)) - set(class_names))
        if unknown:
            raise ValueError(f"root={root}: '{base}{unknown[0]}' is not a class of 'train'")
        pairs = [(n, c) for c, label in enumerate(class_names) for n in _photographs(root, f"{base}{label}")]
        found[part] = Files(tuple(name for name, _ in pairs), tuple(target for _, target in pairs))
    empty = sorted(set(range(len(class_names))) - set(found["train"].targets))
    if empty:
        raise ValueError(f"root={root}: the class '{class_names[empty[0]]}' has no training photographs")
    return tuple(class_names), found


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return [name for name in names if name != MANIFEST]  # reported by read_manifest


def _photographs(root: Path, folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the names of image files in a folder and its subfolders, ascending.

    Skips hidden files, and links to a parent folder, which would recurse forever.
    """
    path = root / folder
    real_path = os.path.realpath(path)
    if real_path in above:
        return
    if not path.is_dir():
        return
    with os.scandir(path) as entries:
        names = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    for name, is_folder in names:
        if is_folder:
            yield from _photographs(root, f"{folder}/{name}", (*above, real_path))
        elif name.lower().endswith(SUFFIXES):
            yield f"{folder}/{name}"


def read_manifest(root: Path) -> dict[str, str] | None:
    """sha256 by name from `MANIFEST.tsv`, or None if there is none.

    Its first line names the columns, separated by tabs; they must include `path` and `sha256`. Raises ValueError.
    """
    path = root / MANIFEST
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file: it must list the photographs, or not exist")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if not {"path", "sha256"} <= set(rows.fieldnames or ()):
                raise KeyError("path, sha256")
            found = {row["path"]: row["sha256"].lower() for row in rows}
            if None in found:
                raise KeyError("path")
            return found
    except (KeyError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: its lines must have the columns path and sha256") from error
