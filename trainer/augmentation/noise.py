"""Operations that add noise, blur images, or remove detail."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.augmentation.counted import normal, uniform
from trainer.augmentation.operation import RangedOperation, Rows, column
from trainer.base.checks import check_number, check_range, check_that, check_whole
from trainer.base.chunks import chunks

_NUMBERS_A_CHUNK = 2**16  # of a blur: small enough to stay in cache during its many passes


class GaussianNoise(RangedOperation):
    """Adds Gaussian noise: y = clamp(x + trunc(n)), n ~ Normal(0, std^2) per pixel and channel, as torchvision on
    uint8.

    `std`: range in levels (of 0..255), uniform. The noise never exceeds 4.3 std.

    Source: UVic PHYS 555, "Noise / occlusion" (additive-gaussian-noise). Raises ValueError: `std` below 0 or in the
    wrong order, `probability` not in 0..1.
    """

    draws_seeds = True

    def __init__(self, std: tuple[float, float] = (0.0, 20.0), probability: float = 1.0) -> None:
        super().__init__(probability, std=check_range("std", std, 0))

    def change(self, images_KCHW: Tensor, rows: Rows) -> Tensor:
        shape = tuple(images_KCHW.shape[1:])
        noise_KCHW = normal(rows["seed"], shape, images_KCHW.device)
        noise_KCHW.mul_(column(rows["std"], images_KCHW)).trunc_()
        return images_KCHW.add_(noise_KCHW).clamp_(0, 255)


class GaussianBlur(RangedOperation):
    """Convolves an image with a Gaussian kernel of `kernel_size` x `kernel_size` pixels and rounds.

    `kernel_size` is odd; the border is reflected. `sigma`: range of the standard deviation in pixels, uniform; 0
    leaves the image unchanged. The kernel is separable: applied vertically, then horizontally.

    Source: UVic PHYS 555, "Noise / occlusion" (gaussian-blur). Raises ValueError: `sigma` below 0 or in the wrong
    order, a `kernel_size` that is even, below 1, or (when drawing) too large for the images, `probability` not in
    0..1.
    """

    def __init__(self, sigma: tuple[float, float] = (0.1, 1.5), kernel_size: int = 7, probability: float = 1.0) -> None:
        super().__init__(probability, sigma=check_range("sigma", sigma, 0))
        must = "odd and above 0"
        check_that(check_whole("kernel_size", kernel_size, 1, must=must) % 2 == 1, "kernel_size", kernel_size, must)
        self.kernel_size = kernel_size

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        side = min(input_shape[1:])
        must = f"below {2 * side}, twice the side of the images"
        check_that(self.kernel_size // 2 < side, "kernel_size", self.kernel_size, must)
        rows = super().draw(num_samples, input_shape, generator)
        # exp is computed here, once for the epoch: its last bit may depend on the index in a tensor
        return rows | {"next_weight": (-0.5 / rows["sigma"].square()).exp()}

    def change(self, images_KCHW: Tensor, rows: Rows) -> Tensor:
        weights = [column(weight_K, images_KCHW) for weight_K in self._weights(rows["next_weight"])]
        for some in chunks(images_KCHW, _NUMBERS_A_CHUNK):
            images_KCHW[some] = _blur(images_KCHW[some], [weight[some] for weight in weights])
        return images_KCHW

    def _weights(self, next_weight_K: Tensor) -> list[Tensor]:
        """float64_K: kernel weights at the distances 0, 1, ... r; w_d is proportional to w_1^(d^2)."""
        weights = [torch.ones_like(next_weight_K)]
        odd_power_K = next_weight_K  # w_1^(2d - 1) = w_d / w_(d - 1)
        for _ in range(self.kernel_size // 2):
            weights.append(weights[-1] * odd_power_K)
            odd_power_K = odd_power_K * next_weight_K * next_weight_K
        total_K = weights[0] + 2 * sum(weights[1:], torch.zeros_like(next_weight_K))
        return [weight_K / total_K for weight_K in weights]


def _blur(images_KCHW: Tensor, weights: list[Tensor]) -> Tensor:
    padded_KCHW = F.pad(images_KCHW, (len(weights) - 1,) * 4, mode="reflect")
    return _convolve(_convolve(padded_KCHW, weights, 2), weights, 3).round_()


def _convolve(padded: Tensor, weights: list[Tensor], axis: int) -> Tensor:
    """Convolve with a symmetric kernel along one axis.

    One product and one sum at a time, so that the bits do not depend on the batch.
    """
    radius = len(weights) - 1
    size = padded.shape[axis] - 2 * radius
    total = padded.narrow(axis, radius, size) * weights[0]
    for distance, weight in enumerate(weights[1:], 1):
        pair = padded.narrow(axis, radius - distance, size) + padded.narrow(axis, radius + distance, size)
        total.add_(pair.mul_(weight))
    return total


class Salt(RangedOperation):
    """Salt-and-pepper noise: white and black cells of `cell` x `cell` pixels, across all channels.

    `amount`: range of the fraction of cells that are replaced, uniform; each cell is replaced independently. `pepper`:
    the fraction of these that are black (0); the others are white (255). Cells of one pixel give fine salt, larger
    ones coarse salt. The grid of cells starts at the upper left corner.

    Source: UVic PHYS 555, "Noise / occlusion" (coarse-salt). Raises ValueError: `amount` or `pepper` not in 0..1,
    `cell` not in 1..256, `probability` not in 0..1.
    """

    draws_seeds = True

    def __init__(
        self,
        amount: tuple[float, float] = (0.0, 0.05),
        pepper: float = 0.5,
        cell: int = 1,
        probability: float = 1.0,
    ) -> None:
        super().__init__(probability, amount=check_range("amount", amount, 0, 1))
        self.pepper, self.cell = check_number("pepper", pepper, 0, 1), check_whole("cell", cell, 1, 256)

    def lengths(self) -> dict[str, tuple[int, int]]:
        return {"cell": (self.cell, 1)}

    def change(self, images_KCHW: Tensor, rows: Rows) -> Tensor:
        H, W = images_KCHW.shape[2:]
        cells = (1, -(-H // self.cell), -(-W // self.cell))
        numbers = uniform(rows["seed"], cells, images_KCHW.device)
        numbers = numbers.repeat_interleave(self.cell, 2)[:, :, :H].repeat_interleave(self.cell, 3)[..., :W]
        amount = column(rows["amount"], images_KCHW)
        images_KCHW.masked_fill_(numbers < amount, 255)
        return images_KCHW.masked_fill_(numbers < amount * self.pepper, 0)


class Emboss(RangedOperation):
    """Blends an image with its relief, y = clamp(round((1 - alpha) x + alpha K x)), reflected at the border, with

        K = [[-1-s, -s, 0], [-s, 1, s], [0, s, 1+s]].

    `alpha`: range of the weight of the relief; `strength`: range of s; both uniform.

    Source: UVic PHYS 555, "Noise / occlusion" (emboss), with the kernel of the library imgaug. Raises ValueError:
    `alpha` not in 0..1, `strength` below 0, bounds in the wrong order, `probability` not in 0..1.
    """

    def __init__(
        self,
        alpha: tuple[float, float] = (0.0, 1.0),
        strength: tuple[float, float] = (0.0, 1.0),
        probability: float = 1.0,
    ) -> None:
        super().__init__(
            probability, alpha=check_range("alpha", alpha, 0, 1), strength=check_range("strength", strength, 0)
        )

    def change(self, images_KCHW: Tensor, rows: Rows) -> Tensor:
        H, W = images_KCHW.shape[2:]
        padded = F.pad(images_KCHW, (1,) * 4, mode="reflect" if min(H, W) > 1 else "replicate")

        def neighbour(down: int, right: int) -> Tensor:
            return padded[:, :, 1 + down : 1 + down + H, 1 + right : 1 + right + W]

        across = neighbour(1, 1) - neighbour(-1, -1)
        relief = (across + neighbour(0, 1)).sub_(neighbour(0, -1)).add_(neighbour(1, 0)).sub_(neighbour(-1, 0))
        relief.mul_(column(rows["strength"], images_KCHW)).add_(across)
        relief.mul_(column(rows["alpha"], images_KCHW))
        return images_KCHW.add_(relief).round_().clamp_(0, 255)


class Superpixels(RangedOperation):
    """Replaces superpixels by their mean colour (rounded).

    Superpixels are computed by SLIC: k-means over (position, colour) in `iterations` rounds, with one cluster for each
    cell of a grid of `cell` x `cell` pixels, initialized with the cell's mean. A pixel is assigned to the cluster of
    its own cell or of the eight neighbouring cells that minimizes

        sum over channels (x - colour)^2 + (compactness / cell)^2 ((row - centre row)^2 + (column - centre column)^2).

    A low `compactness` (in levels) follows edges, a high one gives squares. `replaced`: range of the fraction of
    superpixels that are replaced, uniform; each is replaced independently.

    Source: UVic PHYS 555, "Noise / occlusion" (super-pixel); Achanta et al., "SLIC superpixels" (2012), here on RGB or
    grey. Raises ValueError: `replaced` not in 0..1, `cell` not in 2..64, `compactness` below 0, `iterations` not in
    1..100, `probability` not in 0..1.
    """

    draws_seeds = True

    def __init__(
        self,
        replaced: tuple[float, float] = (0.3, 1.0),
        cell: int = 4,
        compactness: float = 20.0,
        iterations: int = 3,
        probability: float = 1.0,
    ) -> None:
        super().__init__(probability, replaced=check_range("replaced", replaced, 0, 1))
        self.cell = check_whole("cell", cell, 2, 64)  # at most 64: sums over nine cells stay exact in float32
        self.compactness = check_number("compactness", compactness, 0)
        self.iterations = check_whole("iterations", iterations, 1, 100)

    def lengths(self) -> dict[str, tuple[int, int]]:
        return {"cell": (self.cell, 2)}

    def change(self, images_KCHW: Tensor, rows: Rows) -> Tensor:
        C, H, W = images_KCHW.shape[1:]
        cells = _Cells(images_KCHW, self.cell)
        segment_KP = cells.cluster(self.compactness / self.cell, self.iterations)
        colour_KCS = cells.means(segment_KP)[:, :C].round()
        painted_KCP = colour_KCS.gather(2, segment_KP.unsqueeze(1).expand(-1, C, -1))
        uniform_KS = uniform(rows["seed"], (cells.count,), images_KCHW.device)
        fraction_K1 = rows["replaced"].to(uniform_KS, non_blocking=True).unsqueeze(1)
        replaced_KP = (uniform_KS < fraction_K1).gather(1, segment_KP).unsqueeze(1)
        return cells.image(torch.where(replaced_KP, painted_KCP, cells.features[:, :C].flatten(2)))[..., :H, :W]


class _Cells:
    """A batch of images divided into a grid of square cells.

    Pixels are ordered by (position in the cell, cell), so that comparing pixels with a neighbouring cell is arithmetic
    on vectors over all cells.
    """

    def __init__(self, images_NCHW: Tensor, side: int) -> None:
        N, C, H, W = images_NCHW.shape
        self.side, self.rows, self.columns = side, -(-H // side), -(-W // side)
        self.count = self.rows * self.columns
        padded_H, padded_W = self.rows * side, self.columns * side
        row, column_ = torch.meshgrid(
            torch.arange(padded_H, dtype=torch.float32, device=images_NCHW.device),
            torch.arange(padded_W, dtype=torch.float32, device=images_NCHW.device),
            indexing="ij",
        )
        is_inside = ((row < H) & (column_ < W)).to(torch.float32)  # the last cells may extend beyond the image
        positions_N3HW = torch.stack((row, column_, is_inside)).expand(N, -1, -1, -1)
        features = torch.cat((F.pad(images_NCHW, (0, padded_W - W, 0, padded_H - H)), positions_N3HW), 1)
        cut = features.view(N, C + 3, self.rows, side, self.columns, side).permute(0, 1, 3, 5, 2, 4)
        self.features = cut.reshape(N, C + 3, side * side, self.count)
        self.features.mul_(self.features[:, -1:].clone())

    def image(self, pixels_NCP: Tensor) -> Tensor:
        """Rearrange pixels into images, (N, C, rows * side, columns * side)."""
        N, C, _ = pixels_NCP.shape
        cut = pixels_NCP.view(N, C, self.side, self.side, self.rows, self.columns).permute(0, 1, 4, 2, 5, 3)
        return cut.reshape(N, C, self.rows * self.side, self.columns * self.side)

    def cluster(self, position_weight: float, iterations: int) -> Tensor:
        """int64 (N, pixels): the cluster of each pixel after the last round, numbered as the cells."""
        own_P = torch.arange(self.count, device=self.features.device).repeat(self.side**2)
        segment_NP = own_P.expand(len(self.features), -1)
        for _ in range(iterations):
            segment_NP = self._nearest(self.means(segment_NP), position_weight)
        return segment_NP

    def means(self, segment_NP: Tensor) -> Tensor:
        """float32 (N, C + 2, segments): mean colour and position of each segment.

        An empty segment gets an infinite colour, so that no pixel is nearest to it. Sums of integers below 2^24 are
        exact in any order.
        """
        N, num_features = self.features.shape[:2]
        sums = self.features.new_zeros(N, num_features, self.count)
        sums.scatter_add_(2, segment_NP.unsqueeze(1).expand(-1, num_features, -1), self.features.flatten(2))
        means_NFS = sums[:, :-1] / sums[:, -1:].clamp(min=1)
        means_NFS[:, :1].masked_fill_(sums[:, -1:] == 0, math.inf)
        return means_NFS

    def _nearest(self, centres_NFS: Tensor, position_weight: float) -> Tensor:
        N, num_features, _ = centres_NFS.shape
        weight_squared = position_weight * position_weight
        least = nearest = None
        for cell_S in self._around(centres_NFS.device):
            centres_NF1S = centres_NFS.index_select(2, cell_S).unsqueeze(2)
            cell_S = cell_S.to(torch.int32)  # halves the memory traffic
            distance = position = None
            for feature in range(num_features):
                squares = (self.features[:, feature] - centres_NF1S[:, feature]).square_()
                if feature < num_features - 2:
                    distance = squares if distance is None else distance.add_(squares)
                else:
                    position = squares if position is None else position.add_(squares)
            assert distance is not None and position is not None
            distance.add_(position.mul_(weight_squared))
            if least is None or nearest is None:
                least, nearest = distance, cell_S.expand(distance.shape)
            else:
                nearest = torch.where(distance < least, cell_S, nearest)
                least = torch.minimum(least, distance)
        assert nearest is not None
        return nearest.reshape(N, -1).to(torch.int64)

    def _around(self, device: torch.device) -> Iterator[Tensor]:
        """Yield nine times, once per neighbour: int64 (cells,), each cell's neighbour, clamped to the grid."""
        for down in (0, -1, 1):
            for right in (0, -1, 1):
                row = (torch.arange(self.rows, device=device) + down).clamp(0, self.rows - 1)
                column_ = (torch.arange(self.columns, device=device) + right).clamp(0, self.columns - 1)
                yield (row.unsqueeze(1) * self.columns + column_).flatten()
