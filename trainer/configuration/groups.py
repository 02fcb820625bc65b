"""What the trainer gives to the constructors of each group and asks of their objects."""

from typing import Any

from trainer.base.errors import ConfigurationError
from trainer.configuration.build import build
from trainer.configuration.rules import Config

# given to constructors by the trainer: they may be asked for in a signature, but not set in YAML
RUNTIME = {
    "sampler": ("batch_size",),
    "model": ("input_shape", "num_outputs"),
    "optimizer": ("params",),
    "schedule": ("steps_per_epoch", "total_steps"),
}


# what the trainer asks of the object of each group
OFFERS = {
    "data": ("facts", "load"),
    "preprocessing": ("fit", "forward", "state_dict"),
    "sampler": ("order",),
    "augmentation": ("draw", "__call__"),
    "initializer": ("__call__",),
    "loss": ("tasks", "metrics", "__call__"),
    "optimizer": ("param_groups", "step", "state_dict"),
    "schedule": ("factor",),
    "parallelism": ("plan", "validate", "connect", "apply", "share", "backward"),
    "diagnostics": ("at_log", "at_start"),
}


def _build_part(config: Config, group: str, **runtime: Any) -> Any:
    """The object of a group, if it can do what the group is for."""
    part = build(_node(config, group), group, **runtime)
    missing = [name for name in OFFERS[group] if not hasattr(part, name)] if part is not None else []
    if missing:
        target = config[group]["_target_"]
        raise ConfigurationError(f"{group}._target_={target}: is nothing for {group}, it has no {', '.join(missing)}")
    return part


def _node(config: Config, group: str) -> dict[str, Any]:
    """A group's node as its constructor sees it: `data.epochs` is a suggestion to the runner."""
    node = config[group] or {}
    return {key: value for key, value in node.items() if (group, key) != ("data", "epochs")}
