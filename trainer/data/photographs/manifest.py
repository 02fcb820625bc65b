"""The manifest of an image folder: the checksums of its photographs."""

import csv
import os
from pathlib import Path

from trainer.data.photographs.layout import MANIFEST


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
