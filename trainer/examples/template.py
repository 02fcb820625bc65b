"""A complete data set and model to copy: `train experiment=template` trains one on the other.

To start with components of your own, copy this file and the two YAML files that name its classes
(`configs/data/template.yaml`, `configs/model/template.yaml`) and change them.
"""

import math

import torch
from torch import Tensor, nn

from trainer.base.checks import check_number, check_whole
from trainer.data import DataFacts, Part, Splits


class Stripes:
    """Noisy grey stripes, 16x16: a sine in one of four directions, k * 45 degrees for class k."""

    def __init__(self, num_images: int = 600, noise: float = 0.5, split_seed: int = 0) -> None:
        check_whole("num_images", num_images, 20)
        check_number("noise", noise, 0)
        self.num_images, self.noise, self.split_seed = num_images, noise, split_seed
        self.num_val = self.num_test = num_images // 5

    def facts(self) -> DataFacts:
        num_train = self.num_images - self.num_val - self.num_test
        names = ("vertical", "rising", "horizontal", "falling")
        return DataFacts("classification", (1, 16, 16), 4, num_train, self.num_val, self.num_test, names)

    def load(self) -> Splits:
        generator = torch.Generator().manual_seed(self.split_seed)
        targets_N = torch.randint(4, (self.num_images,), generator=generator)
        angles_N, phases_N = targets_N * math.pi / 4, torch.rand(self.num_images, generator=generator) * math.tau
        y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
        across_NHW = x * angles_N.cos()[:, None, None] + y * angles_N.sin()[:, None, None]
        waves_NHW = torch.sin(across_NHW + phases_N[:, None, None])
        waves_NHW = waves_NHW + self.noise * torch.randn(waves_NHW.shape, generator=generator)
        images_NCHW = (127.5 + 50 * waves_NHW).clamp(0, 255).to(torch.uint8).unsqueeze(1)
        sizes = [self.num_images - self.num_val - self.num_test, self.num_val, self.num_test]
        return Splits(*map(Part, images_NCHW.split(sizes), targets_N.split(sizes)))


class StripeNet(nn.Module):
    """One convolution, ReLU, global average pooling, one linear layer."""

    def __init__(self, input_shape: tuple[int, int, int], num_outputs: int, width: int = 16) -> None:
        super().__init__()
        check_whole("width", width, 1)
        self.filters = nn.Conv2d(input_shape[0], width, kernel_size=5, padding=2)
        self.output = nn.Linear(width, num_outputs)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        features_NCHW = torch.relu(self.filters(images_NCHW))
        outputs_NK: Tensor = self.output(features_NCHW.mean(dim=(2, 3)))
        return outputs_NK
