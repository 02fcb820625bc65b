"""Operations that mix two samples and their labels."""

import torch
from torch import Tensor

from trainer.augmentation.operation import Operation, Rows, check_probability, column, draw_applied
from trainer.base.checks import check_number


class _Mixing(Operation):
    """Base class of mixup and cutmix; a call leaves the images unchanged, since mixing happens in `mix`."""

    keeps_values = True

    def __init__(self, alpha: float = 1.0, probability: float = 1.0) -> None:
        check_number("alpha", alpha, 0, above=True)
        check_probability(probability)
        self.alpha, self.probability = alpha, probability

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        return images_NCHW

    def _draw_lam(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """float64_N ~ Beta(alpha, alpha), or 1 for samples that are not mixed.

        Uses the inverse distribution function, so that each sample takes exactly one draw.
        """
        from scipy.special import betaincinv

        applied_N = draw_applied(num_samples, self.probability, generator)
        uniform_N = torch.rand(num_samples, generator=generator, dtype=torch.float64)
        lam_N = torch.from_numpy(betaincinv(self.alpha, self.alpha, uniform_N.numpy())).view(num_samples)
        return torch.where(applied_N, lam_N, 1.0)


class MixUp(_Mixing):
    """Mixes samples and labels: x = s x_i + (1 - s) x_j and y = s y_i + (1 - s) y_j, with s ~ Beta(alpha, alpha).

    j is the sample before i in the same batch (the last one for the first); s is drawn per sample. With cross-entropy
    the loss is s L(i) + (1 - s) L(j).

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018). Raises ValueError: `alpha` not above 0,
    `probability` (fraction of the samples that are mixed) not in 0..1.
    """

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        return {"lam": self._draw_lam(num_samples, generator)}

    def mix(self, images_NCHW: Tensor, partners_NCHW: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The mixed images, and s."""
        lam_N = rows["lam"].to(torch.float32)
        lam = column(lam_N, images_NCHW)
        mixed_NCHW = images_NCHW * lam + partners_NCHW * (1 - lam)
        return mixed_NCHW, lam_N.to(images_NCHW.device, non_blocking=True)


class CutMix(_Mixing):
    """Pastes a box of sample j into sample i and mixes the labels by area: y = s y_i + (1 - s) y_j.

    The box has sides W sqrt(1 - b) and H sqrt(1 - b), b ~ Beta(alpha, alpha); its centre is uniform over the pixels,
    and it is clipped to the image, as in torchvision. s is 1 - its area / (H W). j is the sample before i in the same
    batch (the last one for the first); box and b are drawn per sample.

    Source: Yun et al., "CutMix" (2019). Raises ValueError: `alpha` not above 0, `probability` (fraction of the samples
    that are mixed) not in 0..1.
    """

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        _, H, W = input_shape
        radius_N = 0.5 * (1 - self._draw_lam(num_samples, generator)).sqrt()
        table = {}
        for axis, size in (("y", H), ("x", W)):
            centre_N = torch.randint(size, (num_samples,), generator=generator)
            half_N = (radius_N * size).to(torch.int64)
            table[f"{axis}_from"] = (centre_N - half_N).clamp(min=0)
            table[f"{axis}_to"] = (centre_N + half_N).clamp(max=size)
        return table

    def mix(self, images_NCHW: Tensor, partners_NCHW: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The mixed images, and `lam`, the fraction of each image that is its own pixels."""
        _, _, H, W = images_NCHW.shape
        inside_NH, inside_NW = (
            (torch.arange(size) >= rows[f"{axis}_from"].unsqueeze(1))
            & (torch.arange(size) < rows[f"{axis}_to"].unsqueeze(1))
            for axis, size in (("y", H), ("x", W))
        )
        inside = (inside_NH.view(-1, 1, H, 1) & inside_NW.view(-1, 1, 1, W)).to(images_NCHW.device, non_blocking=True)
        area_N = (rows["y_to"] - rows["y_from"]) * (rows["x_to"] - rows["x_from"])
        lam_N = 1 - area_N / (H * W)
        return torch.where(inside, partners_NCHW, images_NCHW), lam_N.to(images_NCHW.device, non_blocking=True)
