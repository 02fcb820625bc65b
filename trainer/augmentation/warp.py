"""Operations that map coordinates by a matrix, and the bilinear resampling that they share.

A matrix leads from where a pixel of the result is to where it is taken from. Both are in pixels, relative to the
images' centres, x to the right and y down, homogeneous: maps in a row are one product of matrices.
"""

import math
from abc import abstractmethod
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.augmentation.operation import Operation, Rows, check_probability, draw_applied, draw_uniform, most, where
from trainer.base.checks import check_number, check_one_of, check_range
from trainer.base.chunks import Change, chunks

Fill = Literal["black", "edge", "mirror"]
_FAR = 1e4  # in halves of the image
_PADDING_MODES = {"black": "zeros", "edge": "border", "mirror": "reflection"}


def resample(images_NCHW: Tensor, matrices_N33: Tensor, fill: Fill = "black") -> Tensor:
    """Each image through its matrix (float64, on the CPU), bilinear and rounded to whole numbers; in place.

    What lies outside is `black` (0; pixels on the border are blended with it, as in torchvision with fill=None),
    the `edge`'s nearest pixel or the image's `mirror` image. An identity gives the identical image.
    """
    changed_N = changed(matrices_N33)
    if most(changed_N):
        # sampled at its own pixels an image of whole numbers comes out as it is, for less than copying others costs
        return _resample(images_NCHW, matrices_N33, fill)
    return where(images_NCHW, changed_N, lambda chosen, at_K: _resample(chosen, matrices_N33[at_K], fill))


def changed(matrices_N33: Tensor) -> Tensor:
    """bool_N: those that are not the identity."""
    return (matrices_N33 != torch.eye(3, dtype=torch.float64)).flatten(1).any(1)


def _resample(images_NCHW: Tensor, matrices_N33: Tensor, fill: Fill) -> Tensor:
    change = resampling(images_NCHW, matrices_N33, fill)
    for chunk in chunks(images_NCHW):
        change(images_NCHW[chunk], chunk)
    return images_NCHW


def resampling(images_NCHW: Tensor, matrices_N33: Tensor, fill: Fill) -> Change:
    """What resamples some of the images, given with their places among all; in place."""
    height, width = images_NCHW.shape[2:]
    device = images_NCHW.device
    x_N3, y_N3, depth_N3 = matrices_N33.unbind(1)
    # a pixel's place is a sum of what its column and what its line says: two short vectors an image instead of a
    # product a pixel; as complex numbers x and y are added in one go
    columns_NW, lines_NH = _sides(torch.complex(x_N3 / (width / 2), y_N3 / (height / 2)), height, width)
    columns_NW, lines_NH = (side.to(device, torch.complex64, non_blocking=True) for side in (columns_NW, lines_NH))
    affine = bool((depth_N3 == torch.tensor([0, 0, 1])).all())
    if not affine:
        depth_NW, depth_NH = (
            side.to(device, torch.float32, non_blocking=True) for side in _sides(depth_N3, height, width)
        )

    def change(some_NCHW: Tensor, chunk: slice) -> Tensor:
        grids_NHW2 = torch.view_as_real(columns_NW[chunk].unsqueeze(1) + lines_NH[chunk].unsqueeze(2))
        if not affine:
            # 1 where the map is affine, which stays as it is; what lies on the horizon is far away
            grids_NHW2 /= (depth_NW[chunk].unsqueeze(1) + depth_NH[chunk].unsqueeze(2)).unsqueeze(3)
            grids_NHW2.nan_to_num_(_FAR, _FAR, -_FAR)
        return sample(some_NCHW, grids_NHW2, fill)

    return change


def sample(images_NCHW: Tensor, grids_NHW2: Tensor, fill: Fill) -> Tensor:
    """Overwrites images by their own values, rounded, at other points (x, y); these are -1 and 1 at the outer edges
    of the outermost pixels."""
    mode = _PADDING_MODES[fill]
    return torch.round(F.grid_sample(images_NCHW, grids_NHW2, "bilinear", mode, align_corners=False), out=images_NCHW)


