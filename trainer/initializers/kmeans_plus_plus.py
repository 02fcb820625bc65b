"""Initial centroids."""

import torch
from torch import Tensor, nn

from trainer.base.checks import check_whole
from trainer.contracts import Initializer
from trainer.models.centroids import Centroids


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

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        found = [module for module in model.modules() if isinstance(module, Centroids)]
        if not found:
            raise ValueError("the model has no centroids; model=centroids has some")
        samples_ND, self._samples = self._samples, None
        if samples_ND is None:  # for a run whose weights are loaded afterwards
            return
        for module in found:
            weights_N = torch.ones(len(samples_ND))
            for centroid_D in module.centroids:
                centroid_D.copy_(samples_ND[torch.multinomial(weights_N, 1)[0]])
                squares_N = (samples_ND - centroid_D).square().sum(1)
                first = centroid_D.data_ptr() == module.centroids.data_ptr()
                weights_N = squares_N if first else torch.minimum(weights_N, squares_N)
                weights_N = weights_N + 1e-30  # with fewer different samples than centroids, any of them
