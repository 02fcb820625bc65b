"""Augmentation of whole batches, on the device they are on, with one draw a sample."""

from trainer.augmentation.erasing import Erasing
from trainer.augmentation.geometry import Crop, HorizontalFlip
from trainer.augmentation.mixing import CutMix, MixUp
from trainer.augmentation.noise import Emboss, GaussianBlur, GaussianNoise, Salt, Superpixels
from trainer.augmentation.operation import Operation, Rows
from trainer.augmentation.pipeline import Pipeline
from trainer.augmentation.weather import Clouds, Fog, Rain, Snowflakes, SnowyLandscape

__all__ = [
    "Clouds",
    "Crop",
    "CutMix",
    "Emboss",
    "Erasing",
    "Fog",
    "GaussianBlur",
    "GaussianNoise",
    "HorizontalFlip",
    "MixUp",
    "Operation",
    "Pipeline",
    "Rain",
    "Rows",
    "Salt",
    "Snowflakes",
    "SnowyLandscape",
    "Superpixels",
]