def centred(size: int) -> Tensor:
    """float64: the places of `size` pixels relative to their centre."""
    return torch.arange(size, dtype=torch.float64) - (size - 1) / 2


def _sides(weights_N3: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """NW and NH: what columns and lines say; weights of x, y and 1."""
    by_x_N1, by_y_N1, shift_N1 = weights_N3.split(1, 1)
    return by_x_N1 * centred(width) + shift_N1, by_y_N1 * centred(height)


def check_fill(fill: str) -> Fill:
    """Raises ValueError for an unknown one."""
    check_one_of("fill", fill, get_args(Fill))
    return cast(Fill, fill)


def _matrices(entries: list[list[Tensor | float]], num: int) -> Tensor:
    """float64_N33 of numbers and columns."""
    matrices_N33 = torch.zeros(num, 3, 3, dtype=torch.float64)
    for i, line in enumerate(entries):
        for j, entry in enumerate(line):
            if isinstance(entry, Tensor) or entry != 0:
                matrices_N33[:, i, j] = entry
    return matrices_N33


class Warp(Operation):
    """A map of coordinates with a matrix for each sample, and what lies outside of the image: `fill`.

    Pipeline composes neighbours of equal `fill`: one interpolation for all of them.
    """

    fill: Fill

    def __init__(self, probability: float, fill: Fill) -> None:
        check_probability(probability)
        self.probability, self.fill = probability, check_fill(fill)

    @abstractmethod
    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        """float64_N33 for images of this size, the identity where the operation is not applied."""

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        height, width = images_NCHW.shape[2:]
        return resample(images_NCHW, self.matrix(rows, height, width), self.fill)


class Rotate(Warp):
    """Turns about the centre, by an angle uniform in -`degrees`..`degrees`, counter-clockwise where positive.

    Source: CUHK ELEG 5491, UVic PHYS 555, "Data augmentation" (rotation). Raises ValueError: `degrees` not in 0..180,
    `probability` not in 0..1, unknown `fill`.
    """

    def __init__(self, degrees: float = 15.0, probability: float = 1.0, fill: Fill = "black") -> None:
        super().__init__(probability, fill)
        self.degrees = check_number("degrees", degrees, 0, 180)

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        applied_N = draw_applied(num_samples, self.probability, generator)
        degrees_N = draw_uniform(num_samples, -self.degrees, self.degrees, generator)
        return {"degrees": torch.where(applied_N, degrees_N, 0)}

    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        angle_N = rows["degrees"] * (math.pi / 180)
        cos_N, sin_N = angle_N.cos(), angle_N.sin()
        return _matrices([[cos_N, -sin_N, 0], [sin_N, cos_N, 0], [0, 0, 1]], len(angle_N))


class _Translate(Warp):
    def __init__(self, fraction: float = 0.125, probability: float = 1.0, fill: Fill = "black") -> None:
        super().__init__(probability, fill)
        self.fraction = check_number("fraction", fraction, 0, 1)

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        applied_N = draw_applied(num_samples, self.probability, generator)
        fraction_N = draw_uniform(num_samples, -self.fraction, self.fraction, generator)
        return {"fraction": torch.where(applied_N, fraction_N, 0)}


class TranslateX(_Translate):
    """Moves to the right by a share of the width, uniform in -`fraction`..`fraction`, rounded to whole pixels.

    Source: CUHK ELEG 5491, "Data augmentation" (translation). Raises ValueError: `fraction` not in 0..1, `probability`
    not in 0..1, unknown `fill`.
    """

    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        shift_N = (rows["fraction"] * width).round()
        return _matrices([[1, 0, -shift_N], [0, 1, 0], [0, 0, 1]], len(shift_N))


class TranslateY(_Translate):
    """Moves down by a share of the height, uniform in -`fraction`..`fraction`, rounded to whole pixels.

    Source: CUHK ELEG 5491, "Data augmentation" (translation). Raises ValueError: `fraction` not in 0..1, `probability`
    not in 0..1, unknown `fill`.
    """

    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        shift_N = (rows["fraction"] * height).round()
        return _matrices([[1, 0, 0], [0, 1, -shift_N], [0, 0, 1]], len(shift_N))


class _Factor(Warp):
    def __init__(
        self, factor: tuple[float, float] = (0.8, 1.25), probability: float = 1.0, fill: Fill = "black"
    ) -> None:
        super().__init__(probability, fill)
        self.factor = check_range("factor", factor, 0, above=True)

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        applied_N = draw_applied(num_samples, self.probability, generator)
        low, high = self.factor
        factor_N = draw_uniform(num_samples, math.log(low), math.log(high), generator).exp()
        return {"factor": torch.where(applied_N, factor_N, 1)}


class Scale(_Factor):
    """Magnifies about the centre by a factor whose logarithm is uniform over that of `factor`.

    Source: CUHK ELEG 5491, "Data augmentation" (scaling). Raises ValueError: `factor` not above 0, `probability` not in
    0..1, unknown `fill`.
    """

    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        shrink_N = 1 / rows["factor"]
        return _matrices([[shrink_N, 0, 0], [0, shrink_N, 0], [0, 0, 1]], len(shrink_N))


class Stretch(_Factor):
    """Widens about the centre by a factor whose logarithm is uniform over that of `factor`; heights stay.

    Source: CUHK ELEG 5491, "Data augmentation" (stretching). Raises ValueError: `factor` not above 0, `probability` not
    in 0..1, unknown `fill`.
    """

    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        shrink_N = 1 / rows["factor"]
        return _matrices([[shrink_N, 0, 0], [0, 1, 0], [0, 0, 1]], len(shrink_N))


class Shear(Warp):
    """Slants the verticals, then the horizontals, by angles uniform in -`x_degrees`..`x_degrees` and `y_degrees`.

    x' = x - y tan(x_degrees), then y' = y - x' tan(y_degrees), about the centre; the signs are torchvision's.
    Source: CUHK ELEG 5491, UVic PHYS 555, "Data augmentation" (shear). Raises ValueError: an angle not in 0..89,
    `probability` not in 0..1, unknown `fill`.
    """

    def __init__(
        self, x_degrees: float = 10.0, y_degrees: float = 0.0, probability: float = 1.0, fill: Fill = "black"
    ) -> None:
        super().__init__(probability, fill)
        self.x_degrees = check_number("x_degrees", x_degrees, 0, 89)
        self.y_degrees = check_number("y_degrees", y_degrees, 0, 89)

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        applied_N = draw_applied(num_samples, self.probability, generator)
        x_N = draw_uniform(num_samples, -self.x_degrees, self.x_degrees, generator)
        y_N = draw_uniform(num_samples, -self.y_degrees, self.y_degrees, generator)
        return {"x_degrees": torch.where(applied_N, x_N, 0), "y_degrees": torch.where(applied_N, y_N, 0)}

    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        x_N, y_N = ((rows[name] * (math.pi / 180)).tan() for name in ("x_degrees", "y_degrees"))
        return _matrices([[1 + x_N * y_N, x_N, 0], [y_N, 1, 0], [0, 0, 1]], len(x_N))


class Perspective(Warp):
    """Moves each corner inwards, by whole pixels uniform in 0..`distortion` times half the side, each coordinate
    by itself; the image is stretched between the moved corners.

    As torchvision's RandomPerspective, whose corners (0, 0) and (width - 1, height - 1) are taken in coordinates
    in which pixel centres are at halves. Where three corners come to lie on a line (above a distortion of 0.6) the
    image stays as it is.

    Source: UVic PHYS 555, "Data augmentation" (perspective transform). Raises ValueError: `distortion` not in 0..1,
    `probability` not in 0..1, unknown `fill`.
    """

    def __init__(self, distortion: float = 0.5, probability: float = 1.0, fill: Fill = "black") -> None:
        super().__init__(probability, fill)
        self.distortion = check_number("distortion", distortion, 0, 1)

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        applied_N = draw_applied(num_samples, self.probability, generator)
        share_N42 = torch.rand(num_samples, 4, 2, generator=generator, dtype=torch.float64)
        return {"applied": applied_N, "inwards": share_N42}

    def corners(self, rows: Rows, height: int, width: int) -> Tensor:
        """float64_N42: where (x, y) the corners top left, top right, bottom right, bottom left come to lie."""
        limit_2 = torch.tensor([int(self.distortion * (size // 2)) for size in (width, height)])
        inwards_N42 = (rows["inwards"] * (limit_2 + 1)).floor()
        far_42 = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
        return far_42 * torch.tensor([width - 1, height - 1]) + (1 - 2 * far_42) * inwards_N42

    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        corners_N42 = self.corners(rows, height, width)
        # columns scaled by the sides: everything stays a whole number, and an unmoved frame becomes the identity
        sides_3 = torch.tensor([height - 1, width - 1, (height - 1) * (width - 1)])
        matrices_N33 = _about_centre(_adjugate(_from_unit_square(corners_N42) * sides_3), height, width)
        matrices_N33 = matrices_N33 / matrices_N33[:, 2:].abs().amax(2, keepdim=True)
        # three corners may come to lie on a line at a distortion near 1: no map leads back from there
        edges_N42 = corners_N42.roll(-1, 1) - corners_N42
        turns_N4 = _cross(edges_N42, edges_N42.roll(-1, 1)).squeeze(-1)
        usable_N = rows["applied"] & (turns_N4 != 0).all(1)
        return torch.where(usable_N.view(-1, 1, 1), matrices_N33, torch.eye(3, dtype=torch.float64))


def _about_centre(matrices_N33: Tensor, height: int, width: int) -> Tensor:
    """The same maps of points that are given from the centre instead of the top left."""
    x_N3, y_N3, shift_N3 = matrices_N33.unbind(2)
    first_N3, second_N3, third_N3 = torch.stack(
        (x_N3, y_N3, shift_N3 + x_N3 * (width / 2) + y_N3 * (height / 2)), 2
    ).unbind(1)
    return torch.stack((first_N3 - third_N3 * (width / 2), second_N3 - third_N3 * (height / 2), third_N3), 1)


def _from_unit_square(corners_N42: Tensor) -> Tensor:
    """Maps (0, 0), (1, 0), (1, 1), (0, 1) to the corners, up to a factor (Heckbert 1989, "Fundamentals of texture
    mapping and image warping", 2.2.3, multiplied by its denominator)."""
    first_N2, second_N2, third_N2, fourth_N2 = corners_N42.unbind(1)
    right_N2, left_N2 = second_N2 - third_N2, fourth_N2 - third_N2
    sum_N2 = first_N2 - second_N2 + third_N2 - fourth_N2
    denominator_N1 = _cross(right_N2, left_N2)
    g_N1, h_N1 = _cross(sum_N2, left_N2), _cross(right_N2, sum_N2)
    x_axis_N2 = (second_N2 - first_N2) * denominator_N1 + g_N1 * second_N2
    y_axis_N2 = (fourth_N2 - first_N2) * denominator_N1 + h_N1 * fourth_N2
    points_N32 = torch.stack((x_axis_N2, y_axis_N2, first_N2 * denominator_N1), 1)
    depths_N31 = torch.stack((g_N1, h_N1, denominator_N1), 1)
    return torch.cat((points_N32, depths_N31), 2).transpose(1, 2)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Of vectors in the plane (..., 2); (..., 1)."""
    return a[..., :1] * b[..., 1:] - a[..., 1:] * b[..., :1]


def _adjugate(matrices_N33: Tensor) -> Tensor:
    """The inverse times the determinant."""
    a, b, c = matrices_N33.unbind(2)
    return torch.stack((torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)), 1)
