"""Augmentation of whole batches, on the device they are on, with one draw a sample."""

from trainer.augmentation.geometry import Crop, HorizontalFlip
from trainer.augmentation.operation import Operation, Rows
from trainer.augmentation.pipeline import Pipeline

__all__ = ["Crop", "HorizontalFlip", "Operation", "Pipeline", "Rows"]
