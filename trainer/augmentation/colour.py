"""Operations on colours, with the arithmetic of torchvision's v2 transforms on uint8 images.

The functions work in place, on contiguous float32 images of whole numbers, and return them; parameters are on the
CPU, one an image.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.augmentation.operation import (
    Rows,
    check_probability,
    column,
    draw_applied,
    draw_uniform,
    most,
    where,
)
from trainer.augmentation.ranges import check_number, check_range
from trainer.parts import Change, parts

# principal components of ImageNet's RGB values: standard values in levels (0.2175, 0.0188, 0.0045 of 255) and, in
# columns, directions; the paper prints none, these are fb.resnet.torch's (S. Gross and M. Wilber, 2016)
_COMPONENT_SIZES = (55.46, 4.794, 1.148)
_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

_SCALE = 255 + 1 - 1e-3  # torchvision's way back from 0..1 to levels: floor(255.999 x)


def shares(factors_N: Tensor, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """float32 (N, 1, 1, 1), factor and 1 - factor: what a blend takes of an image and of another."""
    both_2N = torch.stack((factors_N, 1 - factors_N)).to(images_NCHW.device, torch.float32, non_blocking=True)
    own, other = both_2N.view(2, -1, 1, 1, 1)
    return own, other


def change_brightness(images_NCHW: Tensor, own: Tensor, _: Tensor) -> Tensor:
    """factor x."""
    return images_NCHW.mul_(own).clamp_(max=255).floor_()


def change_contrast(images_NCHW: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """factor x + (1 - factor) m, m the mean of the image's grey."""
    grey = _grey(images_NCHW).unsqueeze(1) if images_NCHW.shape[1] == 3 else images_NCHW.clone()
    # a sum of whole numbers is exact in float32 below 2^24, whatever the order
    exact = torch.float32 if grey[0].numel() * 255 < 2**24 else torch.float64
    mean = grey.mean((1, 2, 3), keepdim=True, dtype=exact)
    return _blend(images_NCHW, grey.copy_(mean), own, other)


