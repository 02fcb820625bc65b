"""Samplers: the order in which the training samples are used.

`order(targets_N, generator)` returns the indices of one whole epoch, int64, on the CPU. The CPU generator is seeded
for that epoch, so that the order does not depend on how often a run was interrupted. `order` has no side effects:
called again, it returns the same. `repeats` says whether a sample may occur more than once in an epoch.

`needs_classes` (default false): targets must be class indices. The trainer passes `batch_size` to constructors that
take it: the number of samples of an optimizer step, over all ranks. A sampler that learns from losses also has
`observe`: see HardExamples.
"""

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush

import torch
from torch import Tensor

from trainer.base.checks import check_number, check_whole
from trainer.base.stateful import State
from trainer.contracts import Sampler

SumOverRanks = Callable[[Tensor], Tensor]


class Shuffle(Sampler):
    """A new uniform random permutation every epoch: every sample exactly once.

    Source: CUHK ELEG 5491, "Shuffling the training samples"; UVic PHYS 555, "SGD Algorithm with mini-batches".
    """

    repeats = False

    def order(self, targets_N: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(targets_N), generator=generator)


class Sequential(Sampler):
    """The stored order, 0 to N-1, every epoch; not random."""

    repeats = False

    def order(self, targets_N: Tensor, generator: torch.Generator) -> Tensor:
        return torch.arange(len(targets_N))


