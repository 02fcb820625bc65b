"""Frames: which part of a photograph is resized to which size, and which part of that is the output.

A frame is eight integers: the box in the stored photograph (top, left, height, width), the size (height, width) that
the box is resized to, and the corner (top, left) of the output within the resized box. If the width is negative, the
output is mirrored, which costs nothing while pixels are copied to channel planes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FRAME = 8
Pixels = NDArray[np.uint8]


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with this short side and the same aspect ratio, rounded as in torchvision's Resize."""
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


def evaluation_frames(sizes_N2: Tensor, size: int, short_side: int) -> Tensor:
    """int64 (N, 8): the whole photograph, its short side resized to `short_side`, then a centre crop.

    Equal to torchvision's Resize(short_side) followed by CenterCrop(size).
    """
    shorter_N, longer_N = sizes_N2.amin(1), sizes_N2.amax(1)
    long_N = (short_side * longer_N).double().div(shorter_N).long()  # rounded down, as in `short_side_size`
    is_long_N2 = sizes_N2 > shorter_N.unsqueeze(1)
    resized_N2 = torch.where(is_long_N2, long_N.unsqueeze(1), short_side)
    corner_N2 = (resized_N2 - size).double().div(2).round().long()  # rounds half to even, as Python's round
    return torch.cat((torch.zeros_like(sizes_N2), sizes_N2, resized_N2, corner_N2), 1)


def check_frames(frames_N8: Tensor, sizes_N2: Tensor, size: int) -> None:
    """Raises ValueError for a frame that extends outside its photograph or is smaller than the output."""
    if frames_N8.shape != (len(sizes_N2), FRAME) or frames_N8.dtype != torch.int64:
        raise ValueError(f"frames of shape {tuple(frames_N8.shape)}, {frames_N8.dtype}: must be int64 (N, {FRAME})")
    box_N22, corner_N2 = frames_N8[:, :4].view(-1, 2, 2), frames_N8[:, 6:]
    resized_N2 = torch.stack((frames_N8[:, 4], frames_N8[:, 5].abs()), 1)
    inside = (box_N22[:, 0] >= 0) & (box_N22[:, 1] >= 1) & (box_N22.sum(1) <= sizes_N2)
    covers = (corner_N2 >= 0) & (corner_N2 + size <= resized_N2)
    bad = (~(inside & covers).all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"frame {frames_N8[bad[0]].tolist()} does not fit a photograph of {sizes_N2[bad[0]].tolist()}")


def apply_frame(pixels: Pixels, frame: list[int], out_3SS: Pixels) -> None:
    """Apply a frame to contiguous (height, width, 3) pixels and write the result to `out_3SS`.

    Bit-identical to torchvision v2's crop, resize (bilinear, antialiased, uint8), crop and horizontal flip.
    """
    top, left, height, width, resized_h, resized_w, out_top, out_left = frame
    size = out_3SS.shape[1]
    rows, columns = slice(out_top, out_top + size), slice(out_left, out_left + size)
    part = pixels[top : top + height, left : left + width]
    if (height, width) != (resized_h, abs(resized_w)):
        part = resize(part, resized_h, abs(resized_w))
    shown = part[rows, columns]
    if resized_w < 0:
        shown = shown[:, ::-1]
    np.copyto(out_3SS, shown.transpose(2, 0, 1))


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize bilinearly, antialiased, rounded to uint8, with the kernel behind torch's `interpolate`.

    `interpolate` itself returns channel planes, which takes half as long again.
    """
    resized = np.empty((height, width, 3), dtype=np.uint8)
    images = (np.ascontiguousarray(pixels), resized)
    image_1CHW, out_1CHW = (torch.from_numpy(image[None]).permute(0, 3, 1, 2) for image in images)
    torch.ops.aten._upsample_bilinear2d_aa.out(image_1CHW, [height, width], False, None, None, out=out_1CHW)
    return resized
