"""Batches that are processed a few images at a time, and a pool of buffers for them."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Change = Callable[[Tensor, slice], object]  # of some images, in place, given with their indices in the batch

NUMBERS = 3 << 16  # 64 small images, 768 KB: they stay in the L2 cache from the first change to the last
_use_count = getattr(torch._C, "_storage_Use_Count", None)  # torch has no public name for it; without it none is reused


def chunks(images_NCHW: Tensor, numbers: int = NUMBERS) -> Iterator[slice]:
    """All of a batch, on the CPU about so many numbers at a time: memory that is in the cache takes half the time."""
    num = len(images_NCHW)
    size = num if images_NCHW.device.type != "cpu" else numbers // max(1, images_NCHW[:1].numel())
    return (slice(start, start + max(1, size)) for start in range(0, num, max(1, size)))


class BufferPool:
    """`empty` as torch.empty, for tensors of some megabytes that are needed again and again.

    The C library may give such memory back to the system, which then maps it anew, page by page: of making a small
    batch that takes a fifth, of a large one half.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def empty(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """Uninitialised; on the CPU one of the last two given out, when nobody holds it or a view of it any more."""
        for buffer in self._buffers:
            fits = buffer.dtype == dtype and buffer.shape[1:] == tuple(shape[1:]) and len(buffer) >= shape[0]
            if fits and buffer.is_contiguous(memory_format=memory_format) and not _is_held(buffer):
                return buffer[: shape[0]]
        buffer = torch.empty(tuple(shape), dtype=dtype, device=device, memory_format=memory_format)
        if device.type == "cpu":  # elsewhere torch itself keeps memory
            self._buffers = [buffer, *self._buffers[:1]]  # one is held by the step while the other is filled
        return buffer


def by_chunks(
    images_NCHW: Tensor,
    changes: Sequence[Change],
    pool: BufferPool,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """float32 in this layout: all changes to some images, then to the next ones. float32 images are overwritten."""
    owned = images_NCHW.dtype == torch.float32 and images_NCHW.is_contiguous(memory_format=memory_format)
    device = images_NCHW.device
    results = images_NCHW if owned else pool.empty(images_NCHW.shape, torch.float32, device, memory_format)
    for chunk in chunks(images_NCHW):
        some = results[chunk] if owned else results[chunk].copy_(images_NCHW[chunk])
        for change in changes:
            change(some, chunk)
    return results


def _is_held(buffer: Tensor) -> bool:
    """Whether anything but `buffer` itself uses its memory, be it a view or what autograd has kept."""
    storage = buffer.untyped_storage()
    return _use_count is None or _use_count(storage._cdata) > 2  # the tensor and `storage`


def chunk_sizes(count: int, micro_batch: int) -> list[int]:
    """How `count` samples are cut into chunks of `micro_batch`; the last one may be smaller."""
    whole, rest = divmod(count, micro_batch)
    return [micro_batch] * whole + [rest] * (rest > 0)
