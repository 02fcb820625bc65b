"""What `plan` says of operations that do not suit the images: every preset against the sizes and classes that ship."""

import pytest
import yaml
from omegaconf import OmegaConf

from trainer import compose
from trainer.augmentation import Crop, HorizontalFlip, ResizedCrop, TrivialAugment, VerticalFlip
from trainer.augmentation.noise import Salt, Superpixels
from trainer.augmentation.pipeline import Pipeline
from trainer.base.config import Config
from trainer.configuration.build import build
from trainer.configuration.options import config_folder
from trainer.configuration.resolve import resolve
from trainer.planning.sections import data_rows

PRESETS = sorted(path.stem for path in (config_folder() / "augmentation").glob("*.yaml") if path.stem != "none")
DIGITS = tuple("0123456789")
IMAGES: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {
    "digits": ((1, 8, 8), DIGITS),
    "mnist": ((1, 28, 28), tuple(f"{digit} - word" for digit in DIGITS)),
    "letters": ((3, 64, 48), ("A", "b", "C")),
    "fashion_mnist": ((1, 28, 28), ("Trouser", "Bag")),
    "cifar10": ((3, 32, 32), ("airplane", "cat")),
    "photographs": ((3, 224, 224), ("n01440764", "n01443537")),
    "unnamed": ((1, 8, 8), ()),
}


def preset(name: str) -> Config:
    found: Config = yaml.safe_load((config_folder() / "augmentation" / f"{name}.yaml").read_text())
    return found


def pipeline(node: Config) -> Pipeline:
    made: Pipeline = build(node, "augmentation")
    return made


def unsuited(found: Pipeline, side: int, are_characters: bool) -> set[str]:
    """The operations that do not suit the images, by rules of the test's own."""
    names = set()
    for name, item in found.operations.items():
        if (
            (isinstance(item, HorizontalFlip | VerticalFlip) and are_characters)
            or (isinstance(item, Crop) and item.padding > side / 4)
            or (isinstance(item, Salt | Superpixels) and item.cell > side / 4)
            or (isinstance(item, ResizedCrop) and side * item.scale[0] ** 0.5 < 4)
            or (isinstance(item, TrivialAugment) and (side < 32 or are_characters))
            or (name == "short_side" and side < 9)
        ):
            names.add(name)
    return names


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_suits_the_images_or_says_what_helps(name: str, images: str) -> None:
    shape, class_names = IMAGES[images]
    node, found = preset(name), pipeline(preset(name))
    lines = found.notices(shape, class_names)
    told = {line.partition(":")[0]: line for line in lines}
    assert set(told) == unsuited(found, min(shape[1:]), images in ("digits", "mnist", "letters"))
    assert len(told) == len(lines)
    for line in lines:
        key, _, value = line.partition("; set augmentation.")[2].partition("=")
        OmegaConf.update(config := OmegaConf.create(node), key, yaml.safe_load(value), force_add=False)
        node = OmegaConf.to_container(config)  # type: ignore[assignment]
    assert pipeline(node).notices(shape, class_names) == [], "the advice helps"


def test_plan_shows_them_and_the_advice_can_be_typed() -> None:
    words = ["model=mlp", "augmentation=everything"]

    def told(*more: str) -> list[str]:
        return [text for name, text in data_rows(resolve(compose([*words, *more]))) if name == "augmentation"]

    lines = told()
    assert {line.partition(":")[0] for line in lines} == {
        "flip", "crop", "vertical_flip", "coarse_salt", "superpixels", "trivial"
    }  # fmt: skip
    assert told(*(line.partition("; set ")[2] for line in lines)) == []


@pytest.mark.parametrize(("degrees", "is_told"), [(15, False), (90, False), (91, True), (180, True)])
def test_turning_digits_upside_down(degrees: float, is_told: bool) -> None:
    node = {"_target_": "trainer.augmentation.Pipeline",
            "turn": {"_target_": "trainer.augmentation.Rotate", "degrees": degrees}}  # fmt: skip
    assert bool(pipeline(node).notices((1, 28, 28), DIGITS)) == is_told
    assert pipeline(node).notices((1, 28, 28), ("Trouser", "Bag")) == []
