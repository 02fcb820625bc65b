"""The options of a group as their YAML files describe them."""

from pathlib import Path


def first_comment(path: Path) -> str:
    """What the first line of an option's file says of it."""
    with path.open() as file:
        for line in file:
            if line.startswith("# @package"):
                continue
            return line.lstrip("# ").rstrip() if line.startswith("#") else ""
    return ""
