"""Counter-based pixel noise: a pure function of a sample's seed and the pixel's index, without generator state.

The noise is bit-identical in any batch, on any rank and on any device.
"""

import math
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

_NUMBERS_A_CHUNK = 2**17  # on the CPU: 512 KB stay in cache during the twelve passes of `_mix`


def uniform(seeds_N: Tensor, shape: tuple[int, ...], device: torch.device, stream: int = 0) -> Tensor:
    """float32 (N, *shape), uniform in [0, 1) in steps of 2^-24.

    Different values of `stream` give independent fields for the same seed.
    """
    size = math.prod(shape)
    out_NP = torch.empty(len(seeds_N), size, device=device)
    for some, bits in _bits(seeds_N, size, device, stream):
        out_NP[some].copy_(bits.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)).mul_(2.0**-24)
    return out_NP.view(len(seeds_N), *shape)


def normal(seeds_N: Tensor, shape: tuple[int, ...], device: torch.device, stream: int = 0) -> Tensor:
    """float32 (N, *shape) of mean 0 and variance 1.

    Each value is one of the 2^16 equally likely quantiles of the normal distribution, of which the outermost is 4.3.
    """
    size = math.prod(shape)
    half = (size + 1) // 2  # 32 bits yield two numbers
    out_N2P = torch.empty(len(seeds_N), 2, half, device=device)
    table = _quantiles(device)
    for some, bits in _bits(seeds_N, half, device, stream):
        out_N2P[some, 0] = table.index_select(0, (bits & 0xFFFF).flatten()).view(-1, half)
        bits.bitwise_right_shift_(16).bitwise_and_(0xFFFF)
        out_N2P[some, 1] = table.index_select(0, bits.flatten()).view(-1, half)
    return out_N2P.view(-1, 2 * half)[:, :size].reshape(len(seeds_N), *shape)


@cache
def _quantiles(device: torch.device) -> Tensor:
    """float32: the normal quantiles at the midpoints of 2^16 equal intervals, scaled to unit variance."""
    upper = torch.special.ndtri((torch.arange(2**15, 2**16, dtype=torch.float64) + 0.5) / 2**16)
    table: Tensor = torch.cat((-upper.flip(0), upper)) / upper.square().mean().sqrt()
    return table.to(device, torch.float32, non_blocking=True)


def _bits(seeds_N: Tensor, size: int, device: torch.device, stream: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield chunks of samples and their int32 (n, size) values of 32 random bits."""
    keys_N = (seeds_N + stream * 0x632BE5AB + 0x9E3779B9) % 2**32
    keys_N1 = _mix(torch.where(keys_N >= 2**31, keys_N - 2**32, keys_N).to(torch.int32)).unsqueeze(1)
    keys_N1 = keys_N1.to(device, non_blocking=True)
    numbers_P = _mix(torch.arange(size, dtype=torch.int32, device=device))
    count = max(1, _NUMBERS_A_CHUNK // max(size, 1)) if device.type == "cpu" else max(len(seeds_N), 1)
    for start in range(0, len(seeds_N), count):
        some = slice(start, start + count)
        yield some, _mix(numbers_P + keys_N1[some])


def _mix(x: Tensor) -> Tensor:
    """The hash `lowbias32` (C. Wellons, 2018), in place: a bijection on 32 bits, arithmetic modulo 2^32."""
    shifted = (x >> 16).bitwise_and_(0xFFFF)  # >> is arithmetic: mask the sign bits
    x.bitwise_xor_(shifted).mul_(0x21F0AAAD)
    torch.bitwise_right_shift(x, 15, out=shifted)
    x.bitwise_xor_(shifted.bitwise_and_(0x1FFFF)).mul_(0xD35A2D97 - 2**32)
    torch.bitwise_right_shift(x, 15, out=shifted)
    return x.bitwise_xor_(shifted.bitwise_and_(0x1FFFF))
