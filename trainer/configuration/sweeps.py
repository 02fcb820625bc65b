"""Keys of a group whose option is an axis of a sweep: which trials they are for.

`optimizer=sgd,momentum optimizer.momentum=0.8` sets the momentum of the options that have one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from hydra.core.override_parser.types import Override

from trainer.base.config import ConfigValue
from trainer.configuration.groups import GROUPS
from trainer.configuration.rules import PSEUDO_GROUPS

Trials = list[list[str]]
"""Overrides of each trial."""


def swept_groups(axes: Iterable[str]) -> set[str]:
    """Return the groups whose option differs between trials; those that choose options of all groups may change any."""
    found = {axis for axis in axes if axis in GROUPS or axis in PSEUDO_GROUPS}
    return found if found.isdisjoint(PSEUDO_GROUPS) else set(GROUPS)


def is_inside(override: Override, groups: Iterable[str]) -> bool:
    """Whether an override changes a key of an option of these groups."""
    return _group_of(override.key_or_group) in set(groups)


def fitting(trials: Trials, option_of: Callable[[str, str], ConfigValue]) -> tuple[Trials, list[str]]:
    """Leave out overrides of keys that a trial's option does not have and another trial's has.

    `option_of(group, option)` returns the content of an option. Returns the trials, each once, and a line for each
    override that is not for all of them. An override for which no option has the key stays, and is refused.
    """
    options = _options(trials)
    chosen_by_key: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for trial in trials:
        for key, group, option in _keys(trial, options):
            if _has(option_of(group, option), key):
                chosen_by_key[key].add((group, option))
    left_out: dict[str, list[str]] = defaultdict(list)
    kept = []
    for trial in trials:
        unfit = {
            key: f"{group}={option}"
            for key, group, option in _keys(trial, options)
            if chosen_by_key[key] and (group, option) not in chosen_by_key[key]
        }
        kept.append(tuple(word for word in trial if word.partition("=")[0] not in unfit))
        for key, option in unfit.items():
            if option not in left_out[key]:
                left_out[key].append(option)
    notes = [f"{key}: left out for {', '.join(names)}, which has no such key" for key, names in left_out.items()]
    return [list(trial) for trial in dict.fromkeys(kept)], notes


def _options(trials: Trials) -> dict[str, set[str]]:
    """The options of each group that differ between trials."""
    found: dict[str, set[str]] = defaultdict(set)
    for trial in trials:
        for word in trial:
            group, _, option = word.partition("=")
            if group in GROUPS:
                found[group].add(option)
    return {group: options for group, options in found.items() if len(options) > 1}


def _keys(trial: Sequence[str], options: dict[str, set[str]]) -> list[tuple[str, str, str]]:
    """Each key of a swept group that a trial sets, with the group and the trial's option."""
    chosen = {group: option for group, _, option in (word.partition("=") for word in trial) if group in options}
    keys = [word.partition("=")[0] for word in trial]
    return [(key, group, chosen[group]) for key in keys if (group := _group_of(key)) in chosen]


def _group_of(key: str) -> str | None:
    group, dot, _ = key.partition(".")
    return group if dot else None


def _has(option: ConfigValue, key: str) -> bool:
    for name in key.split(".")[1:]:
        if not isinstance(option, dict) or name not in option:
            return False
        option = option[name]
    return True
