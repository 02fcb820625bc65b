"""The ranges that the comments of the options' files state: a value outside is refused by its key, before a run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from trainer.base.errors import ConfigurationError
from trainer.configuration.components import build_component, build_schedule
from trainer.configuration.compose import config_folder
from trainer.configuration.settings import OPTIMIZER, OPTIMIZER_OF

GROUPS = ("optimizer", "schedule", "regularizer", "averaging", "loss", "initializer")
FILES = sorted(path for group in GROUPS for path in (config_folder() / group).glob("*.yaml"))
KEY = re.compile(r"^(\w+): .*?  ?# (.*)$", re.MULTILINE)
NUMBER = r"-?\d+(?:\.\d+)?"
RANGE = re.compile(rf"(>=?|<) ({NUMBER})|\bin ([\[(])({NUMBER}), ({NUMBER})([\])])")


def outside(comment: str) -> list[list[float]]:
    """For each range that the comment states, values that are just not in it."""
    return [
        [float(number) if sign != ">=" else float(number) - 1]
        if sign
        else [float(low) - (opens == "["), float(high) + (closes == "]")]
        for sign, number, opens, low, high, closes in RANGE.findall(comment)
    ]


def wrong(default: object, comment: str) -> Iterator[object]:
    """Values outside of the range; for a list, lists with one item outside."""
    ranges = outside(comment)
    if not ranges or isinstance(default, bool):
        return
    if isinstance(default, dict):
        yield from ({"*": value} for value in ranges[0])
    elif isinstance(default, list):
        for place in range(len(default)):
            for value in ranges[place if len(ranges) == len(default) else 0]:
                yield [*default[:place], value, *default[place + 1 :]]
    else:
        yield from (int(value) if isinstance(default, int) else value for value in ranges[0])


def problems(group: str, node: dict[str, Any], key: str) -> list[str]:
    if group == "optimizer":
        rule = {**OPTIMIZER, **OPTIMIZER_OF.get(node["_target_"], {})}.get(key)
        if rule is not None and (problem := rule(node[key])):
            return [f"optimizer.{key}={node[key]}: {problem}"]
    config = {group: node, "choices": {}}
    length = {"steps_per_epoch": 10, "total_steps": 70}
    try:
        if group == "schedule":
            build_schedule(config, batch_size=8, num_train=100, **length)
        else:
            given = {"optimizer": {"params": [nn.Parameter(torch.zeros(1))]}, "averaging": length | {"cycle_ends": ()}}
            build_component(config, group, **given.get(group, {}))
    except ConfigurationError as error:
        return error.problems
    return []


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_a_value_outside_of_the_stated_range_is_refused_by_its_key(path: Path) -> None:
    group, text = path.parent.name, path.read_text(encoding="utf-8")
    written = yaml.safe_load(text) or {}
    accepted = []
    for key, comment in KEY.findall(text):
        for value in wrong(written[key], comment):
            found = problems(group, written | {key: value}, key)
            if len(found) != 1 or not found[0].startswith((f"{group}.{key}=", f"{group}.{key}.*=")):
                accepted.append((key, value, found))
    assert not accepted


def test_the_ranges_are_found() -> None:
    texts = [path.read_text(encoding="utf-8") for path in FILES]
    assert sum(bool(outside(comment)) for text in texts for _, comment in KEY.findall(text)) > 150
    assert outside("each in [0, 1)") == [[-1, 1]]
    assert outside("in (0, 1); in [0, 1]") == [[0, 1], [-1, 2]]
    assert outside("steps, >= 1") == [[0]]
