"""Samplers: the order of samples."""

from collections import Counter
from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare

from trainer.samplers import (
    ClassBalanced,
    ClassInterleaved,
    FreshBatch,
    HardExamples,
    Sequential,
    Shuffle,
    WithReplacement,
)

TARGETS = torch.tensor([0, 1, 2, 3] * 25)
EVERY = [
    Shuffle(), Sequential(), WithReplacement(), FreshBatch(8), FreshBatch(60), ClassInterleaved(), ClassBalanced(),
    HardExamples(),
]  # fmt: skip
ONCE = [sampler for sampler in EVERY if not sampler.repeats]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_name(sampler: object) -> str:
    return type(sampler).__name__


@pytest.mark.parametrize("sampler", EVERY, ids=by_name)
def test_an_epoch_has_as_many_samples_as_there_are(sampler):
    order = sampler.order(TARGETS, generator(0))
    assert order.dtype == torch.int64
    assert order.device.type == "cpu"
    assert order.shape == (100,)
    assert order.min() >= 0 and order.max() < 100


@pytest.mark.proves(
    "sampler=shuffle",
    "sampler=class_interleaved",
    "sampler=sequential",
    reference="every sample exactly once",
    tolerance="exact",
)
@pytest.mark.parametrize("sampler", ONCE, ids=by_name)
def test_every_sample_comes_exactly_once(sampler):
    assert sampler.order(TARGETS, generator(0)).sort().values.tolist() == list(range(100))


@pytest.mark.proves("sampler=sequential", reference="the stored order", tolerance="exact")
def test_sequential_keeps_the_order_and_draws_nothing():
    source = generator(0)
    before = source.get_state()
    assert Sequential().order(TARGETS, source).tolist() == list(range(100))
    assert torch.equal(source.get_state(), before)


@pytest.mark.parametrize("sampler", EVERY, ids=by_name)
def test_the_generator_alone_decides(sampler):
    if isinstance(sampler, HardExamples):
        sampler = after_losses(torch.arange(100.0))
    torch.manual_seed(1)
    first = sampler.order(TARGETS, generator(7))
    torch.manual_seed(2)
    assert torch.equal(sampler.order(TARGETS, generator(7)), first)
    if not isinstance(sampler, Sequential):
        assert not torch.equal(sampler.order(TARGETS, generator(8)), first)


def test_shuffle_goes_on_with_a_generator_that_is_used_again():
    source = generator(0)
    assert not torch.equal(Shuffle().order(TARGETS, source), Shuffle().order(TARGETS, source))


@pytest.mark.proves(
    "sampler=shuffle", reference="all 24 orders of four samples, by a chi-square test", tolerance="p > 0.001"
)
@pytest.mark.parametrize("sampler", [Shuffle(), HardExamples()], ids=by_name)
def test_every_order_is_equally_likely(sampler):
    counts = Counter(tuple(sampler.order(TARGETS[:4], generator(seed)).tolist()) for seed in range(2400))
    assert len(counts) == 24
    assert chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.proves("sampler=with_replacement", reference="all 27 triples, by a chi-square test", tolerance="p > 0.001")
def test_with_replacement_draws_are_independent_and_uniform():
    counts = Counter(tuple(WithReplacement().order(TARGETS[:3], generator(seed)).tolist()) for seed in range(2700))
    assert set(counts) == set(product(range(3), repeat=3))
    assert chisquare(list(counts.values())).pvalue > 1e-3


# --- fresh_batch ------------------------------------------------------------------------------------------


@pytest.mark.proves("sampler=fresh_batch", reference="no sample twice in a batch", tolerance="exact")
@pytest.mark.parametrize("size", [1, 7, 32, 50, 51, 99, 100])
def test_a_fresh_batch_has_no_sample_twice(size):
    for batch in FreshBatch(size).order(TARGETS, generator(size)).split(size):
        assert len(batch.unique()) == len(batch)


