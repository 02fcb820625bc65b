"""Colour operations, with the arithmetic of torchvision's v2 transforms on uint8 images."""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.augmentation.colour_arithmetic import (
    blend_weights,
    change_brightness,
    change_contrast,
    change_gamma,
    change_hue,
    change_saturation,
    equalize,
    invert,
    posterize,
    sharpen,
    shift_levels,
    solarize,
    stretch_contrast,
)
from trainer.augmentation.operation import (
    Operation,
    Rows,
    check_probability,
    draw_applied,
    draw_uniform,
    most,
    where,
)
from trainer.base.checks import check_number, check_range, check_whole_range
from trainer.base.chunks import Change, chunks

# Principal components of ImageNet's RGB values: standard deviations in levels (0.2175, 0.0188, 0.0045 of 255) and
# directions, one per column. The paper gives no values; these are fb.resnet.torch's (S. Gross and M. Wilber, 2016).
_COMPONENT_SIZES = (55.46, 4.794, 1.148)
_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


class _Graded(Operation):
    """An operation with one parameter per image, uniform in a range; the value `neutral` leaves an image unchanged."""

    def __init__(
        self,
        name: str,
        bounds: tuple[float, float],
        neutral: float,
        change: Callable[..., Tensor],
        probability: float,
    ) -> None:
        check_probability(probability)
        self.probability = probability
        self._name, self._bounds, self._neutral, self._change = name, bounds, neutral, change

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        applied_N = draw_applied(num_samples, self.probability, generator)
        values_N = draw_uniform(num_samples, *self._bounds, generator)
        return {self._name: torch.where(applied_N, values_N, self._neutral)}

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        values_N = rows[self._name]
        chosen_N = values_N != self._neutral
        return where(
            images_NCHW.contiguous(), chosen_N, lambda images, k: _by_chunks(images, self._change, values_N[k])
        )


class _Blend(_Graded):
    """Blends each image with another image computed from it.

    If more than half of the images are selected, the whole batch is blended, which is cheaper than selecting; a factor
    of 1 leaves the others bit-identical.
    """

    def __init__(
        self, factor: tuple[float, float], change: Callable[[Tensor, Tensor, Tensor], Tensor], probability: float
    ) -> None:
        self.factor = check_range("factor", factor, 0)
        super().__init__("factor", self.factor, 1.0, change, probability)

    def prepare(self, images_NCHW: Tensor, rows: Rows) -> Change | None:
        if not most(rows["factor"] != 1):
            return None
        own, other = blend_weights(rows["factor"], images_NCHW)
        return lambda images, chunk: self._change(images, own[chunk], other[chunk])

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        factors_N = rows["factor"]
        return where(
            images_NCHW.contiguous(),
            _all_if_most(factors_N != 1),
            lambda images, k: _by_chunks(images, self._change, *blend_weights(factors_N[k], images)),
        )


