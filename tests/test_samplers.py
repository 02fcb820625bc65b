"""Samplers: what comes when."""

import pytest
import torch
from scipy.stats import chisquare

from trainer.samplers import Sequential, Shuffle

TARGETS = torch.tensor([0, 1, 2, 3] * 25)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sampler", [Shuffle(), Sequential()])
def test_every_sample_comes_exactly_once(sampler):
    order = sampler.order(TARGETS, generator(0))
    assert order.dtype == torch.int64
    assert order.device.type == "cpu"
    assert order.sort().values.tolist() == list(range(100))
    assert sampler.repeats is False


def test_sequential_keeps_the_order_and_draws_nothing():
    source = generator(0)
    before = source.get_state()
    assert Sequential().order(TARGETS, source).tolist() == list(range(100))
    assert torch.equal(source.get_state(), before)


def test_the_generator_alone_decides():
    torch.manual_seed(1)
    first = Shuffle().order(TARGETS, generator(7))
    torch.manual_seed(2)
    assert torch.equal(Shuffle().order(TARGETS, generator(7)), first)
    assert not torch.equal(Shuffle().order(TARGETS, generator(8)), first)


def test_shuffle_goes_on_with_a_generator_that_is_used_again():
    source = generator(0)
    assert not torch.equal(Shuffle().order(TARGETS, source), Shuffle().order(TARGETS, source))


def test_every_order_is_equally_likely():
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(2400):
        order = tuple(Shuffle().order(TARGETS[:4], generator(seed)).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert chisquare(list(counts.values())).pvalue > 1e-3