class WithReplacement(Sampler):
    """N independent uniform draws from N samples: an epoch contains about 63 % of them, some several times."""

    repeats = True

    def order(self, targets_N: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randint(len(targets_N), (len(targets_N),), generator=generator)


class FreshBatch(Sampler):
    """Every step draws K of the N samples without replacement, independently of other steps.

    An epoch is still N samples long, so its last batch may be smaller. `batch_size` K is that of an optimizer step.

    Source: Optimization (Part 2), "Stochastic Gradient Descent", I = choose({1, ..., N}, K) in each iteration.
    """

    repeats = True
    draws_batches = True

    def __init__(self, batch_size: int) -> None:
        check_whole("batch_size", batch_size, 1)
        self._batch_size = batch_size

    def order(self, targets_N: Tensor, generator: torch.Generator) -> Tensor:
        size = len(targets_N)
        num_steps = -(-size // self._batch_size)
        if 2 * self._batch_size > size:
            steps = [torch.randperm(size, generator=generator)[: self._batch_size] for _ in range(num_steps)]
            return torch.cat(steps)[:size]
        drawn_SK = torch.randint(size, (num_steps, self._batch_size), generator=generator)
        # Redraw entries that equal an earlier one of their step. A rejected value always occurs further left, so that
        # each entry is uniform over the values that do not.
        while len(again := _repeated(drawn_SK)):
            drawn_SK.view(-1)[again] = torch.randint(size, (len(again),), generator=generator)
        return drawn_SK.flatten()[:size]


def _repeated(drawn_SK: Tensor) -> Tensor:
    """Flat indices of the entries that equal an entry to their left in the same row."""
    values, positions = drawn_SK.sort(dim=1, stable=True)
    rows, previous = (values[:, 1:] == values[:, :-1]).nonzero(as_tuple=True)
    return rows * drawn_SK.shape[1] + positions[rows, previous + 1]


class ClassInterleaved(Sampler):
    """Every sample exactly once, in random order, without neighbours of the same class if possible.

    Classes are spread over the epoch in proportion to their sizes. If one class has m samples and m > N - m + 1, equal
    neighbours are unavoidable: their number is the minimum, 2m - N - 1, and they are spread evenly over the epoch in
    runs of (nearly) equal length.

    Source: CUHK ELEG 5491, "Shuffling the training samples" (successive examples never or rarely belong to the same
    class).
    """

    repeats = False
    needs_classes = True

    def order(self, targets_N: Tensor, generator: torch.Generator) -> Tensor:
        shuffled_N = torch.randperm(len(targets_N), generator=generator)
        sequence_N = _spread(torch.bincount(targets_N).tolist(), generator)
        order_N = torch.empty_like(shuffled_N)
        order_N[sequence_N.argsort(stable=True)] = shuffled_N[targets_N[shuffled_N].argsort(stable=True)]
        return order_N


def _spread(counts: list[int], generator: torch.Generator) -> Tensor:
    """Class labels, each `counts` times, with as few equal neighbours as possible."""
    largest, total = max(range(len(counts)), key=counts.__getitem__), sum(counts)
    num_runs = min(counts[largest], total - counts[largest] + 1)  # of the largest class, separated by others
    runs = [*counts[:largest], num_runs, *counts[largest + 1 :]]
    sequence = torch.tensor(list(_alternating(runs, generator)))
    lengths = torch.ones_like(sequence)
    positions = torch.arange(num_runs + 1) * counts[largest] // max(1, num_runs)
    lengths[sequence == largest] = positions.diff()
    return sequence.repeat_interleave(lengths)


def _alternating(counts: list[int], generator: torch.Generator) -> Iterator[int]:
    """Yield labels without equal neighbours; no count may exceed half of the total, rounded up.

    The k-th of a class's n samples is due at (k + u) / n, u uniform in [0, 1). The earliest one comes next, unless its
    class is that of the previous one. A class with more than half of the remaining samples must come next; there is at
    most one, and it was not the previous one.
    """
    jitter = iter(torch.rand(sum(counts), generator=generator, dtype=torch.float64).tolist())
    due = [[(k + next(jitter)) / count for k in range(count)] for count in counts]
    heap = [(times[0], label) for label, times in enumerate(due) if times]
    heapify(heap)
    left = list(counts)
    with_left: dict[int, set[int]] = {}  # classes by their number of remaining samples
    for label, count in enumerate(counts):
        with_left.setdefault(count, set()).add(label)
    most, previous = max(counts), -1
    for num_left in range(sum(counts), 0, -1):
        while not with_left[most]:
            most -= 1
        if 2 * most > num_left:
            (label,) = with_left[most]
            heap.remove((due[label][counts[label] - most], label))
            heapify(heap)
        else:
            first = heappop(heap)
            label = first[1]
            if label == previous:
                label = heappop(heap)[1]
                heappush(heap, first)
        with_left[left[label]].discard(label)
        left[label] -= 1
        with_left.setdefault(left[label], set()).add(label)
        if left[label]:
            heappush(heap, (due[label][counts[label] - left[label]], label))
        previous = label
        yield label


class ClassBalanced(Sampler):
    """N independent draws: a uniform class, then a uniform sample of that class.

    Every class that occurs is equally frequent in expectation: p_i = 1 / (C n_c(i)).
    """

    repeats = True
    needs_classes = True

    def order(self, targets_N: Tensor, generator: torch.Generator) -> Tensor:
        by_class_N = targets_N.argsort(stable=True)
        counts_C = torch.bincount(targets_N)
        starts_C = counts_C.cumsum(0) - counts_C
        present = counts_C.nonzero().flatten()
        size = len(targets_N)
        drawn_N = present[torch.randint(len(present), (size,), generator=generator)]
        fraction_N = torch.rand(size, generator=generator, dtype=torch.float64)
        return by_class_N[starts_C[drawn_N] + (fraction_N * counts_C[drawn_N]).long()]


LOSS_UNIT, MOST_LOSS = 2.0**-30, 2.0**20  # losses are summed as integer multiples of LOSS_UNIT
_ROUNDS = 256


class HardExamples(Sampler):
    """Draws samples with a large loss more often: N independent draws per epoch, with

        p_i = (1 - uniform) (loss_i + floor)^power / sum_j (loss_j + floor)^power + uniform / N

    loss_i is the sample's running mean: after an epoch, `smoothing` times the previous value plus (1 - smoothing)
    times the mean of the losses observed in it. The first observation is taken as it is; a sample without one gets the
    mean of the others. The first epoch, before any observation, is a plain shuffle. Losses are clamped to 0..2^20;
    non-finite ones are ignored.

    Losses take effect only at the end of their epoch: an epoch's order is a function of the state at its start and of
    the generator, and `state_dict` at any time holds that state and the sums so far. The sums are integers, so that
    the result depends neither on the order of the calls nor on which rank saw which sample.

    Source: CUHK ELEG 5491, "Shuffling the training samples" (present examples with a large error more frequently).
    Raises ValueError for `power`, `floor` below 0, `uniform` outside (0, 1], `smoothing` outside [0, 1).
    """

    repeats = True

    def __init__(self, power: float = 1.0, floor: float = 0.1, uniform: float = 0.2, smoothing: float = 0.5) -> None:
        for name, value in (("power", power), ("floor", floor)):
            check_number(name, value, 0, must="at least 0, and finite")
        check_number("uniform", uniform, 0, 1, above=True, must="above 0 and at most 1")
        check_number("smoothing", smoothing, 0, 1, below=True, must="at least 0 and below 1")
        self._power, self._floor, self._uniform, self._smoothing = power, floor, uniform, smoothing
        self._running = torch.empty(0)  # float32 (N,), NaN: unknown
        # sums in LOSS_UNIT and counts of this epoch, int64 (2, N): over all ranks, and of this rank since `gather`
        self._seen = self._local = torch.empty(2, 0, dtype=torch.int64)

    def order(self, targets_N: Tensor, generator: torch.Generator) -> Tensor:
        size = len(targets_N)
        self._begin(size)
        known = self._running.isfinite()
        if not known.any():
            return torch.randperm(size, generator=generator)
        losses = self._running.double()
        base = losses.where(known, losses[known].mean()) + self._floor
        # relative to the largest, so that a large power neither overflows nor makes all of them 0
        hardness = (base / base.max().clamp(min=torch.finfo(base.dtype).tiny)) ** self._power
        order = torch.randint(size, (size,), generator=generator)
        by_loss = torch.rand(size, generator=generator, dtype=torch.float64) >= self._uniform
        if hardness.max() == 0:  # all losses and floor are 0
            return order
        open_K = by_loss.nonzero().flatten()
        # Rejection sampling: a loss that differs in its last bit changes only the draws that it decides. If a few
        # samples are much harder than all others, draws still open after many rounds use the inverse distribution.
        for _ in range(_ROUNDS):
            level_K = torch.rand(len(open_K), generator=generator, dtype=torch.float64) * hardness.max()
            open_K = open_K[level_K >= hardness[order[open_K]]]
            if not len(open_K):
                return order
            order[open_K] = torch.randint(size, (len(open_K),), generator=generator)
        ends = hardness.cumsum(0)
        level_K = torch.rand(len(open_K), generator=generator, dtype=torch.float64) * ends[-1]
        order[open_K] = torch.searchsorted(ends, level_K, right=True).clamp(max=size - 1)
        return order

    def observe(self, indices_K: Tensor, losses_K: Tensor) -> None:
        """Record losses of samples of this epoch that this rank has seen, in any order.

        Does not wait for the device: sums stay on the device of the losses. Call it after `order` or
        `load_state_dict`.
        """
        if self._local.device != losses_K.device:
            self._local = self._local.to(losses_K.device, non_blocking=True)
        losses_K = losses_K.detach().float()
        valid_K = losses_K.isfinite()
        units_K = losses_K.where(valid_K, 0).clamp(0, MOST_LOSS).div(LOSS_UNIT).round().long()
        self._local.index_add_(
            1, indices_K.to(self._local.device, non_blocking=True), torch.stack([units_K, valid_K.long()])
        )

    def gather(self, sum_over_ranks: SumOverRanks = lambda tensor: tensor) -> None:
        """Combine the observations of all ranks, which must all call this; `sum_over_ranks` sums an int64 tensor over
        them.

        Must be called before `state_dict` and `end_epoch`; further calls are harmless.
        """
        self._seen = self._seen + sum_over_ranks(self._local).cpu()
        self._local = torch.zeros_like(self._local)

    def end_epoch(self) -> None:
        """Update the running means with the losses of the epoch."""
        sums, counts = self._seen
        mean = sums.double() / counts * LOSS_UNIT  # NaN if nothing was observed
        running = self._running.double()
        folded = torch.where(running.isnan(), mean, self._smoothing * running + (1 - self._smoothing) * mean)
        self._running = torch.where(counts > 0, folded, running).float()
        self._seen = torch.zeros_like(self._seen)

    def state_dict(self) -> dict[str, Tensor]:
        return {"running": self._running, "seen": self._seen}

    def load_state_dict(self, state: State) -> None:
        """Restore the same state on every rank."""
        self._running, self._seen = state["running"].clone(), state["seen"].clone()
        self._local = torch.zeros_like(self._seen)

    def _begin(self, size: int) -> None:
        """Allocate the state for `size` samples, unless it exists."""
        if len(self._running) != size:
            self._running = torch.full((size,), float("nan"))
            self._seen = torch.zeros(2, size, dtype=torch.int64)
            self._local = torch.zeros(2, size, dtype=torch.int64)
