"""The contract of a study: several runs that answer one question together."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Scores = Mapping[str, Mapping[str, float]]
"""Metrics of the members that are done, by the member's name."""


@dataclass(frozen=True)
class Member:
    """A run of a study: a plain name for its folder, its overrides, and the members that must be done before it."""

    name: str
    overrides: tuple[str, ...]
    needs: tuple[str, ...] = ()


class Study(ABC):
    """Declares runs, which the driver executes, and sums up their metrics."""

    tests: bool = False
    """Whether each member is evaluated on the test split at its end."""

    @abstractmethod
    def members(self, folder: Path) -> list[Member]:
        """Return the runs, each after those that it needs. The folder of a member is `folder / member.name`."""

    def summary(self, scores: Scores) -> dict[str, dict[str, float]]:
        """Return further rows of the table, by name, from the metrics of the members that are done."""
        return {}

    def remark(self, scores: Scores) -> str | None:
        """Return a line below the table."""
        return None
