"""Where the YAML files of the options are, their descriptions, and their entries in the catalogue."""

import re
from pathlib import Path


def config_folder() -> Path:
    """Return `configs/` of the clone if there is one, else the copy inside the package."""
    package = Path(__file__).resolve().parents[1]
    clone = package.parent / "configs"
    return clone if (clone / "train.yaml").is_file() else package / "configs"


def first_comment(path: Path) -> str:
    """Return the description in the first line of an option's file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith("# @package"):
                continue
            return line.lstrip("# ").rstrip() if line.startswith("#") else ""
    return ""


def catalogue_entry(name: str) -> str | None:
    """Return the entry of an option, such as "optimizer=sgdw", as plain text, or None if there is none.

    The catalogue is `docs/catalogue.md` of the clone, made by `python -m tests.catalogue`, or its copy inside the
    package.
    """
    package = Path(__file__).resolve().parents[1]
    clone = package.parent / "docs/catalogue.md"
    path = clone if (package.parent / "configs/train.yaml").is_file() else package / "catalogue.md"
    if not path.is_file():
        return None
    _, found, rest = path.read_text(encoding="utf-8").partition(f"\n### {name}\n")
    if not found:
        return None
    entry = rest.partition("\n## ")[0].partition("\n### ")[0]
    lines = [line for line in entry.strip().splitlines() if not line.startswith("```")]
    return "\n".join(re.sub(r"\\([|*_<])", r"\1", line) for line in lines)
