"""Properties of the stratified cut, and pinned results."""

import numpy as np
import pytest
import torch

from trainer.data.split import check_split_seed, cut_size, stratified_cut

SKEWED = torch.tensor([0] * 700 + [1] * 200 + [2] * 93 + [3] * 7)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_both_sides_together_are_every_sample_once_in_ascending_order():
    kept, cut = stratified_cut(SKEWED, 100, generator())
    assert torch.equal(torch.cat((kept, cut)).sort().values, torch.arange(1000))
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(cut, cut.sort().values)
    assert kept.dtype == cut.dtype == torch.int64


def test_class_shares_by_hand():
    # of 100 in 1000: 70, 20, 9.3 and 0.7: the remaining one goes to the largest remainder, 0.7
    _, cut = stratified_cut(SKEWED, 100, generator())
    assert torch.bincount(SKEWED[cut]).tolist() == [70, 20, 9, 1]


def test_a_tie_goes_to_the_lower_class():
    targets = torch.tensor([0, 1] * 5)  # 1.5 of each class
    _, cut = stratified_cut(targets, 3, generator())
    assert torch.bincount(targets[cut]).tolist() == [2, 1]


@pytest.mark.parametrize("num_cut", [1, 3, 499, 999])
def test_the_size_is_exact(num_cut):
    kept, cut = stratified_cut(SKEWED, num_cut, generator())
    assert (len(kept), len(cut)) == (1000 - num_cut, num_cut)


def test_every_sample_of_a_class_is_equally_likely():
    from scipy.stats import chisquare

    targets = torch.tensor([0] * 20 + [1] * 10)
    counts = torch.zeros(30)
    for seed in range(600):
        counts[stratified_cut(targets, 6, generator(seed))[1]] += 1  # 4 of 20, 2 of 10: each with probability 0.2
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_the_seed_alone_decides_on_every_machine_and_version():
    # pinned with torch 2.15: validation sets must not change for users
    assert stratified_cut(torch.arange(40) % 4, 8, generator(0))[1].tolist() == [4, 5, 11, 14, 16, 21, 26, 39]
    assert stratified_cut(torch.arange(40) % 4, 8, generator(1))[1].tolist() == [
        5,
        11,
        12,
        17,
        18,
        23,
        30,
        36,
    ]


@pytest.mark.parametrize("seed", [0, 123])
def test_the_permutation_is_a_shuffle_of_the_frozen_mersenne_twister(seed):
    # NumPy guarantees RandomState's stream permanently; use this if torch changes its own
    twister = np.random.RandomState(seed)
    expected = list(range(1797))
    for i in range(1796):
        j = i + int(twister.randint(0, 2**32, dtype=np.uint32)) % (1797 - i)
        expected[i], expected[j] = expected[j], expected[i]
    assert torch.randperm(1797, generator=generator(seed)).tolist() == expected


def test_the_state_of_the_global_generator_does_not_matter():
    torch.manual_seed(1)
    first = stratified_cut(SKEWED, 100, generator())[1]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(stratified_cut(SKEWED, 100, generator())[1], first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("fraction", "size"), [(0.1, 180), (0.5, 898), (0.0004, 1), (0.999, 1795)])
def test_cut_size_is_the_nearest_number(fraction, size):
    assert cut_size("val_fraction", fraction, 1797) == size


@pytest.mark.parametrize("total", range(2, 10))
def test_an_ordinary_fraction_of_a_small_set_is_at_least_one(total):
    for fraction in (0.05, 0.1):
        assert cut_size("val_fraction", fraction, total) == 1
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        cut_size("val_fraction", 0.04, total)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, 1e-4, 0.9999, float("nan")])
def test_cut_size_refuses_a_fraction_that_leaves_one_side_empty(fraction):
    with pytest.raises(ValueError, match=r"^val_fraction=.*: must be between 0 and 1"):
        cut_size("val_fraction", fraction, 1797)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_split_seed_outside_its_range(seed):
    with pytest.raises(ValueError, match=r"^split_seed=.*: must be between 0 and"):
        check_split_seed(seed)
