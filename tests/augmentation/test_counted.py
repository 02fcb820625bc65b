"""Counter-based noise: known values, uniformity, independence of neighbours, seeds and streams, and speed."""

import time

import pytest
import torch
from scipy.stats import binomtest, chisquare, kstest, norm

from trainer.augmentation import counted

CPU = torch.device("cpu")
WORD = 2**32


def mix(x: int) -> int:
    """The published function in Python integers."""
    x ^= x >> 16
    x = x * 0x21F0AAAD % WORD
    x ^= x >> 15
    x = x * 0xD35A2D97 % WORD
    return x ^ (x >> 15)


def word(seed: int, number: int, stream: int) -> int:
    return mix((mix(number) + mix((seed + stream * 0x632BE5AB + 0x9E3779B9) % WORD)) % WORD)


def seeds(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2**31, (num,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("stream", [0, 1, 7])
def test_known_values(stream):
    some = [0, 1, 12345, 2**31 - 1]
    uniform = counted.uniform(torch.tensor(some), (2, 5), CPU, stream)
    normal = counted.normal(torch.tensor(some), (3, 3), CPU, stream)
    assert uniform.dtype == normal.dtype == torch.float32
    for i, seed in enumerate(some):
        words = [word(seed, n, stream) for n in range(10)]
        assert uniform[i].flatten().tolist() == [(w >> 8) / 2**24 for w in words]
        halves = [w % 2**16 for w in words[:5]] + [w >> 16 for w in words[:5]]
        quantiles = [norm.ppf((half + 0.5) / 2**16) for half in halves][:9]
        # the table is scaled by 1.00003 to variance 1
        assert normal[i].flatten().tolist() == pytest.approx(quantiles, rel=1e-4)


def test_uniform_is_uniform_with_all_its_bits():
    values = counted.uniform(seeds(64), (3, 50, 50), CPU).flatten()
    assert values.min() >= 0
    assert values.max() < 1
    assert chisquare(torch.histc(values, 1000, 0, 1).numpy()).pvalue > 1e-3
    whole = (values * 2**24).to(torch.int64)
    assert torch.equal(whole.float() / 2**24, values)
    for bit in range(24):
        assert binomtest(int((whole >> bit & 1).sum()), len(whole), 0.5).pvalue > 1e-4, bit


def test_neighbouring_pixels_seeds_and_streams_are_independent():
    in_a_row = counted.uniform(torch.arange(64), (60, 60), CPU)  # consecutive seeds
    pairs = {
        "pixels": (in_a_row[:, :, :-1], in_a_row[:, :, 1:]),
        "rows": (in_a_row[:, :-1], in_a_row[:, 1:]),
        "seeds": (in_a_row[:-1], in_a_row[1:]),
        "shifted seeds": (in_a_row[:-1, :, :-1], in_a_row[1:, :, 1:]),
        "streams": (in_a_row, counted.uniform(torch.arange(64), (60, 60), CPU, 1)),
    }
    for name, (one, other) in pairs.items():
        cells = (one * 16).long() * 16 + (other * 16).long()
        counts = torch.bincount(cells.flatten(), minlength=256)
        assert chisquare(counts.numpy()).pvalue > 1e-3, name


def test_normal_is_normal():
    values = counted.normal(seeds(64), (3, 41, 41), CPU).double().flatten()  # an odd number of pixels
    assert kstest(values[::3].numpy(), "norm").pvalue > 1e-3
    assert abs(values.mean()) < 4 / len(values) ** 0.5
    assert abs(values.var() - 1) < 4 * (2 / len(values)) ** 0.5
    assert abs(values.pow(4).mean() - 3) < 0.1
    assert 4 < values.abs().max() < 4.4


def test_the_two_numbers_of_a_word_are_independent():
    values = counted.normal(seeds(64), (60, 60), CPU).flatten(1)
    first, second = (torch.special.ndtr(half).mul(16).long() for half in values.chunk(2, 1))
    counts = torch.bincount((first * 16 + second).flatten(), minlength=256)
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_the_table_has_mean_zero_and_variance_one():
    table = counted._quantiles(CPU).double()
    assert torch.equal(table, -table.flip(0))
    assert table.square().mean().item() == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("function", [counted.uniform, counted.normal])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 33, 47)])
def test_a_sample_does_not_depend_on_the_others(function, shape):
    whole = function(seeds(300), shape, CPU)
    assert whole.shape == (300, *shape)
    for some in (slice(0, 1), slice(17, 18), slice(100, 300), slice(5, 5)):
        assert torch.equal(function(seeds(300)[some], shape, CPU), whole[some])


@pytest.mark.parametrize("function", [counted.uniform, counted.normal])
def test_the_seeds_stay_as_they_are(function):
    given = seeds(10)
    function(given, (8, 8), CPU)
    assert torch.equal(given, seeds(10))


def test_it_costs_about_what_a_generator_does():
    def seconds(action) -> float:
        taken = []
        for _ in range(7):
            start = time.process_time()
            action()
            taken.append(time.process_time() - start)
        return min(taken)

    given = seeds(256)
    theirs = seconds(lambda: torch.randn(256, 3, 32, 32))
    assert seconds(lambda: counted.normal(given, (3, 32, 32), CPU)) < 4 * theirs  # usually 0.8 of it
    assert seconds(lambda: counted.uniform(given, (3, 32, 32), CPU)) < 4 * theirs
