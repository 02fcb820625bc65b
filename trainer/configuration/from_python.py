"""Checks what a Python program passes to `compose`, `assemble`, `launch`, `fit` and `resume`."""

from collections.abc import Iterable

from trainer.base.config import Config
from trainer.base.errors import ConfigurationError
from trainer.configuration import rules


def override_list(overrides: Iterable[str], call: str) -> list[str]:
    """Return the overrides. Raises ConfigurationError if they are one text, whose letters would be taken for them."""
    given = None if isinstance(overrides, str | bytes) else _items(overrides)
    if given is None or not all(isinstance(item, str) for item in given):
        raise ConfigurationError(f"{call}: overrides are a list of texts key=value, and not {_shown(overrides)}")
    return given


def check_configuration(config: Config, call: str) -> None:
    """Raise ConfigurationError with every problem of a configuration that was not composed, or was changed since."""
    if not isinstance(config, dict) or not isinstance(config.get("choices"), dict):
        raise ConfigurationError(
            f"{call} takes the configuration that compose returns, such as {call}(compose(['epochs=3'])), and not "
            f"{_shown(config)}"
        )
    if problems := rules.check_text(config, config):
        raise ConfigurationError(problems)


def refuse_no_run(run: object) -> ConfigurationError:
    """Return the error of a `fit` that was given something else than a run."""
    return ConfigurationError(
        f"fit takes the run that assemble returns, such as fit(assemble(compose(['epochs=3']))), and not {_shown(run)}"
    )


def _items(overrides: Iterable[str]) -> list[str] | None:
    try:
        return list(overrides)
    except TypeError:  # None, a number
        return None


def _shown(value: object) -> str:
    """A short value as Python writes it, otherwise its type."""
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
