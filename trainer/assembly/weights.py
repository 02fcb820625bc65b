"""The model with its initial weights, from an initializer, a file or another run."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.base.errors import ConfigurationError, DataError
from trainer.base.randomness import seed_for
from trainer.base.saved import read_saved
from trainer.base.stateful import State
from trainer.base.taken_weights import different, table
from trainer.base.text import join_names
from trainer.configuration.blueprint import Blueprint
from trainer.configuration.components import build_component
from trainer.contracts import taken_weights
from trainer.storage import checkpoint, run_folder
from trainer.storage.files import has_checksum
from trainer.storage.identity import check_run, identity_of, read_record


def make_model(
    blueprint: Blueprint, samples: Callable[[int], Tensor] | None = None, notices: list[str] | None = None
) -> nn.Module:
    """Build the model with its initial weights, a function of the seed; on the CPU, whatever the device.

    `samples` returns that many training samples, preprocessed, for initializers that look at data. `notices` receives
    what the user should know.
    """
    config = blueprint.config
    with torch.random.fork_rng(devices=[]):
        is_redrawn = (config.get("prune") or {}).get("redraw", False)
        purpose = "redrawn weights" if is_redrawn else "weights"
        torch.default_generator.manual_seed(seed_for(config["seed"], purpose))
        model = blueprint.build_model()
        told = taken_weights(model)
        initializer = build_component(config, "initializer", input_shape=tuple(blueprint.facts.input_shape))
        if initializer is not None:
            if initializer.num_samples and samples is not None:
                initializer.see(samples(initializer.num_samples))
            initializer(model)
    lines = [told]
    if config["init_from"] is not None:
        taken, told = fitting_weights(model, Path(config["init_from"]), is_strict=config["init_strict"])
        model.load_state_dict(model.state_dict() | taken)
        lines.append(told)
    if notices is not None:
        notices += [line for line in lines if line is not None]
    return model


def fitting_weights(model: nn.Module, start: Path, *, is_strict: bool) -> tuple[dict[str, Tensor], str | None]:
    """Read the weights for a model from a run folder (the best ones) or a .pt file.

    Without `is_strict`, those that have the name and shape of one of the model's; then also returns what was taken,
    left out and is new. Raises ConfigurationError if they do not fit, DataError if they are damaged.
    """
    state, own = read_weights(start, "init_from"), model.state_dict()
    others = different(own, state)
    if is_strict and others:
        raise ConfigurationError(
            f"init_from={start}: does not fit the model at {join_names(sorted(others), 3)}; "
            "init_strict=false takes what fits"
        )
    taken = {name: value for name, value in state.items() if name not in others}
    if not taken:
        raise ConfigurationError(f"init_from={start}: has no weight with the name and shape of one of the model's")
    return taken, table(f"init_from={start}", own, state)


def read_weights(start: Path, key: str) -> State:
    """Read the weights that a key names: those of a run folder (the best ones), or in a .pt file.

    Raises ConfigurationError if there are none, or something else, DataError if they are damaged.
    """
    path, record = start, None
    if start.is_dir():
        path = start / run_folder.CHECKPOINTS / "best.pt"
        if not path.exists() and not checkpoint.previous(path).exists():
            raise ConfigurationError(
                f"{key}={start}: the run has no best weights, {run_folder.CHECKPOINTS}/best.pt; name a file of weights"
            )
    is_sealed = start.is_dir() or has_checksum(path)
    try:
        found = checkpoint.load(path) if is_sealed else read_saved(path)
    except DataError as error:
        raise DataError(f"{key}={start}: {error}") from error
    except ValueError as error:
        raise ConfigurationError(f"{key}={start}: is neither a checkpoint nor a state dict of tensors") from error
    weights = found.get("model", found) if isinstance(found, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        kind = DataError if is_sealed else ConfigurationError
        raise kind(f"{key}={start}: must contain a state dict of tensors")
    if start.is_dir() and isinstance(found, dict) and isinstance(found.get("run"), dict):
        with suppress(DataError):  # `start` reports a damaged record when it is resumed
            record = read_record(start)
        check_run(start, path, identity_of(found, path), record)
    state: State = weights
    return state
