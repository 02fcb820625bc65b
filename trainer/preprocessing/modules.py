"""Element-wise preprocessing; every module maps uint8 or float images of 0..255 to a new float32 tensor."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

ELEMENTS_A_CHUNK = 2**19  # 4 MB as float64: stays in the cache


class Preprocessing(nn.Module):
    """A module whose statistics come from `fit`, once, and travel with `state_dict`."""

    def __init__(self) -> None:  # nn.Module's own takes anything, which hides a misspelt argument
        super().__init__()

    def fit(self, images_NCHW: Tensor) -> None:
        """Estimates the statistics from the uint8 images of the training part; here there are none."""


class ToFloat(Preprocessing):
    """y = x: the pixel values 0..255 themselves, as float32."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.to(torch.float32, copy=True)


class Scale(Preprocessing):
    """y = x / 255, in 0..1."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.to(torch.float32, copy=True).div_(255)


class Standardize(Preprocessing):
    """y = (x - mean) / std, with the training part's mean and standard deviation (divisor N).

    `per` channel: one mean and std for each of the C channels, over all samples and places; `per` feature:
    one for each of the C*H*W inputs. Where the training part is constant (std 0), y is 0.

    Source: A "Normalizing input" (per feature), C "Normalization". Raises ValueError for another `per`.
    """

    mean: Tensor
    reciprocal_std: Tensor

    def __init__(self, per: Literal["channel", "feature"] = "channel") -> None:
        if per not in ("channel", "feature"):
            raise ValueError(f"per={per}: must be channel or feature")
        super().__init__()
        self.per = per
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("reciprocal_std", torch.empty(0))

    def fit(self, images_NCHW: Tensor) -> None:
        reduced = (0, 2, 3) if self.per == "channel" else (0,)
        count = math.prod(images_NCHW.shape[axis] for axis in reduced)
        sums, sums_of_squares = _integer_sums(images_NCHW, reduced)
        means, reciprocals = [], []
        for total, total_of_squares in zip(sums.flatten().tolist(), sums_of_squares.flatten().tolist(), strict=True):
            variance_numerator = count * total_of_squares - total**2  # exact, so that a constant is seen as one
            means.append(total / count)
            reciprocals.append(count / math.sqrt(variance_numerator) if variance_numerator else 0.0)
        self.mean = self.mean.new_tensor(means).view(sums.shape)
        self.reciprocal_std = self.mean.new_tensor(reciprocals).view(sums.shape)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.to(torch.float32, copy=True).sub_(self.mean).mul_(self.reciprocal_std)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # the shape of the statistics is known only from data or, here, from the checkpoint
        for name, buffer in self.named_buffers():
            if prefix + name in state_dict:
                setattr(self, name, buffer.new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _integer_sums(images_NCHW: Tensor, reduced: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Exact int64 sums of x and of x^2 over the axes `reduced`, which are kept with length 1."""
    images_a_chunk = max(1, ELEMENTS_A_CHUNK // math.prod(images_NCHW.shape[1:]))
    sums = sums_of_squares = torch.zeros((), dtype=torch.int64, device=images_NCHW.device)
    for start in range(0, len(images_NCHW), images_a_chunk):
        values = images_NCHW[
            start : start + images_a_chunk
        ].double()  # integers far below 2^53: exact, and faster to sum than int64
        sums = sums + values.sum(reduced, keepdim=True).to(torch.int64)
        sums_of_squares = sums_of_squares + values.square_().sum(reduced, keepdim=True).to(torch.int64)
    return sums, sums_of_squares
