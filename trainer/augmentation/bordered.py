"""Image storage with shared black borders, in which every crop of a padded image is one contiguous run of bytes."""

import torch
from torch import Tensor

from trainer.augmentation.operation import put
from trainer.base.chunks import BufferPool


class Bordered:
    """uint8 images stored with `padding` black pixels between rows and `padding` black rows between channels.

    The right border of a row is also the left border of the next one. The layout takes (H + padding) (W + padding)
    bytes per channel: for 32x32 images and a padding of 4, 1.27 times the images instead of 1.56. `images_NCHW` is a
    view of the images themselves.
    """

    def __init__(self, images_NCHW: Tensor, padding: int) -> None:
        N, C, H, W = images_NCHW.shape
        self._shape, self._padding = (C, H, W), padding
        self._stride = W + padding
        self._plane = (H + padding) * self._stride
        self._flat = torch.zeros(
            self.size(images_NCHW.shape, padding), dtype=images_NCHW.dtype, device=images_NCHW.device
        )
        lines = self._flat[padding:].as_strided(
            (N, C, H, W), (C * self._plane, self._plane, self._stride, 1), padding + padding * self._stride
        )
        self.images_NCHW = lines.copy_(images_NCHW)
        run = (C - 1) * self._plane + (H - 1) * self._stride + W
        self._run_pool, self._crop_pool = BufferPool(), BufferPool()
        self._runs = self._flat.as_strided((len(self._flat) - run + 1, run), (1, 1))

    @staticmethod
    def size(shape: tuple[int, ...], padding: int) -> int:
        """Bytes needed for images of shape (N, C, H, W), including the outermost borders."""
        N, C, H, W = shape
        return padding + N * C * (H + padding) * (W + padding) + padding * (W + padding)

    def read(self, indices_N: Tensor, offset_y_N: Tensor, offset_x_N: Tensor, flipped_N: Tensor | None) -> Tensor:
        """Return uint8 crops of the padded images, offset by 0..2 * padding from the top and from the left.

        Crops selected by `flipped_N` are then mirrored horizontally. All arguments are on the CPU.
        """
        C, H, W = self._shape
        starts_N = indices_N * (C * self._plane) + offset_y_N * self._stride + offset_x_N
        N, run, dtype, device = len(starts_N), self._runs.shape[1], self._flat.dtype, self._flat.device
        runs = self._run_pool.empty((N, run), dtype, device)
        torch.index_select(self._runs, 0, starts_N.to(device, non_blocking=True), out=runs)
        crops = self._crop_pool.empty((N, C, H, W), dtype, device)
        crops.copy_(runs.as_strided((N, C, H, W), (run, self._plane, self._stride, 1)))
        if flipped_N is not None:
            index_K = flipped_N.nonzero().flatten().to(self._flat.device, non_blocking=True)
            put(crops, index_K, crops.index_select(0, index_K).flip(3))
        return crops
