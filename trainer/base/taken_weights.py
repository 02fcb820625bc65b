"""Which entries of a state dict a model takes, in one line."""

from collections.abc import Collection

from trainer.base.stateful import State
from trainer.base.text import join_names

_NAMES_SHOWN = 4


def shape_of(state: State, name: str) -> tuple[int, ...] | None:
    """Return the shape of an entry, None if there is none."""
    return tuple(state[name].shape) if name in state else None


def different(own: State, state: State) -> set[str]:
    """Return the names that only one of the two has, or with another shape."""
    return {name for name in own.keys() | state.keys() if shape_of(own, name) != shape_of(state, name)}


def table(where: str, own: State, state: State, summed: Collection[str] = ()) -> str | None:
    """Tell which entries a model with the state `own` takes from `state`, leaves out and has new; None if it takes all.

    `where` names their source; `summed` those of another shape that are taken summed over colours.
    """
    others = different(own, state)
    if not others:
        return None
    others -= set(summed)
    shown = {
        "taken": sorted(own.keys() & state.keys() - others - set(summed)),
        "summed over colours": [f"{name} {shape_of(state, name)}" for name in sorted(summed)],
        "left out": [f"{name} {shape_of(state, name)}" for name in sorted(others & state.keys())],
        "new": [f"{name} {shape_of(own, name)}" for name in sorted(others & own.keys())],
    }
    lists = (f"{len(names)} {kind}: {join_names(names, _NAMES_SHOWN)}" for kind, names in shown.items() if names)
    return f"{where}: {'; '.join(lists)}"
