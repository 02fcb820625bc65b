"""Element-wise preprocessing."""

from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from trainer import contracts
from trainer.base.checks import check_one_of
from trainer.contracts import Images
from trainer.preprocessing.statistics import moments

_MOST_NUMBERS = 2**16  # 256 KB for each of weight and bias
_MOST_BIAS = 32  # float32 rounds a bias up to this by less than 1e-6


class Preprocessing(contracts.Preprocessing):
    """Base class: maps pixels 0..255 (or features) to model inputs, float32 of the same shape.

    `fit` estimates the statistics once; they are part of `state_dict`, and a module that was never fitted takes them
    from there. A sample's result does not depend on its batch.
    """

    def __init__(self) -> None:  # nn.Module's accepts any argument, which would hide a misspelt one
        super().__init__()

    def fit(self, images: Images) -> None:
        """Estimate the statistics from the training split; by default there are none."""

    @abstractmethod
    def transform_(self, images_NCHW: Tensor) -> Tensor:
        """Transform float32 images, possibly in place."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Transform images of any dtype, which are not modified."""
        return self.transform_(images_NCHW.to(torch.float32, copy=True))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # only the checkpoint knows the shape of the statistics if `fit` was not called
        for name, buffer in self.named_buffers(recurse=False):
            if prefix + name in state_dict:
                setattr(self, name, buffer.new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


class ToFloat(Preprocessing):
    """y = x: the pixel values 0..255 as float32."""

    def transform_(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW


class Scale(Preprocessing):
    """y = x / 255, in 0..1."""

    def transform_(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.div_(255)


class Centred(Preprocessing):
    """y = x - mean, with the training split's mean over the axes `reduced`."""

    mean: Tensor
    reduced: tuple[int, ...]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))

    def fit(self, images: Images) -> None:
        self.mean = moments(images, self.reduced)[0].to(self.mean)

    def transform_(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.sub_(self.mean)


class MeanPixel(Centred):
    """y = x - mean, with one mean per channel, over all samples and pixels; not scaled, so y is within -255..255.

    Source: CUHK ELEG 5491, "Normalizing input" (subtracting the mean pixel; there is no need for unit variance).
    """

    reduced = (0, 2, 3)


class MeanImage(Centred):
    """y = x - mean, with one mean per input (C*H*W of them); not scaled, so y is within -255..255.

    Source: CUHK ELEG 5491, "Normalizing input" (subtracting the mean image).
    """

    reduced = (0,)


class Standardize(Preprocessing):
    """y = (x - mean) / std, with the training split's mean and standard deviation (divisor N).

    `per`: "channel" for one mean and std per channel, over all samples and pixels; "feature" for one per input (C*H*W
    of them). y is 0 for inputs that are constant over the training split (std 0).

    Source: CUHK ELEG 5491, "Normalizing input" (per feature), CS7150, "Normalization". Raises ValueError for another
    `per`.
    """

    mean: Tensor
    reciprocal_std: Tensor

    def __init__(self, per: Literal["channel", "feature"] = "channel") -> None:
        check_one_of("per", per, ("channel", "feature"))
        super().__init__()
        self.per = per
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("reciprocal_std", torch.empty(0))
        self._made_from: tuple[Tensor, Tensor] | None = None
        self._weight: Tensor | None = None
        self._bias = torch.empty(0)

    def fit(self, images: Images) -> None:
        mean, std = moments(images, (0, 2, 3) if self.per == "channel" else (0,))
        self.mean = mean.to(self.mean)
        self.reciprocal_std = torch.where(std > 0, 1 / std, 0).to(self.mean)

    def transform_(self, images_NCHW: Tensor) -> Tensor:
        self._prepare(images_NCHW[:1])
        if self._weight is None:
            return images_NCHW.sub_(self.mean).mul_(self.reciprocal_std)
        return torch.addcmul(self._bias, images_NCHW, self._weight, out=images_NCHW)

    def _prepare(self, image_1CHW: Tensor) -> None:
        """Cache weight and bias of y = weight x + bias, which needs one pass over the samples instead of two.

        Both have the shape and memory layout of a sample. For a large sample with one weight per channel they have the
        size of a row, which leaves the cache to the sample. If the mean is many standard deviations, y = weight x +
        bias would lose precision and is not used.
        """
        if image_1CHW.numel() > _MOST_NUMBERS and self.mean.shape[-2:] == (1, 1):
            image_1CHW = torch.empty_like(image_1CHW[:, :, :1])
        made_from = self._made_from
        is_same = made_from is not None and made_from[0] is self.mean and made_from[1] is self.reciprocal_std
        if is_same and (self._weight is None or _alike(self._weight, image_1CHW)):
            return
        self._made_from = self.mean, self.reciprocal_std
        bias = -self.mean * self.reciprocal_std
        self._weight = None
        if bias.numel() > 0 and bias.abs().amax() <= _MOST_BIAS:
            self._weight = torch.empty_like(image_1CHW).copy_(self.reciprocal_std)
            self._bias = torch.empty_like(image_1CHW).copy_(bias)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.stride() == other.stride() and one.device == other.device
