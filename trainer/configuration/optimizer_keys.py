"""Keys in an optimizer's YAML file that are for the runner: `rate`, and the defaults of `batch_size` and `epochs`.

An optimizer whose rate is not scheduled takes `schedule=constant` if no schedule was typed. This is decided without
torch, except for classes in a package of the user's, which have to be imported.
"""

from collections.abc import Callable, Iterable

from trainer.base.capabilities import Rate, rate_of_class, rate_of_name
from trainer.base.config import Config, ConfigValue
from trainer.base.errors import ConfigurationError
from trainer.configuration.build import locate
from trainer.configuration.trust import is_users

RUNNERS = ("rate", "batch_size", "epochs")  # keys that constructors do not see
CONSTANT = "constant"


def rate_of(optimizer: Config) -> Rate:
    """Return how an optimizer's node says that its learning rate is used, or how its class does.

    Raises ConfigurationError if its class is the user's and cannot be found, or declares an unknown word.
    """
    target = str(optimizer.get("_target_"))
    if "rate" in optimizer:
        rate: Rate = optimizer["rate"]
        return rate
    if not is_users(target):
        return rate_of_name(target)
    try:
        return rate_of_class(locate(target, "optimizer"))
    except ValueError as error:
        raise ConfigurationError(f"optimizer._target_={target}: {error}") from error


def schedule_problem(config: Config, rate: Rate) -> str | None:
    """Return the problem of a schedule beside an optimizer that does not follow one."""
    choice, optimizer = config["choices"].get("schedule"), config["choices"].get("optimizer")
    if rate == "scheduled" or choice == CONSTANT:
        return None
    why = {"fixed": "has a fixed rate", "own": "determines its own rate"}[rate]
    return f"schedule={choice}: optimizer={optimizer} {why}, so it can only have schedule={CONSTANT}"


def with_constant_schedule(config: Config, typed: Iterable[str], written: Callable[..., ConfigValue]) -> Config:
    """Return the configuration with the constant schedule if the optimizer does not follow one.

    `written(*words)` returns the schedule's node as it is written in its file, chosen by these words. Raises
    ConfigurationError if the user or an experiment has chosen another schedule.
    """
    rate = rate_of(config["optimizer"])
    if rate == "scheduled":
        return config
    if any(key.partition(".")[0] == "schedule" for key in typed) or config["schedule"] != written():
        if problem := schedule_problem(config, rate):
            raise ConfigurationError(problem)
        return config
    choices = config["choices"] | {"schedule": CONSTANT}
    return config | {"schedule": written(f"schedule={CONSTANT}"), "choices": choices}