def _by_chunks(images_NCHW: Tensor, change: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """Apply `change` in place to one cache-sized chunk of images after the other."""
    for chunk in chunks(images_NCHW):
        change(images_NCHW[chunk], *(column_N[chunk] for column_N in columns))
    return images_NCHW


def _all_if_most(chosen_N: Tensor) -> Tensor:
    return torch.ones_like(chosen_N) if most(chosen_N) else chosen_N


class _Ungraded(Operation):
    """An operation without parameters."""

    def __init__(self, change: Callable[[Tensor], Tensor], probability: float) -> None:
        check_probability(probability)
        self.probability = probability
        self._change = change

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        return {"applied": draw_applied(num_samples, self.probability, generator)}

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        return where(images_NCHW.contiguous(), rows["applied"], lambda images, _: _by_chunks(images, self._change))


class Brightness(_Blend):
    """Multiplies an image by `factor`, uniform in [low, high): 0 gives black, 1 the original.

    floor(min(factor x, 255)). Source: UVic PHYS 555, "Color based" (brighten). Raises ValueError: `factor` below 0 or
    in the wrong order, `probability` not in 0..1.
    """

    def __init__(self, factor: tuple[float, float] = (0.8, 1.2), probability: float = 1.0) -> None:
        super().__init__(factor, change_brightness, probability)


class Contrast(_Blend):
    """Blends an image with its mean grey level by `factor`, uniform in [low, high): 0 gives the mean, 1 the original.

    floor(factor x + (1 - factor) mean), clamped to 0..255; grey = floor(0.2989 R + 0.587 G + 0.114 B). Source: CUHK
    ELEG 5491, "Data augmentation" (randomly jitter contrast). Raises ValueError: `factor` below 0 or in the wrong
    order, `probability` not in 0..1.
    """

    def __init__(self, factor: tuple[float, float] = (0.8, 1.2), probability: float = 1.0) -> None:
        super().__init__(factor, change_contrast, probability)


class Saturation(_Blend):
    """Blends each pixel with its own grey level by `factor`, uniform in [low, high): 0 gives a grey image, 1 the
    original.

    floor(factor x + (1 - factor) grey), clamped to 0..255. Single-channel images are unchanged. Source: CUHK ELEG
    5491, "Data augmentation" (color jitter). Raises ValueError: `factor` below 0 or in the wrong order, `probability`
    not in 0..1.
    """

    def __init__(self, factor: tuple[float, float] = (0.8, 1.2), probability: float = 1.0) -> None:
        super().__init__(factor, change_saturation, probability)


class Hue(_Graded):
    """Rotates the HSV hue of every pixel by `shift`, a fraction of the colour circle, uniform in [low, high).

    A shift of 0.5 gives the complementary colour. Single-channel images are unchanged.

    Source: CUHK ELEG 5491, "Data augmentation" (color jitter). Raises ValueError: `shift` not within -0.5..0.5 or in
    the wrong order, `probability` not in 0..1.
    """

    def __init__(self, shift: tuple[float, float] = (-0.05, 0.05), probability: float = 1.0) -> None:
        self.shift = check_range("shift", shift, -0.5, 0.5)
        super().__init__("shift", self.shift, 0.0, change_hue, probability)


class Gamma(_Graded):
    """Raises pixels, scaled to 0..1, to the power `gamma`, uniform in [low, high): above 1 darkens, below 1 brightens.

    floor(255.999 (x / 255)^gamma). Source: UVic PHYS 555, "Color based" (gamma contrast). Raises ValueError: `gamma`
    below 0 or in the wrong order, `probability` not in 0..1.
    """

    def __init__(self, gamma: tuple[float, float] = (0.8, 1.25), probability: float = 0.5) -> None:
        self.gamma = check_range("gamma", gamma, 0)
        super().__init__("gamma", self.gamma, 1.0, change_gamma, probability)


class Invert(_Ungraded):
    """Inverts an image, 255 - x, with probability `probability`.

    Source: UVic PHYS 555, "Color based" (invert). Raises ValueError: `probability` not in 0..1.
    """

    def __init__(self, probability: float = 0.05) -> None:
        super().__init__(invert, probability)


class Sharpen(_Graded):
    """Blends an image with its 3x3 blur by `factor`, uniform in [low, high): 0 gives the blur, 1 the original, 2
    sharpens.

    floor(factor x + (1 - factor) round(blur)), clamped to 0..255; the blur weights the pixel itself by 5/13 and each
    of its eight neighbours by 1/13. Border pixels are unchanged. Source: UVic PHYS 555, "Color based" (sharpen).
    Raises ValueError: `factor` below 0 or in the wrong order, `probability` not in 0..1.
    """

    def __init__(self, factor: tuple[float, float] = (1.0, 2.0), probability: float = 0.2) -> None:
        self.factor = check_range("factor", factor, 0)
        super().__init__("factor", self.factor, 1.0, sharpen, probability)


class Solarize(_Graded):
    """Inverts all pixels at or above `threshold`, a level in 0..255, uniform in [low, high).

    Source: Cubuk et al., "AutoAugment" (2019). Raises ValueError: `threshold` not within 0..255 or in the wrong order,
    `probability` not in 0..1.
    """

    def __init__(self, threshold: tuple[float, float] = (128, 255), probability: float = 0.05) -> None:
        self.threshold = check_range("threshold", threshold, 0, 255)
        super().__init__("threshold", self.threshold, 256.0, solarize, probability)


class Posterize(_Graded):
    """Keeps the `bits` most significant bits of each pixel and clears the rest; an integer, uniform over low..high.

    Source: Cubuk et al., "AutoAugment" (2019). Raises ValueError: `bits` not whole numbers within 0..8 or in the wrong
    order, `probability` not in 0..1.
    """

    def __init__(self, bits: tuple[int, int] = (4, 7), probability: float = 0.05) -> None:
        low, high = check_whole_range("bits", bits, 0, 8)
        self.bits = (low, high)
        super().__init__("bits", (low, high + 1), 8.0, posterize, probability)

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        return {"bits": super().draw(num_samples, input_shape, generator)["bits"].floor_()}


class AutoContrast(_Ungraded):
    """Stretches each channel so that its darkest pixel becomes 0 and its brightest 255, with probability
    `probability`.

    Source: Cubuk et al., "AutoAugment" (2019). Raises ValueError: `probability` not in 0..1.
    """

    def __init__(self, probability: float = 0.1) -> None:
        super().__init__(stretch_contrast, probability)


class Equalize(_Ungraded):
    """Equalizes the histogram of each channel, with probability `probability`.

    Source: Cubuk et al., "AutoAugment" (2019); the algorithm is PIL's. Raises ValueError: `probability` not in 0..1.
    """

    def __init__(self, probability: float = 0.1) -> None:
        super().__init__(equalize, probability)


class ColourShift(Operation):
    """Adds to each channel an integer number of levels, uniform over low..high, and clamps to 0..255.

    The shift is drawn independently for each channel. Source: CS7150, figure 9.1 (colour shift). Raises ValueError:
    `levels` not whole numbers within -255..255 or in the wrong order, `probability` not in 0..1.
    """

    def __init__(self, levels: tuple[int, int] = (-10, 10), probability: float = 0.5) -> None:
        check_probability(probability)
        self.levels = check_whole_range("levels", levels, -255, 255)
        self.probability = probability

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        low, high = self.levels
        applied_N = draw_applied(num_samples, self.probability, generator)
        levels_NC = torch.randint(low, high + 1, (num_samples, input_shape[0]), generator=generator)
        return {"levels": levels_NC * applied_N.unsqueeze(1)}

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        levels_NC = rows["levels"]
        return where(images_NCHW, _all_if_most(levels_NC.any(1)), lambda images, k: shift_levels(images, levels_NC[k]))


class Lighting(Operation):
    """Shifts all pixels of an image along the principal components of ImageNet's RGB values.

    Adds round(sum of alpha_i s_i p_i) levels, clamped to 0..255, with components p_i, their standard deviations s_i
    and alpha_i ~ Normal(0, `std`^2). Single-channel images are unchanged.

    Source: CUHK ELEG 5491, "Data augmentation" (color offset along principal component directions); Krizhevsky et al.
    (2012). Raises ValueError: `std` below 0, `probability` not in 0..1.
    """

    def __init__(self, std: float = 0.1, probability: float = 1.0) -> None:
        check_probability(probability)
        self.std = check_number("std", std, 0)
        self.probability = probability

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        applied_N = draw_applied(num_samples, self.probability, generator)
        alpha_N3 = self.std * torch.randn(num_samples, 3, generator=generator, dtype=torch.float64)
        return {"alpha": alpha_N3 * applied_N.unsqueeze(1)}

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        if images_NCHW.shape[1] != 3:
            return images_NCHW
        sizes_3, components_33 = (torch.tensor(t, dtype=torch.float64) for t in (_COMPONENT_SIZES, _COMPONENTS))
        along_N13 = (rows["alpha"] * sizes_3).unsqueeze(1)
        levels_N3 = (along_N13 * components_33).sum(2).round_()
        return where(images_NCHW, _all_if_most(levels_N3.any(1)), lambda images, k: shift_levels(images, levels_N3[k]))
