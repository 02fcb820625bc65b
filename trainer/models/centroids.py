"""Centroids, for k-means by gradient descent."""

from math import prod

import torch
from torch import Tensor, nn


class Centroids(nn.Module):
    """Outputs -|x - w_k|^2 / 2 for each of the centroids w_k (UIUC ECE 598, "Example - K-means").

    With loss=kmeans, the gradient moves the nearest centroid towards each sample. Centroids start at N(0, 1); see
    initializer=kmeans_plus_plus.
    """

    def __init__(self, *, input_shape: tuple[int, int, int], num_outputs: int) -> None:
        super().__init__()
        self.centroids = nn.Parameter(torch.randn(num_outputs, prod(input_shape)))

    def forward(self, features: Tensor) -> Tensor:
        differences_NKD = features.flatten(1).unsqueeze(1) - self.centroids
        return -differences_NKD.square().sum(2) / 2
