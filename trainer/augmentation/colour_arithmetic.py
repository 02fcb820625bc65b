"""Colour arithmetic, identical to torchvision's v2 transforms on uint8 images.

The functions modify contiguous float32 images of integer values in place and return them. Parameters are on the CPU,
one per image.
"""

import torch
from torch import Tensor

from trainer.augmentation.operation import column

_SCALE = 255 + 1 - 1e-3  # torchvision converts 0..1 to levels by floor(255.999 x)


def blend_weights(factors_N: Tensor, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the blend weights `factor` and 1 - `factor`, each float32 (N, 1, 1, 1)."""
    both_2N = torch.stack((factors_N, 1 - factors_N)).to(images_NCHW.device, torch.float32, non_blocking=True)
    own, other = both_2N.view(2, -1, 1, 1, 1)
    return own, other


def change_brightness(images_NCHW: Tensor, own: Tensor, _: Tensor) -> Tensor:
    """factor x."""
    return images_NCHW.mul_(own).clamp_(max=255).floor_()


def change_contrast(images_NCHW: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """factor x + (1 - factor) m, where m is the mean of the image's grey levels."""
    grey = _grey(images_NCHW).unsqueeze(1) if images_NCHW.shape[1] == 3 else images_NCHW.clone()
    # sums of integers below 2^24 are exact in float32, in any order
    exact = torch.float32 if grey[0].numel() * 255 < 2**24 else torch.float64
    mean = grey.mean((1, 2, 3), keepdim=True, dtype=exact)
    return _blend(images_NCHW, grey.copy_(mean), own, other)


def change_saturation(images_NCHW: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """factor x + (1 - factor) g, where g is the pixel's grey level; for images of three channels only."""
    if images_NCHW.shape[1] != 3:
        return images_NCHW
    return _blend(images_NCHW, _grey(images_NCHW).unsqueeze(1), own, other)


def _blend(images_NCHW: Tensor, others: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """own * images + other * others, in the same two operations as torchvision, so that the rounding is the same.

    `others` must have the full height and width of the images: `addcmul` is slow if it has to broadcast them.
    """
    return images_NCHW.mul_(own).addcmul_(others, other).clamp_(0, 255).floor_()


def _grey(images_N3HW: Tensor) -> Tensor:
    """Luminance rounded down, float32 (N, H, W)."""
    red, green, blue = images_N3HW.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def change_hue(images_NCHW: Tensor, shifts_N: Tensor) -> Tensor:
    """Rotate hues by a fraction of the colour circle; for images of three channels only.

    With the hue h in 0..1, a channel is max - (max - min) f(6 ((h + n / 6) mod 1)), with n = 5, 3, 1 for red, green,
    blue and f(k) = min(k, 4 - k) clamped to 0..1: the conversion to HSV and back without case distinctions.
    """
    if images_NCHW.shape[1] != 3:
        return images_NCHW
    red, green, blue = images_NCHW.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    buffer = torch.empty_like(high)
    # 6 chroma h of the largest channel; lerp with weights 0 and 1 takes a third of the time of masking
    hue = (red - green).add_(chroma, alpha=4)
    hue.lerp_((blue - red).add_(chroma, alpha=2), torch.eq(green, high, out=buffer))
    hue.lerp_(green - blue, torch.eq(red, high, out=buffer))
    hue.div_(torch.clamp(chroma, min=1, out=buffer).mul_(6))  # a grey pixel has chroma 0: any hue will do
    hue.add_(column(1 + shifts_N, images_NCHW).squeeze(1))  # keeps it positive
    for channel, n in ((red, 5), (green, 3), (blue, 1)):
        turned = torch.add(hue, n / 6, out=buffer).frac_()
        weight = turned.sub_(1 / 3).abs_().mul_(-6).add_(2).clamp_(0, 1)
        torch.sub(high, weight.mul_(chroma), out=channel)
    return images_NCHW.mul_(_SCALE / 255).floor_()


def change_gamma(images_NCHW: Tensor, gammas_N: Tensor) -> Tensor:
    """255 (x / 255)^gamma."""
    levels_256 = torch.arange(256, dtype=torch.float64) / 255
    tables = levels_256.pow(gammas_N.unsqueeze(1)).mul_(_SCALE).floor_()
    return _look_up(
        images_NCHW, _table_indices(images_NCHW.flatten(1)), tables.to(images_NCHW.device, non_blocking=True)
    )


def invert(images_NCHW: Tensor) -> Tensor:
    """255 - x."""
    return images_NCHW.neg_().add_(255)


def sharpen(images_NCHW: Tensor, factors_N: Tensor) -> Tensor:
    """factor x + (1 - factor) b, where b is the mean of the 3x3 pixels around x with x itself counted five times.

    Border pixels, and images smaller than 3x3, are unchanged.
    """
    H, W = images_NCHW.shape[2:]
    if H < 3 or W < 3:
        return images_NCHW
    # Neighbours are summed along the flattened batch, in long runs instead of short rows; the borders, where the sums
    # wrap around, are zeroed afterwards. Sums are exact, and a 13th of an integer never lies halfway between levels.
    flat = images_NCHW.view(-1)
    row_sums = flat[:-2] + flat[1:-1]
    row_sums.add_(flat[2:])
    change = torch.empty_like(images_NCHW)
    inner, centre = change.view(-1)[W + 1 : -W - 1], flat[W + 1 : -W - 1]
    torch.add(row_sums[: -2 * W], row_sums[W:-W], out=inner)
    inner.add_(row_sums[2 * W :]).add_(centre, alpha=4).mul_(1 / 13).round_().sub_(centre)
    for border in (change[..., 0, :], change[..., -1, :], change[..., 0], change[..., -1]):
        border.zero_()
    return images_NCHW.addcmul_(change, column(1 - factors_N, images_NCHW)).clamp_(0, 255).floor_()


def solarize(images_NCHW: Tensor, thresholds_N: Tensor) -> Tensor:
    """255 - x if x >= threshold."""
    bright = torch.ge(images_NCHW, column(thresholds_N, images_NCHW), out=torch.empty_like(images_NCHW))
    return images_NCHW.sub_(bright, alpha=255).abs_()


def posterize(images_NCHW: Tensor, bits_N: Tensor) -> Tensor:
    """Keep the `bits_N` most significant of each pixel's eight bits."""
    lost_N = 8 - bits_N.to(torch.int64)
    step_N = torch.bitwise_left_shift(torch.ones_like(lost_N), lost_N)
    images_NCHW.mul_(column(1 / step_N, images_NCHW)).floor_()
    return images_NCHW.mul_(column(step_N, images_NCHW))


def stretch_contrast(images_NCHW: Tensor) -> Tensor:
    """255 (x - low) / (high - low), with the extremes of each channel; a constant channel is unchanged."""
    low, high = images_NCHW.amin((2, 3), keepdim=True), images_NCHW.amax((2, 3), keepdim=True)
    constant = low == high
    scale = high.sub_(low).mul_(1 / 255).masked_fill_(constant, 1)
    return images_NCHW.sub_(low.masked_fill_(constant, 0)).div_(scale).floor_()


def equalize(images_NCHW: Tensor) -> Tensor:
    """Equalize the histogram of each channel by PIL's algorithm: floor((c + floor(s / 2)) / s), at most 255.

    c is the number of pixels below level x; s is the number of pixels below the channel's highest level, divided by
    255 and rounded down. If s is 0 the channel is unchanged.
    """
    planes = images_NCHW.flatten(0, 1).flatten(1)
    indices = _table_indices(planes)
    counts = _count(indices, len(planes) * 256).view(-1, 256)
    below = counts.cumsum(1).sub_(counts).to(torch.float32)  # exact, as all that follows, below 2^24 pixels
    step = below.gather(1, planes.amax(1, keepdim=True).to(torch.int64)).div_(255).floor_()
    tables = below.add_((step * 0.5).floor_()).div_(step.clamp(min=1)).floor_().clamp_(max=255)
    tables = torch.where(step > 0, tables, torch.arange(256.0, device=planes.device))
    return _look_up(images_NCHW, indices, tables)


def _table_indices(pixels_PM: Tensor) -> Tensor:
    """int32 (P * M,): index of each pixel's entry in concatenated tables of 256 entries, one table per row."""
    first_P = torch.arange(len(pixels_PM), dtype=torch.int32, device=pixels_PM.device).mul_(256)
    return pixels_PM.to(torch.int32).add_(first_P.unsqueeze(1)).view(-1)


def _count(indices: Tensor, num_indices: int) -> Tensor:
    """int64 (num_places,): number of occurrences of each index."""
    if indices.device.type == "cpu":
        return torch.bincount(indices, minlength=num_indices)
    counts = torch.zeros(num_indices, dtype=torch.int64, device=indices.device)  # bincount would wait for the device
    return counts.scatter_add_(0, indices.to(torch.int64), counts.new_ones(1).expand_as(indices))


def _look_up(images_NCHW: Tensor, indices: Tensor, tables_P256: Tensor) -> Tensor:
    torch.index_select(tables_P256.to(images_NCHW.dtype).view(-1), 0, indices, out=images_NCHW.view(-1))
    return images_NCHW


def shift_levels(images_NCHW: Tensor, shifts_NC: Tensor) -> Tensor:
    """x plus an integer number of levels per channel, clamped to 0..255."""
    shifts = shifts_NC.to(images_NCHW.device, images_NCHW.dtype, non_blocking=True)
    return images_NCHW.add_(shifts.unsqueeze(2).unsqueeze(3)).clamp_(0, 255)
