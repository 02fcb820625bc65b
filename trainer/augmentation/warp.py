"""Operations that map coordinates by a matrix, and their shared bilinear resampling.

A matrix maps an output pixel's position to the input position that it samples. Both are in pixels relative to the
image centre, x to the right and y down, in homogeneous coordinates, so that successive maps are a product of matrices.
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
    """Resample each image through its matrix (float64, on the CPU), bilinearly, rounded to integers, in place.

    Positions outside the image are `black` (0; border pixels are blended with it, as in torchvision with fill=None),
    the nearest pixel of the `edge`, or the `mirror` image. The identity leaves an image bit-identical.
    """
    changed_N = changed(matrices_N33)
    if most(changed_N):
        # the identity leaves integer images unchanged and costs less than copying the selected images would
        return _resample(images_NCHW, matrices_N33, fill)
    return where(images_NCHW, changed_N, lambda chosen, at_K: _resample(chosen, matrices_N33[at_K], fill))


def changed(matrices_N33: Tensor) -> Tensor:
    """bool_N: whether a matrix differs from the identity."""
    return (matrices_N33 != torch.eye(3, dtype=torch.float64)).flatten(1).any(1)


def _resample(images_NCHW: Tensor, matrices_N33: Tensor, fill: Fill) -> Tensor:
    change = resampling(images_NCHW, matrices_N33, fill)
    for chunk in chunks(images_NCHW):
        change(images_NCHW[chunk], chunk)
    return images_NCHW


def resampling(images_NCHW: Tensor, matrices_N33: Tensor, fill: Fill) -> Change:
    """Return a change that resamples a chunk of images in place."""
    height, width = images_NCHW.shape[2:]
    device = images_NCHW.device
    x_N3, y_N3, depth_N3 = matrices_N33.unbind(1)
    # a pixel's position is the sum of a term of its column and one of its row: two short vectors per image instead of
    # a product per pixel; complex numbers add x and y at once
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
            # dividing by 1 leaves affine maps unchanged; points on the horizon are moved far outside
            grids_NHW2 /= (depth_NW[chunk].unsqueeze(1) + depth_NH[chunk].unsqueeze(2)).unsqueeze(3)
            grids_NHW2.nan_to_num_(_FAR, _FAR, -_FAR)
        return sample(some_NCHW, grids_NHW2, fill)

    return change


def sample(images_NCHW: Tensor, grids_NHW2: Tensor, fill: Fill) -> Tensor:
    """Resample images in place at the points (x, y) of a grid, rounded.

    -1 and 1 are the outer edges of the outermost pixels.
    """
    mode = _PADDING_MODES[fill]
    return torch.round(F.grid_sample(images_NCHW, grids_NHW2, "bilinear", mode, align_corners=False), out=images_NCHW)


def centred(size: int) -> Tensor:
    """float64: positions of `size` pixels relative to their centre."""
    return torch.arange(size, dtype=torch.float64) - (size - 1) / 2


def _sides(weights_N3: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """NW and NH: the contributions of a pixel's column and row, for weights of x, y and 1."""
    by_x_N1, by_y_N1, shift_N1 = weights_N3.split(1, 1)
    return by_x_N1 * centred(width) + shift_N1, by_y_N1 * centred(height)


def check_fill(fill: str) -> Fill:
    """Raises ValueError for an unknown fill."""
    check_one_of("fill", fill, get_args(Fill))
    return cast(Fill, fill)


def _matrices(entries: list[list[Tensor | float]], num: int) -> Tensor:
    """float64_N33 from a 3x3 list of numbers and float64_N columns."""
    matrices_N33 = torch.zeros(num, 3, 3, dtype=torch.float64)
    for i, line in enumerate(entries):
        for j, entry in enumerate(line):
            if isinstance(entry, Tensor) or entry != 0:
                matrices_N33[:, i, j] = entry
    return matrices_N33


class Warp(Operation):
    """A coordinate map with one matrix per sample; `fill` says how to fill pixels from outside the image.

    Pipeline composes neighbouring warps with the same `fill` into one interpolation.
    """

    fill: Fill

    def __init__(self, probability: float, fill: Fill) -> None:
        check_probability(probability)
        self.probability, self.fill = probability, check_fill(fill)

    @abstractmethod
    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        """float64_N33 for images of this size, the identity if the operation is not applied."""

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        height, width = images_NCHW.shape[2:]
        return resample(images_NCHW, self.matrix(rows, height, width), self.fill)


class Rotate(Warp):
    """Rotates about the centre by an angle uniform in -`degrees`..`degrees`; positive is counter-clockwise.

    Source: CUHK ELEG 5491, UVic PHYS 555, "Data augmentation" (rotation). Raises ValueError: `degrees` not in 0..180,
    `probability` not in 0..1, unknown `fill`.
    """

    def __init__(self, degrees: float = 15.0, probability: float = 1.0, fill: Fill = "black") -> None:
        super().__init__(probability, fill)
        self.degrees = check_number("degrees", degrees, 0, 180)

    def notice(self, side: int, are_characters: bool) -> tuple[str, str] | None:
        if self.degrees <= 90 or not are_characters:
            return None
        return f"degrees={self.degrees:g} turns a 6 into a 9", "degrees=15"

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
    """Translates to the right by a fraction of the width, uniform in -`fraction`..`fraction`, rounded to pixels.

    Source: CUHK ELEG 5491, "Data augmentation" (translation). Raises ValueError: `fraction` not in 0..1, `probability`
    not in 0..1, unknown `fill`.
    """

    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        shift_N = (rows["fraction"] * width).round()
        return _matrices([[1, 0, -shift_N], [0, 1, 0], [0, 0, 1]], len(shift_N))