@pytest.mark.proves(
    "sampler=fresh_batch", reference="all batches and pairs of batches, by a chi-square test", tolerance="p > 0.001"
)
@pytest.mark.parametrize(("size", "total"), [(2, 4), (2, 5), (3, 5)])
def test_every_fresh_batch_is_equally_likely_whatever_the_one_before_was(size, total):
    order = [FreshBatch(size).order(TARGETS[:total], generator(seed)).tolist() for seed in range(4000)]
    possible = list(permutations(range(total), size))
    first = Counter(tuple(epoch[:size]) for epoch in order)
    assert set(first) == set(possible)
    assert chisquare([first[batch] for batch in possible]).pvalue > 1e-3
    if 2 * size <= total:
        pairs = Counter((tuple(epoch[:size]), tuple(epoch[size : 2 * size])) for epoch in order)
        assert chisquare([pairs[pair] for pair in product(possible, repeat=2)]).pvalue > 1e-3


def test_fresh_batches_have_a_sample_again_before_all_have_come():
    order = FreshBatch(10).order(torch.zeros(1000, dtype=torch.int64), generator(0))
    assert len(order) == 1000
    # a sample is in none of 100 batches with probability 0.99^100
    assert len(order.unique()) == pytest.approx(1000 * (1 - 0.99**100), abs=40)


def test_the_size_of_a_fresh_batch_is_checked():
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        FreshBatch(0)


# --- class_interleaved ------------------------------------------------------------------------------------


def equal_neighbours(classes: torch.Tensor) -> int:
    return int((classes[1:] == classes[:-1]).sum())


def classes_of(sizes: list[int]) -> torch.Tensor:
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


@pytest.mark.proves(
    "sampler=class_interleaved",
    reference="no neighbours of one class",
    tolerance="exact, 13 divisions into classes, 20 seeds",
)
@pytest.mark.parametrize(
    "sizes",
    [[25] * 4, [500, 500], [501, 500], [1, 1], [3, 2], [40, 13, 9, 1, 17], [10, 0, 3, 7], [5, 1, 1, 1, 1], [30, 20, 9],
     [1] * 50, [7, 7, 7], [50, 10, 10, 10, 10, 10], [1]],
)  # fmt: skip
def test_neighbours_are_never_of_one_class_where_that_is_possible(sizes):
    targets = classes_of(sizes)
    for seed in range(20):
        order = ClassInterleaved().order(targets, generator(seed))
        assert order.sort().values.tolist() == list(range(sum(sizes)))
        assert equal_neighbours(targets[order]) == 0


@pytest.mark.parametrize("sizes", [[70, 30], [600, 40, 60], [9, 1], [12], [0, 5, 0, 1], [52, 50]])
def test_a_majority_makes_as_few_equal_neighbours_as_there_can_be_spread_evenly(sizes):
    targets = classes_of(sizes)
    classes = targets[ClassInterleaved().order(targets, generator(0))]
    largest, others = max(sizes), sum(sizes) - max(sizes)
    assert equal_neighbours(classes) == largest - others - 1
    _, lengths = classes.unique_consecutive(return_counts=True)
    runs = lengths[0::2].tolist()
    assert len(runs) == others + 1
    assert max(runs) - min(runs) <= 1
    assert lengths[1::2].tolist() == [1] * others


@pytest.mark.proves(
    "sampler=class_interleaved", reference="the possible orders of four samples, enumerated", tolerance="exact"
)
def test_every_possible_interleaving_comes():
    targets = torch.tensor([0, 0, 1, 2])
    possible = {p for p in permutations(range(4)) if equal_neighbours(targets[list(p)]) == 0}
    found = {tuple(ClassInterleaved().order(targets, generator(seed)).tolist()) for seed in range(500)}
    assert found == possible


def test_samples_of_a_class_come_in_any_order():
    counts = Counter()
    for seed in range(1200):
        order = ClassInterleaved().order(torch.tensor([0, 1, 0, 1, 0]), generator(seed))
        counts[tuple(sample for sample in order.tolist() if sample % 2 == 0)] += 1
    assert len(counts) == 6
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_classes_are_spread_over_the_epoch():
    targets = classes_of([6000, 3000, 1000])
    for tenth in targets[ClassInterleaved().order(targets, generator(0))].chunk(10):
        counts = torch.bincount(tenth, minlength=3)
        assert (counts - torch.tensor([600, 300, 100])).abs().max() < 40
    balanced = torch.arange(10).repeat(1000)
    for tenth in balanced[ClassInterleaved().order(balanced, generator(0))].chunk(10):
        assert torch.bincount(tenth).tolist() == pytest.approx([100] * 10, abs=5)


# --- class_balanced ---------------------------------------------------------------------------------------


