"""Preprocessing: from stored pixels to what the model is fed, with statistics of the training part only."""

from trainer.preprocessing.modules import MeanImage, MeanPixel, Preprocessing, Scale, Standardize, ToFloat
from trainer.preprocessing.whitening import ZCA, PCAWhitening

__all__ = ["ZCA", "MeanImage", "MeanPixel", "PCAWhitening", "Preprocessing", "Scale", "Standardize", "ToFloat"]
