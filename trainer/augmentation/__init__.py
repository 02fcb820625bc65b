"""Batched augmentation on the images' own device, with parameters drawn per sample."""

from trainer.augmentation.colour import (
    AutoContrast,
    Brightness,
    ColourShift,
    Contrast,
    Equalize,
    Gamma,
    Hue,
    Invert,
    Lighting,
    Posterize,
    Saturation,
    Sharpen,
    Solarize,
)
from trainer.augmentation.distortion import Elastic, LensDistortion
from trainer.augmentation.erasing import Erasing
from trainer.augmentation.framing import CropAndPad, RandomShortSide, ResizedCrop
from trainer.augmentation.geometry import Crop, HorizontalFlip, VerticalFlip
from trainer.augmentation.mixing import CutMix, MixUp
from trainer.augmentation.noise import Emboss, GaussianBlur, GaussianNoise, Salt, Superpixels
from trainer.augmentation.operation import Operation, Rows
from trainer.augmentation.pipeline import Pipeline
from trainer.augmentation.policies import RandAugment, TrivialAugment
from trainer.augmentation.warp import Perspective, Rotate, Scale, Shear, Stretch, TranslateX, TranslateY
from trainer.augmentation.weather import Clouds, Fog, Rain, Snowflakes, SnowyLandscape

__all__ = [
    "AutoContrast",
    "Brightness",
    "Clouds",
    "ColourShift",
    "Contrast",
    "Crop",
    "CropAndPad",
    "CutMix",
    "Elastic",
    "Emboss",
    "Equalize",
    "Erasing",
    "Fog",
    "Gamma",
    "GaussianBlur",
    "GaussianNoise",
    "HorizontalFlip",
    "Hue",
    "Invert",
    "LensDistortion",
    "Lighting",
    "MixUp",
    "Operation",
    "Perspective",
    "Pipeline",
    "Posterize",
    "Rain",
    "RandAugment",
    "RandomShortSide",
    "ResizedCrop",
    "Rotate",
    "Rows",
    "Salt",
    "Saturation",
    "Scale",
    "Sharpen",
    "Shear",
    "Snowflakes",
    "SnowyLandscape",
    "Solarize",
    "Stretch",
    "Superpixels",
    "TranslateX",
    "TranslateY",
    "TrivialAugment",
    "VerticalFlip",
]
