"""Where the YAML files of the options are, and their descriptions."""

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