class TranslateY(_Translate):
    """Translates down by a fraction of the height, uniform in -`fraction`..`fraction`, rounded to pixels.

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
    """Scales about the centre by a factor that is log-uniform in `factor`; above 1 magnifies.

    Source: CUHK ELEG 5491, "Data augmentation" (scaling). Raises ValueError: `factor` not above 0, `probability` not
    in 0..1, unknown `fill`.
    """

    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        shrink_N = 1 / rows["factor"]
        return _matrices([[shrink_N, 0, 0], [0, shrink_N, 0], [0, 0, 1]], len(shrink_N))


class Stretch(_Factor):
    """Scales the width about the centre by a factor that is log-uniform in `factor`; the height is unchanged.

    Source: CUHK ELEG 5491, "Data augmentation" (stretching). Raises ValueError: `factor` not above 0, `probability`
    not in 0..1, unknown `fill`.
    """

    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        shrink_N = 1 / rows["factor"]
        return _matrices([[shrink_N, 0, 0], [0, 1, 0], [0, 0, 1]], len(shrink_N))


class Shear(Warp):
    """Shears in x, then in y, by angles uniform in -`x_degrees`..`x_degrees` and -`y_degrees`..`y_degrees`.

    x' = x - y tan(x_degrees), then y' = y - x' tan(y_degrees), about the centre; the signs are torchvision's. Source:
    CUHK ELEG 5491, UVic PHYS 555, "Data augmentation" (shear). Raises ValueError: an angle not in 0..89, `probability`
    not in 0..1, unknown `fill`.
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
    """Moves each corner inwards and maps the image onto the resulting quadrilateral.

    Each coordinate of each corner moves by an integer number of pixels, uniform in 0..`distortion` times half the
    side. As torchvision's RandomPerspective, which takes the corners (0, 0) and (width - 1, height - 1) in coordinates
    whose pixel centres are at halves. If three corners become collinear (possible above a distortion of 0.6), the
    image is unchanged.

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
        """float64_N42: new positions (x, y) of the top left, top right, bottom right and bottom left corners."""
        limit_2 = torch.tensor([int(self.distortion * (size // 2)) for size in (width, height)])
        inwards_N42 = (rows["inwards"] * (limit_2 + 1)).floor()
        far_42 = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
        return far_42 * torch.tensor([width - 1, height - 1]) + (1 - 2 * far_42) * inwards_N42

    def matrix(self, rows: Rows, height: int, width: int) -> Tensor:
        corners_N42 = self.corners(rows, height, width)
        # columns are scaled by the sides: all numbers stay integers, and unmoved corners give the identity
        sides_3 = torch.tensor([height - 1, width - 1, (height - 1) * (width - 1)])
        matrices_N33 = _about_centre(_adjugate(_from_unit_square(corners_N42) * sides_3), height, width)
        matrices_N33 = matrices_N33 / matrices_N33[:, 2:].abs().amax(2, keepdim=True)
        # collinear corners, possible at a large distortion, have no inverse map
        edges_N42 = corners_N42.roll(-1, 1) - corners_N42
        turns_N4 = _cross(edges_N42, edges_N42.roll(-1, 1)).squeeze(-1)
        usable_N = rows["applied"] & (turns_N4 != 0).all(1)
        return torch.where(usable_N.view(-1, 1, 1), matrices_N33, torch.eye(3, dtype=torch.float64))


def _about_centre(matrices_N33: Tensor, height: int, width: int) -> Tensor:
    """The same maps for points given relative to the centre instead of the top left corner."""
    x_N3, y_N3, shift_N3 = matrices_N33.unbind(2)
    first_N3, second_N3, third_N3 = torch.stack(
        (x_N3, y_N3, shift_N3 + x_N3 * (width / 2) + y_N3 * (height / 2)), 2
    ).unbind(1)
    return torch.stack((first_N3 - third_N3 * (width / 2), second_N3 - third_N3 * (height / 2), third_N3), 1)


def _from_unit_square(corners_N42: Tensor) -> Tensor:
    """Map (0, 0), (1, 0), (1, 1), (0, 1) to the corners, up to a factor.

    Heckbert 1989, "Fundamentals of texture mapping and image warping", 2.2.3, multiplied by the denominator.
    """
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
    """Cross product of vectors in the plane, (..., 2) to (..., 1)."""
    return a[..., :1] * b[..., 1:] - a[..., 1:] * b[..., :1]


def _adjugate(matrices_N33: Tensor) -> Tensor:
    """The inverse times the determinant."""
    a, b, c = matrices_N33.unbind(2)
    return torch.stack((torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)), 1)
