"""Which weights of a new run are pruned, from the weights of a run that has been trained."""

from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.assembly.weights import read_weights
from trainer.base.config import Config
from trainer.base.errors import ConfigurationError
from trainer.base.randomness import seed_for
from trainer.optimizers.parameter_groups import excluded_names
from trainer.training.pruning import Pruning


def make_pruning(config: Config, model: nn.Module, notices: list[str]) -> Pruning | None:
    """Return the pruning that `prune` asks for; without a source, the masks are those of a checkpoint that is loaded.

    Raises ConfigurationError if the weights of the source are missing or do not fit, DataError if they are damaged.
    """
    prune = config.get("prune")
    if prune is None:
        return None
    if prune["source"] is None:
        return Pruning(model, {})
    masks = masks_of(prunable(model), Path(prune["source"]), prune["share"], prune["scope"])
    if prune["mask"] == "random":
        masks = shuffled(masks, config["seed"])
    kept, total = (sum(int(count) for count in counts) for counts in zip(*_counts(masks), strict=True))
    notices.append(f"prune: {kept:,} of {total:,} weights are trained ({kept / total:.1%}), the others are 0")
    return Pruning(model, masks)


def _counts(masks: dict[str, Tensor]) -> list[tuple[int, int]]:
    return [(int(mask.sum()), mask.numel()) for mask in masks.values()]


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that may be pruned: all but biases and norms."""
    excluded = excluded_names(model, ("bias", "norm"))
    return {name: weight for name, weight in model.named_parameters() if name not in excluded and weight.dim() > 1}


def masks_of(weights: dict[str, nn.Parameter], source: Path, share: float, scope: str) -> dict[str, Tensor]:
    """Return masks that keep the share of the source's weights that is largest in magnitude: of each layer, or of all
    (`scope`: layer or global). Of equal ones, the first are kept; at least one of each layer, or one in all."""
    state = read_weights(source, "prune.source")
    for name, weight in weights.items():
        if name not in state or state[name].shape != weight.shape:
            raise ConfigurationError(f"prune.source={source}: has no weight {name} of shape {tuple(weight.shape)}")
    sizes = {name: state[name].abs().flatten() for name in weights}
    if scope == "layer":
        return {name: _largest(size, share).view(weights[name].shape) for name, size in sizes.items()}
    flat = _largest(torch.cat(list(sizes.values())), share).split([len(size) for size in sizes.values()])
    return {name: mask.view(weights[name].shape) for name, mask in zip(sizes, flat, strict=True)}


def _largest(sizes_N: Tensor, share: float) -> Tensor:
    kept = sizes_N.argsort(descending=True, stable=True)[: max(1, round(share * len(sizes_N)))]
    return torch.zeros(len(sizes_N), dtype=torch.bool).index_fill_(0, kept, True)


def shuffled(masks: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return random masks that keep as many weights of each layer."""
    generator = torch.Generator().manual_seed(seed_for(seed, "random mask"))
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view(mask.shape)
        for name, mask in masks.items()
    }