@pytest.mark.proves(
    "sampler=class_balanced",
    reference="equal frequencies of classes and of their samples, by a chi-square test",
    tolerance="p > 0.001",
)
def test_classes_come_equally_often_and_their_samples_too():
    targets = classes_of([400, 40, 0, 8, 2000])
    classes, samples = Counter(), Counter()
    for seed in range(20):
        order = ClassBalanced().order(targets, generator(seed))
        classes.update(targets[order].tolist())
        samples.update(order[targets[order] == 3].tolist())
    assert set(classes) == {0, 1, 3, 4}
    assert chisquare(list(classes.values())).pvalue > 1e-3
    assert set(samples) == set(range(440, 448))
    assert chisquare(list(samples.values())).pvalue > 1e-3


# --- hard_examples ----------------------------------------------------------------------------------------


def after_losses(losses: torch.Tensor, **settings: float) -> HardExamples:
    sampler = HardExamples(**settings)
    sampler.order(torch.zeros(len(losses)), generator(0))
    sampler.observe(torch.arange(len(losses)), losses)
    sampler.gather()
    sampler.end_epoch()
    return sampler


def shares(sampler: HardExamples, size: int, epochs: int = 400) -> np.ndarray:
    drawn = torch.cat([sampler.order(torch.zeros(size), generator(seed)) for seed in range(epochs)])
    return torch.bincount(drawn, minlength=size).numpy()


LOSSES = torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0] * 20)


@pytest.mark.proves(
    "sampler=hard_examples", reference="the probabilities of the formula, by a chi-square test", tolerance="p > 0.001"
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"power": 2.0}, {"power": 3.0, "floor": 1.0, "uniform": 0.05}, {"power": 0.0},
     {"floor": 0.0, "uniform": 0.01}, {"floor": 3.0, "uniform": 0.7}, {"uniform": 1.0}, {"power": 9.0, "uniform": 0.1}],
)  # fmt: skip
def test_draws_follow_the_losses(settings):
    sampler = after_losses(LOSSES, **settings)
    power, floor, uniform = (
        settings.get(name, default) for name, default in (("power", 1.0), ("floor", 0.1), ("uniform", 0.2))
    )
    hardness = (LOSSES.double().numpy() + floor) ** power
    expected = (1 - uniform) * hardness / hardness.sum() + uniform / 100
    counts = shares(sampler, 100)
    assert chisquare(counts, expected * counts.sum()).pvalue > 1e-3


def test_one_sample_that_is_much_harder_than_all_others_is_drawn_as_often_as_it_should_be():
    losses = torch.full((3000,), 1e-3)
    losses[17] = 1e5
    counts = shares(after_losses(losses, floor=0.0), 3000, epochs=3)
    assert binomtest(int(counts[17]), int(counts.sum()), 0.8 + 0.2 / 3000 - 0.8 * 3e-5).pvalue > 1e-3
    assert (counts > 0).sum() > 1000  # the uniform fraction


def test_samples_that_are_all_learnt_come_uniformly():
    assert chisquare(shares(after_losses(torch.zeros(50), floor=0.0), 50)).pvalue > 1e-3


@pytest.mark.proves("sampler=hard_examples", reference="running means computed by hand", tolerance="exact")
def test_the_running_mean_by_hand():
    sampler = after_losses(torch.tensor([1.0, 2.0, 4.0, float("nan")]), smoothing=0.75)
    assert sampler.state_dict()["running"][:3].tolist() == [1, 2, 4]
    sampler.observe(torch.tensor([0, 0, 2, 3]), torch.tensor([3.0, 5.0, 0.0, 8.0]))
    sampler.observe(torch.tensor([2, 1]), torch.tensor([float("inf"), float("nan")]))
    assert sampler.state_dict()["running"][:3].tolist() == [1, 2, 4]
    sampler.gather()
    sampler.end_epoch()
    # 0.75 * 1 + 0.25 * 4; not observed; 0.75 * 4 + 0.25 * 0; its first
    assert sampler.state_dict()["running"].tolist() == [1.75, 2.0, 3.0, 8.0]


def test_samples_that_were_never_observed_count_as_the_others_do_in_the_mean():
    sampler = HardExamples(uniform=0.01, floor=0.0)
    sampler.order(torch.zeros(4), generator(0))
    sampler.observe(torch.tensor([0, 1]), torch.tensor([1.0, 3.0]))
    sampler.gather()
    sampler.end_epoch()
    counts = shares(sampler, 4, epochs=2000)
    expected = 0.99 * np.array([1, 3, 2, 2]) / 8 + 0.01 / 4
    assert chisquare(counts, expected * counts.sum()).pvalue > 1e-3