def change_saturation(images_NCHW: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """factor x + (1 - factor) g, g the pixel's grey; what has not three channels stays as it is."""
    if images_NCHW.shape[1] != 3:
        return images_NCHW
    return _blend(images_NCHW, _grey(images_NCHW).unsqueeze(1), own, other)


def _blend(images_NCHW: Tensor, others: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Of both these shares, in the two calls that torchvision makes, so that it is rounded as there; `others` are as
    large as the images but for channels, since a number an image would take the slow way through addcmul."""
    return images_NCHW.mul_(own).addcmul_(others, other).clamp_(0, 255).floor_()


def _grey(images_N3HW: Tensor) -> Tensor:
    """float32 (N, H, W): luminance, rounded down."""
    red, green, blue = images_N3HW.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def change_hue(images_NCHW: Tensor, shifts_N: Tensor) -> Tensor:
    """Turns hues by a share of the circle; what has not three channels stays as it is.

    With the hue h as a share of the circle, a channel is max - (max - min) f(6 ((h + n / 6) mod 1)), n = 5, 3, 1 for
    red, green, blue, and f(k) = min(k, 4 - k) within 0..1: HSV and back without its cases.
    """
    if images_NCHW.shape[1] != 3:
        return images_NCHW
    red, green, blue = images_NCHW.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    buffer = torch.empty_like(high)
    # 6 chroma h of the channel that is the highest: picked by weights of 0 and 1, a third of the time of a mask
    hue = (red - green).add_(chroma, alpha=4)
    hue.lerp_((blue - red).add_(chroma, alpha=2), torch.eq(green, high, out=buffer))
    hue.lerp_(green - blue, torch.eq(red, high, out=buffer))
    hue.div_(torch.clamp(chroma, min=1, out=buffer).mul_(6))  # a grey pixel has chroma 0, and any hue
    hue.add_(column(1 + shifts_N, images_NCHW).squeeze(1))  # above 0
    for channel, n in ((red, 5), (green, 3), (blue, 1)):
        turned = torch.add(hue, n / 6, out=buffer).frac_()
        share = turned.sub_(1 / 3).abs_().mul_(-6).add_(2).clamp_(0, 1)
        torch.sub(high, share.mul_(chroma), out=channel)
    return images_NCHW.mul_(_SCALE / 255).floor_()


def change_gamma(images_NCHW: Tensor, gammas_N: Tensor) -> Tensor:
    """255 (x / 255)^gamma."""
    levels_256 = torch.arange(256, dtype=torch.float64) / 255
    tables = levels_256.pow(gammas_N.unsqueeze(1)).mul_(_SCALE).floor_()
    return _look_up(images_NCHW, _places(images_NCHW.flatten(1)), tables.to(images_NCHW.device, non_blocking=True))


def invert(images_NCHW: Tensor) -> Tensor:
    """255 - x."""
    return images_NCHW.neg_().add_(255)


def sharpen(images_NCHW: Tensor, factors_N: Tensor) -> Tensor:
    """factor x + (1 - factor) b, b the mean of the 3 x 3 pixels around x, x itself counted five times; on the
    border x. Images of less than 3 x 3 pixels stay as they are."""
    H, W = images_NCHW.shape[2:]
    if H < 3 or W < 3:
        return images_NCHW
    # Sums over neighbours along the flat images, across their borders, which are blackened after that: long runs
    # instead of short lines. Sums are exact, and none of them divided by 13 is half a level.
    flat = images_NCHW.view(-1)
    beside = flat[:-2] + flat[1:-1]
    beside.add_(flat[2:])
    change = torch.empty_like(images_NCHW)
    inner, centre = change.view(-1)[W + 1 : -W - 1], flat[W + 1 : -W - 1]
    torch.add(beside[: -2 * W], beside[W:-W], out=inner)
    inner.add_(beside[2 * W :]).add_(centre, alpha=4).mul_(1 / 13).round_().sub_(centre)
    for border in (change[..., 0, :], change[..., -1, :], change[..., 0], change[..., -1]):
        border.zero_()
    return images_NCHW.addcmul_(change, column(1 - factors_N, images_NCHW)).clamp_(0, 255).floor_()


def solarize(images_NCHW: Tensor, thresholds_N: Tensor) -> Tensor:
    """255 - x where x >= threshold."""
    bright = torch.ge(images_NCHW, column(thresholds_N, images_NCHW), out=torch.empty_like(images_NCHW))
    return images_NCHW.sub_(bright, alpha=255).abs_()


def posterize(images_NCHW: Tensor, bits_N: Tensor) -> Tensor:
    """Keeps this many of a pixel's eight bits, from the top."""
    lost_N = 8 - bits_N.to(torch.int64)
    step_N = torch.bitwise_left_shift(torch.ones_like(lost_N), lost_N)
    images_NCHW.mul_(column(1 / step_N, images_NCHW)).floor_()
    return images_NCHW.mul_(column(step_N, images_NCHW))


def stretch_contrast(images_NCHW: Tensor) -> Tensor:
    """255 (x - low) / (high - low), low and high of each channel; a constant channel stays as it is."""
    low, high = images_NCHW.amin((2, 3), keepdim=True), images_NCHW.amax((2, 3), keepdim=True)
    constant = low == high
    scale = high.sub_(low).mul_(1 / 255).masked_fill_(constant, 1)
    return images_NCHW.sub_(low.masked_fill_(constant, 0)).div_(scale).floor_()


def equalize(images_NCHW: Tensor) -> Tensor:
    """Makes levels about equally frequent, in each channel, by the scheme of PIL: with c the number of pixels below
    the level x and s a 255th, rounded down, of those below the highest level of all, floor((c + floor(s / 2)) / s),
    255 at most; where s is 0 the channel stays as it is."""
    planes = images_NCHW.flatten(0, 1).flatten(1)
    places = _places(planes)
    counts = _count(places, len(planes) * 256).view(-1, 256)
    below = counts.cumsum(1).sub_(counts).to(torch.float32)  # exact, as the rest, for less than 2^24 pixels
    step = below.gather(1, planes.amax(1, keepdim=True).to(torch.int64)).div_(255).floor_()
    tables = below.add_((step * 0.5).floor_()).div_(step.clamp(min=1)).floor_().clamp_(max=255)
    tables = torch.where(step > 0, tables, torch.arange(256.0, device=planes.device))
    return _look_up(images_NCHW, places, tables)


def _places(pixels_PM: Tensor) -> Tensor:
    """int32 (P * M,): the number of each pixel's entry when every row has a table of 256 of its own."""
    first_P = torch.arange(len(pixels_PM), dtype=torch.int32, device=pixels_PM.device).mul_(256)
    return pixels_PM.to(torch.int32).add_(first_P.unsqueeze(1)).view(-1)


def _count(places: Tensor, num_places: int) -> Tensor:
    """int64 (num_places,): how often each place occurs."""
    if places.device.type == "cpu":
        return torch.bincount(places, minlength=num_places)
    counts = torch.zeros(num_places, dtype=torch.int64, device=places.device)  # bincount would wait for the device
    return counts.scatter_add_(0, places.to(torch.int64), counts.new_ones(1).expand_as(places))


def _look_up(images_NCHW: Tensor, places: Tensor, tables_P256: Tensor) -> Tensor:
    torch.index_select(tables_P256.to(images_NCHW.dtype).view(-1), 0, places, out=images_NCHW.view(-1))
    return images_NCHW


def shift_levels(images_NCHW: Tensor, shifts_NC: Tensor) -> Tensor:
    """x plus a whole number of levels for each channel, within 0..255."""
    shifts = shifts_NC.to(images_NCHW.device, images_NCHW.dtype, non_blocking=True)
    return images_NCHW.add_(shifts.unsqueeze(2).unsqueeze(3)).clamp_(0, 255)


class _Graded:
    """An operation with one number an image, uniform in a range; `neutral` stands for leaving it as it is."""

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
        return where(images_NCHW.contiguous(), chosen_N, lambda images, k: _by_parts(images, self._change, values_N[k]))


class _Blend(_Graded):
    """Blends an image with another one made of it, so cheaply that all are changed when more than half of them are
    chosen: a factor of 1 leaves every bit of the others as it is."""

    def __init__(
        self, factor: tuple[float, float], change: Callable[[Tensor, Tensor, Tensor], Tensor], probability: float
    ) -> None:
        self.factor = check_range("factor", factor, 0)
        super().__init__("factor", self.factor, 1.0, change, probability)

    def prepare(self, images_NCHW: Tensor, rows: Rows) -> Change | None:
        if not most(rows["factor"] != 1):
            return None
        own, other = shares(rows["factor"], images_NCHW)
        return lambda images, part: self._change(images, own[part], other[part])

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        factors_N = rows["factor"]
        return where(
            images_NCHW.contiguous(),
            _all_if_most(factors_N != 1),
            lambda images, k: _by_parts(images, self._change, *shares(factors_N[k], images)),
        )


def _by_parts(images_NCHW: Tensor, change: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """A change in place, of some images at a time: they stay in the cache from its first pass over them to its last."""
    for part in parts(images_NCHW):
        change(images_NCHW[part], *(column_N[part] for column_N in columns))
    return images_NCHW


def _all_if_most(chosen_N: Tensor) -> Tensor:
    return torch.ones_like(chosen_N) if most(chosen_N) else chosen_N


class _Ungraded:
    """An operation without numbers."""

    def __init__(self, change: Callable[[Tensor], Tensor], probability: float) -> None:
        check_probability(probability)
        self.probability = probability
        self._change = change

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        return {"applied": draw_applied(num_samples, self.probability, generator)}

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        return where(images_NCHW.contiguous(), rows["applied"], lambda images, _: _by_parts(images, self._change))


class Brightness(_Blend):
    """Multiplies an image by `factor`, uniform in [low, high): 0 is black, 1 the image itself.

    floor(min(factor x, 255)). Source: UVic PHYS 555, "Color based" (brighten). Raises ValueError: `factor` below 0 or
    in the wrong order, `probability` not in 0..1.
    """

    def __init__(self, factor: tuple[float, float] = (0.8, 1.2), probability: float = 1.0) -> None:
        super().__init__(factor, change_brightness, probability)


class Contrast(_Blend):
    """Moves an image away from the mean of its grey by `factor`, uniform in [low, high): 0 is that grey, 1 the
    image itself.

    floor(factor x + (1 - factor) mean), within 0..255; grey = floor(0.2989 R + 0.587 G + 0.114 B). Source: CUHK ELEG
    5491, "Data augmentation" (randomly jitter contrast). Raises ValueError: `factor` below 0 or in the wrong order,
    `probability` not in 0..1.
    """

    def __init__(self, factor: tuple[float, float] = (0.8, 1.2), probability: float = 1.0) -> None:
        super().__init__(factor, change_contrast, probability)


class Saturation(_Blend):
    """Moves each pixel away from its own grey by `factor`, uniform in [low, high): 0 is a grey image, 1 the image
    itself. Images of one channel stay as they are.

    floor(factor x + (1 - factor) grey), within 0..255. Source: CUHK ELEG 5491, "Data augmentation" (color jitter).
    Raises ValueError: `factor` below 0 or in the wrong order, `probability` not in 0..1.
    """

    def __init__(self, factor: tuple[float, float] = (0.8, 1.2), probability: float = 1.0) -> None:
        super().__init__(factor, change_saturation, probability)


class Hue(_Graded):
    """Turns the hue (of HSV) of every pixel by `shift`, a share of the circle, uniform in [low, high): 0.5 is the
    opposite colour. Images of one channel stay as they are.

    Source: CUHK ELEG 5491, "Data augmentation" (color jitter). Raises ValueError: `shift` not within -0.5..0.5 or in
    the wrong order, `probability` not in 0..1.
    """

    def __init__(self, shift: tuple[float, float] = (-0.05, 0.05), probability: float = 1.0) -> None:
        self.shift = check_range("shift", shift, -0.5, 0.5)
        super().__init__("shift", self.shift, 0.0, change_hue, probability)


class Gamma(_Graded):
    """Raises pixels of 0..1 to the power of `gamma`, uniform in [low, high): above 1 is darker, below 1 brighter.

    floor(255.999 (x / 255)^gamma). Source: UVic PHYS 555, "Color based" (gamma contrast). Raises ValueError: `gamma`
    below 0 or in the wrong order, `probability` not in 0..1.
    """

    def __init__(self, gamma: tuple[float, float] = (0.8, 1.25), probability: float = 0.5) -> None:
        self.gamma = check_range("gamma", gamma, 0)
        super().__init__("gamma", self.gamma, 1.0, change_gamma, probability)


class Invert(_Ungraded):
    """255 - x, with this probability.

    Source: UVic PHYS 555, "Color based" (invert). Raises ValueError: `probability` not in 0..1.
    """

    def __init__(self, probability: float = 0.05) -> None:
        super().__init__(invert, probability)


class Sharpen(_Graded):
    """Moves an image away from its 3 x 3 blur by `factor`, uniform in [low, high): 0 is the blur, 1 the image itself,
    2 sharp. The outermost pixels stay as they are.

    floor(factor x + (1 - factor) round(blur)), within 0..255; the blur weighs the pixel itself 5/13 and the eight
    around it 1/13. Source: UVic PHYS 555, "Color based" (sharpen). Raises ValueError: `factor` below 0 or in the wrong
    order, `probability` not in 0..1.
    """

    def __init__(self, factor: tuple[float, float] = (1.0, 2.0), probability: float = 0.2) -> None:
        self.factor = check_range("factor", factor, 0)
        super().__init__("factor", self.factor, 1.0, sharpen, probability)


class Solarize(_Graded):
    """Inverts the pixels at or above `threshold`, in levels 0..255, uniform in [low, high).

    Source: Cubuk et al., "AutoAugment" (2019). Raises ValueError: `threshold` not within 0..255 or in the wrong
    order, `probability` not in 0..1.
    """

    def __init__(self, threshold: tuple[float, float] = (128, 255), probability: float = 0.05) -> None:
        self.threshold = check_range("threshold", threshold, 0, 255)
        super().__init__("threshold", self.threshold, 256.0, solarize, probability)


class Posterize(_Graded):
    """Keeps the upper `bits` of a pixel's eight and clears the rest; a whole number, uniform over low..high.

    Source: Cubuk et al., "AutoAugment" (2019). Raises ValueError: `bits` not whole numbers within 0..8 or in the
    wrong order, `probability` not in 0..1.
    """

    def __init__(self, bits: tuple[int, int] = (4, 7), probability: float = 0.05) -> None:
        low, high = _check_whole("bits", bits, 0, 8)
        self.bits = (low, high)
        super().__init__("bits", (low, high + 1), 8.0, posterize, probability)

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        return {"bits": super().draw(num_samples, input_shape, generator)["bits"].floor_()}


class AutoContrast(_Ungraded):
    """Stretches each channel until its darkest pixel is 0 and its brightest 255, with this probability.

    Source: Cubuk et al., "AutoAugment" (2019). Raises ValueError: `probability` not in 0..1.
    """

    def __init__(self, probability: float = 0.1) -> None:
        super().__init__(stretch_contrast, probability)


class Equalize(_Ungraded):
    """Makes the levels of each channel about equally frequent, with this probability.

    Source: Cubuk et al., "AutoAugment" (2019); the scheme is PIL's. Raises ValueError: `probability` not in 0..1.
    """

    def __init__(self, probability: float = 0.1) -> None:
        super().__init__(equalize, probability)


class ColourShift:
    """Adds a whole number of levels to each channel, uniform over low..high, each channel its own; within 0..255.

    Source: CS7150, figure 9.1 (colour shift). Raises ValueError: `levels` not whole numbers within -255..255 or in the
    wrong order, `probability` not in 0..1.
    """

    def __init__(self, levels: tuple[int, int] = (-10, 10), probability: float = 0.5) -> None:
        check_probability(probability)
        self.levels = _check_whole("levels", levels, -255, 255)
        self.probability = probability

    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        low, high = self.levels
        applied_N = draw_applied(num_samples, self.probability, generator)
        levels_NC = torch.randint(low, high + 1, (num_samples, input_shape[0]), generator=generator)
        return {"levels": levels_NC * applied_N.unsqueeze(1)}

    def __call__(self, images_NCHW: Tensor, rows: Rows) -> Tensor:
        levels_NC = rows["levels"]
        return where(images_NCHW, _all_if_most(levels_NC.any(1)), lambda images, k: shift_levels(images, levels_NC[k]))


class Lighting:
    """Adds a random multiple of each principal component of ImageNet's colours to all pixels of an image.

    With p the components, s their sizes and alpha three draws from a normal distribution of mean 0 and standard
    deviation `std`, round(sum of alpha_i s_i p_i) levels, within 0..255. Images of one channel stay as they are.

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


def _check_whole(name: str, values: tuple[int, int], low: int, high: int) -> tuple[int, int]:
    first, second = check_range(name, values, low, high)
    if first != int(first) or second != int(second):
        raise ValueError(f"{name}={list(values)}: must be two whole numbers")
    return int(first), int(second)
