"""Batches that are processed a few images at a time, and a pool of buffers for them."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Change = Callable[[Tensor, slice], object]  # changes some images in place, given with their indices in the batch

NUMBERS = 3 << 16  # 64 small images, 768 KB: they stay in the L2 cache from the first operation to the last
_use_count = getattr(torch._C, "_storage_Use_Count", None)  # private; if it is missing, no buffer is reused


def chunks(images_NCHW: Tensor, numbers: int = NUMBERS) -> Iterator[slice]:
    """Split a batch into slices of about `numbers` elements on the CPU, which is twice as fast; elsewhere one slice."""
    num = len(images_NCHW)
    size = num if images_NCHW.device.type != "cpu" else numbers // max(1, images_NCHW[:1].numel())
    return (slice(start, start + max(1, size)) for start in range(0, num, max(1, size)))


class BufferPool:
    """Reuses memory for tensors of several megabytes that are allocated repeatedly.

    The C library may return such memory to the system, which maps it again page by page; this takes a fifth of the
    time of a small batch and half of that of a large one.
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
        """Like `torch.empty`; on the CPU, reuses one of the last two buffers if no tensor or view refers to it."""
        for buffer in self._buffers:
            fits = buffer.dtype == dtype and buffer.shape[1:] == tuple(shape[1:]) and len(buffer) >= shape[0]
            if fits and buffer.is_contiguous(memory_format=memory_format) and not _is_held(buffer):
                return buffer[: shape[0]]
        buffer = torch.empty(tuple(shape), dtype=dtype, device=device, memory_format=memory_format)
        if device.type == "cpu":  # elsewhere torch's allocator caches memory
            self._buffers = [buffer, *self._buffers[:1]]  # the step uses one while the other is filled
        return buffer


def by_chunks(
    images_NCHW: Tensor,
    changes: Sequence[Change],
    pool: BufferPool,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Apply all changes chunk by chunk; returns float32 in this layout. float32 images may be overwritten."""
    owned = images_NCHW.dtype == torch.float32 and images_NCHW.is_contiguous(memory_format=memory_format)
    device = images_NCHW.device
    results = images_NCHW if owned else pool.empty(images_NCHW.shape, torch.float32, device, memory_format)
    for chunk in chunks(images_NCHW):
        some = results[chunk] if owned else results[chunk].copy_(images_NCHW[chunk])
        for change in changes:
            change(some, chunk)
    return results


def _is_held(buffer: Tensor) -> bool:
    """Whether anything besides `buffer` uses its memory, such as a view or a tensor saved by autograd."""
    storage = buffer.untyped_storage()
    return _use_count is None or _use_count(storage._cdata) > 2  # the tensor and `storage`


def chunk_sizes(count: int, micro_batch: int) -> list[int]:
    """Return the sizes of the micro-batches of `count` samples; the last one may be smaller."""
    whole, rest = divmod(count, micro_batch)
    return [micro_batch] * whole + [rest] * (rest > 0)
