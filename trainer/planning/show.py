"""The picture of `train plan --show`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.base.errors import ConfigurationError
from trainer.storage.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.configuration.blueprint import Blueprint


def draw_augmentation(blueprint: "Blueprint", path: Path) -> tuple[str, str]:
    """Draw the augmentation of the run's first samples; returns the file's name and a description."""
    from trainer.assembly.data import load_data, make_batches
    from trainer.configuration.components import build_component
    from trainer.parallelism.single import Single
    from trainer.planning.augmentation_picture import draw
    from trainer.planning.augmentation_strips import strips
    from trainer.preprocessing import ToFloat

    config, facts = blueprint.config, blueprint.facts
    if facts.kind != "images":
        raise ConfigurationError(f"--show: draws images; data={config['choices'].get('data')} has {facts.kind}")
    sampler = build_component(config, "sampler", batch_size=blueprint.batch_size)
    augmentation = build_component(config, "augmentation")
    alone = replace(blueprint, strategy=Single())
    batches = make_batches(alone, load_data(blueprint).train, sampler, augmentation, ToFloat(), room=0)

    def name_of(target: "Tensor") -> str:
        if facts.task != "classification":
            return " ".join(f"{value:.3g}" for value in target.flatten().tolist())
        return facts.class_names[int(target)] if facts.class_names else f"class {int(target)}"

    found = list(
        strips(
            batches,
            augmentation,
            repeats=sampler.repeats,
            settings=config["augmentation"] or {},
            name_of=name_of,
            preprocessing=str(config["choices"].get("preprocessing")),
        )
    )
    keys = {name: config["choices"].get(name) for name in ("augmentation", "data")} | {"seed": config["seed"]}
    write_atomic(path, draw(found, ", ".join(f"{name}={value}" for name, value in keys.items()), batches.images))
    return str(path), f"{len(found[0].images_KCHW)} training samples: {', '.join(strip.title for strip in found)}"
