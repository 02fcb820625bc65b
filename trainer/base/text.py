"""Formatting of values in messages, and suggestions for misspelt names."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

VALUE = "; did you mean {}?"
NAME = " Did you mean '{}'?"
SENTENCE = ". Did you mean {}?"


def written(value: object) -> str:
    """Return `value` as it would be typed in YAML: null, true, [1, 2.5], {key: text}.

    Numbers are not changed, 5 and 5.0; large round floats are shortened, 10000000000.0 to 1e+10.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and abs(value) >= 1e6 and float(short := f"{value:g}") == value:
        return short
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    return str(value)


def alternatives(values: Iterable[object]) -> str:
    """Join values: `a`, `a or b`, `a, b or c`."""
    *first, last = map(written, values)
    return f"{', '.join(first)} or {last}" if first else last


def join_names(names: Sequence[str], most: int) -> str:
    """Join the first names, and say how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def nearest(word: str, known: Iterable[object]) -> str | None:
    """Return the known name most similar to `word`, or None if none is similar."""
    matches = difflib.get_close_matches(word, [str(name) for name in known], n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(word: object, known: Iterable[object], form: str = VALUE) -> str:
    """Return `form` with the known name most similar to `word`, or an empty string if none is similar."""
    suggestion = nearest(str(word), known)
    return form.format(suggestion) if suggestion else ""
