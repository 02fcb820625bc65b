"""Noise on pixels as a pure function of a sample's seed and the pixel's number: no generator, no order of draws.

So it is the same, to the last bit, in any batch, on any rank and on any device.
"""

import math
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

_NUMBERS_A_CHUNK = 2**17  # on the CPU: 512 KB stay in the cache through the twelve passes of the mixing


def uniform(seeds_N: Tensor, shape: tuple[int, ...], device: torch.device, stream: int = 0) -> Tensor:
    """float32 (N, *shape), uniform in [0, 1), in steps of 2^-24; `stream` tells several fields of one seed apart."""
    size = math.prod(shape)
    out_NP = torch.empty(len(seeds_N), size, device=device)
    for some, bits in _bits(seeds_N, size, device, stream):
        out_NP[some].copy_(bits.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)).mul_(2.0**-24)
    return out_NP.view(len(seeds_N), *shape)


def normal(seeds_N: Tensor, shape: tuple[int, ...], device: torch.device, stream: int = 0) -> Tensor:
    """float32 (N, *shape), mean 0 and variance 1: one of the 2^16 equally likely quantiles of the normal
    distribution, the outermost of which is 4.3 away from 0."""
    size = math.prod(shape)
    half = (size + 1) // 2  # two numbers come out of 32 bits
    out_N2P = torch.empty(len(seeds_N), 2, half, device=device)
    table = _quantiles(device)
    for some, bits in _bits(seeds_N, half, device, stream):
        out_N2P[some, 0] = table.index_select(0, (bits & 0xFFFF).flatten()).view(-1, half)
        bits.bitwise_right_shift_(16).bitwise_and_(0xFFFF)
        out_N2P[some, 1] = table.index_select(0, bits.flatten()).view(-1, half)
    return out_N2P.view(-1, 2 * half)[:, :size].reshape(len(seeds_N), *shape)


@cache
def _quantiles(device: torch.device) -> Tensor:
    """float32: the normal distribution at the middles of 2^16 equal shares, scaled to the variance 1."""
    upper = torch.special.ndtri((torch.arange(2**15, 2**16, dtype=torch.float64) + 0.5) / 2**16)
    table: Tensor = torch.cat((-upper.flip(0), upper)) / upper.square().mean().sqrt()
    return table.to(device, torch.float32)


def _bits(seeds_N: Tensor, size: int, device: torch.device, stream: int) -> Iterator[tuple[slice, Tensor]]:
    """int32 (n, size), 32 random bits each, for some of the samples at a time."""
    keys_N = (seeds_N + stream * 0x632BE5AB + 0x9E3779B9) % 2**32
    keys_N1 = _mix(torch.where(keys_N >= 2**31, keys_N - 2**32, keys_N).to(torch.int32)).unsqueeze(1)
    keys_N1 = keys_N1.to(device, non_blocking=True)
    numbers_P = _mix(torch.arange(size, dtype=torch.int32, device=device))
    count = max(1, _NUMBERS_A_CHUNK // max(size, 1)) if device.type == "cpu" else max(len(seeds_N), 1)
    for start in range(0, len(seeds_N), count):
        some = slice(start, start + count)
        yield some, _mix(numbers_P + keys_N1[some])


def _mix(x: Tensor) -> Tensor:
    """In place: the function `lowbias32` (C. Wellons, 2018), one to one on 32 bits; arithmetic is modulo 2^32."""
    shifted = (x >> 16).bitwise_and_(0xFFFF)  # a shift fills in the sign
    x.bitwise_xor_(shifted).mul_(0x21F0AAAD)
    torch.bitwise_right_shift(x, 15, out=shifted)
    x.bitwise_xor_(shifted.bitwise_and_(0x1FFFF)).mul_(0xD35A2D97 - 2**32)
    torch.bitwise_right_shift(x, 15, out=shifted)
    return x.bitwise_xor_(shifted.bitwise_and_(0x1FFFF))
