"""Initial centroids."""

import torch
from torch import Tensor, nn

from trainer.base.capabilities import centroids_of
from trainer.base.checks import check_whole
from trainer.contracts import Initializer


class KMeansPlusPlus(Initializer):
    """k-means++ (Arthur & Vassilvitskii 2007): each centroid is a sample, drawn with a probability proportional to its
    squared distance to the nearest centroid so far.

    Draws among the first `samples` >= 1 training samples, preprocessed. Raises ValueError for other values, and for a
    model without centroids.
    """

    def __init__(self, samples: int = 1000) -> None:
        self.num_samples = check_whole("samples", samples, 1)
        self._samples: Tensor | None = None

    def see(self, images: Tensor) -> None:
        self._samples = images.flatten(1)

    def check(self, model: nn.Module) -> None:
        if not centroids_of(model):
            raise ValueError("the model has no centroids; model=centroids has some")

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        samples_ND, self._samples = self._samples, None
        if samples_ND is None:  # for a run whose weights are loaded afterwards
            return
        for centroids_KD in centroids_of(model):
            nearest_N = torch.ones(len(samples_ND))  # squared distance to the nearest centroid so far
            for number, centroid_D in enumerate(centroids_KD):
                centroid_D.copy_(samples_ND[torch.multinomial(nearest_N, 1)[0]])
                squares_N = (samples_ND - centroid_D).square().sum(1)
                nearest_N = torch.minimum(nearest_N, squares_N) if number else squares_N
                nearest_N += 1e-30  # if there are fewer different samples than centroids
