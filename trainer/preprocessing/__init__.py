"""Preprocessing: converts stored pixels to model inputs, with statistics of the training split only."""

from trainer.preprocessing.modules import MeanImage, MeanPixel, Preprocessing, Scale, Standardize, ToFloat
from trainer.preprocessing.whitening import ZCA, PCAWhitening

__all__ = ["ZCA", "MeanImage", "MeanPixel", "PCAWhitening", "Preprocessing", "Scale", "Standardize", "ToFloat"]
