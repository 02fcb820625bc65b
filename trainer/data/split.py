"""Stratified splits, identical on every machine."""

import torch
from torch import Tensor

from trainer.base.checks import check_seed, check_that

_ORDINARY = 0.05  # a fraction of this or more is at least one sample, however small the set


def cut_size(name: str, fraction: float, total: int) -> int:
    """Number of samples, of `total`, for `fraction`: rounded to the nearest; from 0.05 on, at least one.

    Raises ValueError, with `name`, for a fraction outside (0, 1), one that rounds to none or all, or a single sample.
    """
    count = round(total * fraction) if 0 < fraction < 1 else 0
    if not count and _ORDINARY <= fraction < 1:
        count = 1
    must = f"between 0 and 1, leaving samples on both sides of {total}"
    check_that(0 < count < total, name, fraction, must)
    return count


def check_split_seed(split_seed: int) -> None:
    """Raises ValueError for a seed that a generator does not accept."""
    check_seed("split_seed", split_seed)


def check_root(root: str) -> None:
    """Raises ValueError for an empty path, which would mean the working directory."""
    if not root:
        raise ValueError(f"root={root!r}: must be the name of a folder")


def stratified_cut(targets_N: Tensor, num_cut: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices (kept, cut) of a random cut of exactly `num_cut` samples, both ascending, int64.

    Of a class with n_c of N samples, num_cut * n_c / N are cut, rounded down or up (largest remainder). Uses only
    `torch.randperm` on the CPU and integer arithmetic, so that the cut is the same everywhere.
    """
    order_N = torch.randperm(len(targets_N), generator=generator)
    shuffled_N = targets_N[order_N]
    is_cut_N = torch.zeros(len(targets_N), dtype=torch.bool)
    for label, quota in enumerate(_quotas(torch.bincount(targets_N).tolist(), num_cut)):
        is_cut_N[order_N[shuffled_N == label][:quota]] = True
    return (~is_cut_N).nonzero().flatten(), is_cut_N.nonzero().flatten()


def _quotas(class_sizes: list[int], num_cut: int) -> list[int]:
    """Divide `num_cut` in proportion to class sizes, by largest remainder; ties go to the lower class."""
    total = sum(class_sizes)
    quotas = [num_cut * size // total for size in class_sizes]
    by_remainder = sorted(range(len(class_sizes)), key=lambda c: -(num_cut * class_sizes[c] % total))
    for c in by_remainder[: num_cut - sum(quotas)]:
        quotas[c] += 1
    return quotas
