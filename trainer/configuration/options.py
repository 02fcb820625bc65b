"""Descriptions of options in their YAML files."""

from pathlib import Path


def first_comment(path: Path) -> str:
    """Return the description in the first line of an option's file."""
    with path.open() as file:
        for line in file:
            if line.startswith("# @package"):
                continue
            return line.lstrip("# ").rstrip() if line.startswith("#") else ""
    return ""