def test_neither_the_order_of_the_calls_nor_the_ranks_leave_a_trace():
    indices = torch.randint(50, (400,), generator=generator(1))
    losses = torch.rand(400, generator=generator(2)) * 7
    whole = HardExamples()
    whole.order(torch.zeros(50), generator(0))
    whole.observe(indices, losses)
    whole.gather()
    mixed = torch.randperm(400, generator=generator(3))
    ranks = [HardExamples() for _ in range(3)]
    for rank in ranks:
        rank.order(torch.zeros(50), generator(0))
    for half in (mixed[:123], mixed[123:]):  # two reductions in an epoch
        for rank, part in zip(ranks, half.chunk(3), strict=True):
            for few in part.split(7):
                rank.observe(indices[few], losses[few])
        total = sum(rank._local for rank in ranks)
        for rank in ranks:
            rank.gather(lambda mine, total=total: total)
    for rank in ranks:
        assert torch.equal(rank.state_dict()["seen"], whole.state_dict()["seen"])
    for sampler in (whole, *ranks):
        sampler.end_epoch()
        assert torch.equal(sampler.state_dict()["running"], whole.state_dict()["running"])
        assert torch.equal(sampler.order(torch.zeros(50), generator(5)), whole.order(torch.zeros(50), generator(5)))
    mean = torch.stack([losses[indices == i].double().mean() for i in range(50)])
    torch.testing.assert_close(whole.state_dict()["running"], mean.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("stop", [0, 1, 37, 99, 100])
def test_an_epoch_that_is_resumed_has_the_same_order_and_leaves_the_same_state(stop):
    def losses(epoch: int, rows: torch.Tensor) -> torch.Tensor:
        return torch.rand(300, generator=generator(epoch))[rows] * 5

    def epoch_of(sampler: HardExamples, epoch: int, start: int, end: int) -> torch.Tensor:
        order = sampler.order(TARGETS, generator(1000 + epoch))
        for rows in torch.arange(start, end).split(10):
            sampler.observe(order[rows], losses(epoch, rows))
        return order

    straight, orders = HardExamples(), []
    for epoch in range(4):
        orders.append(epoch_of(straight, epoch, 0, 100))
        straight.gather()
        straight.end_epoch()
    first = HardExamples()
    for epoch in range(2):
        epoch_of(first, epoch, 0, 100)
        first.gather()
        first.end_epoch()
    epoch_of(first, 2, 0, stop)
    first.gather()
    state = {name: value.clone() for name, value in first.state_dict().items()}
    second = HardExamples()
    second.load_state_dict(state)
    assert torch.equal(epoch_of(second, 2, stop, 100), orders[2])
    second.gather()
    second.end_epoch()
    assert torch.equal(epoch_of(second, 3, 0, 100), orders[3])
    second.gather()
    second.end_epoch()
    assert torch.equal(second.state_dict()["running"], straight.state_dict()["running"])
    assert not second.state_dict()["seen"].any()
    assert torch.equal(first.state_dict()["running"], state["running"])  # the saved state is not modified


def test_the_last_bits_of_the_losses_hardly_ever_change_a_draw():
    losses = torch.rand(20_000, generator=generator(0)) + 1e-3
    one = after_losses(losses)
    other = after_losses(losses * (1 + 1e-6 * torch.randn(20_000, generator=generator(1))))
    same = [torch.equal(one.order(losses, generator(s)), other.order(losses, generator(s))) for s in range(10)]
    assert sum(same) >= 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"power": -1}, "power=-1: must be at least 0"), ({"power": float("inf")}, "power=inf"),
     ({"floor": -0.1}, "floor=-0.1: must be at least 0"), ({"floor": float("nan")}, "floor=nan"),
     ({"uniform": 0}, "uniform=0: must be above 0 and at most 1"), ({"uniform": 1.1}, "uniform=1.1"),
     ({"smoothing": 1}, "smoothing=1: must be at least 0 and below 1"), ({"smoothing": -0.1}, "smoothing=-0.1")],
)  # fmt: skip
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        HardExamples(**settings)
