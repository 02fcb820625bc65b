"""Preprocessing: from stored pixels to what the model is fed, with statistics of the training part only."""

from trainer.preprocessing.modules import Preprocessing, Scale, Standardize, ToFloat

__all__ = ["Preprocessing", "Scale", "Standardize", "ToFloat"]
