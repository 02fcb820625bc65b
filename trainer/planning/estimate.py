"""Estimates time and memory of a run from a few real steps on random samples."""

import itertools
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from trainer.assembly.assemble import build_run
from trainer.assembly.torch_settings import torchs_own_threads
from trainer.base.capabilities import extra_bytes_of
from trainer.base.rank import RankInfo, rank_info, take
from trainer.base.timeline import Timeline
from trainer.configuration.blueprint import Blueprint
from trainer.configuration.components import build_component
from trainer.contracts import Augmentation
from trainer.data import DataFacts, Part, Splits
from trainer.parallelism.single import Single
from trainer.parallelism.sizes import Cost, Step, layers_of
from trainer.parallelism.strategy import Strategy
from trainer.planning.process_memory import Peak
from trainer.planning.timing import Spread, Waiting, scaled, spread
from trainer.training.batches import Batch
from trainer.training.evaluation import evaluate
from trainer.training.evaluation_batches import evaluation_size
from trainer.training.run import Run
from trainer.training.step import train_step

_PROBE = 8
_STEPS_WANTED = 3
_FORWARD = 1 / 3  # of a step
_EVALUATIONS = 3
_MAX_STEPS_OF_DATA, _MAX_BYTES = 32, 64 << 20
_OUTPUTS = 64 << 20  # of log, TensorBoard, checks before the run and pictures at its end, as measured


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes of a run, scaled from `measured_steps` steps of `measured_samples` samples.

    `evaluation_seconds` is for the whole validation split. `activations` are the tensors that the forward pass of one
    micro-batch saves for the backward pass. `data` is the memory of all splits with their targets. `more` is what the
    measurement took beyond these: temporary memory of operations and of an evaluation, workspaces of libraries, pages
    that the allocator keeps, and what a run's outputs take (None: not known on this system). Python, torch and other
    libraries are not included. `averages` are those of the weights; `own_best` is the size of a `best.pt` that is not
    part of `last.pt`, because averaged weights are evaluated.
    `reading_seconds` is for one photograph in one process, if photographs are read again in each epoch (else None); no
    other time includes it. With `keeps_undo`, there is a copy of weights and optimizer state for undoing a closure
    optimizer's step. `waiting` is the fraction of the time in which other programs had the processor.
    """

    measured_steps: int
    measured_samples: int
    step: Spread
    evaluation_seconds: float
    weights: int
    gradients: int
    optimizer: int
    activations: int
    data: int
    averages: int = 0
    own_best: int = 0
    reading_seconds: float | None = None
    keeps_undo: bool = False
    more: int | None = None
    waiting: float = 0.0

    @property
    def step_seconds(self) -> float:
        return self.step.median

    @property
    def undo(self) -> int:
        return self.weights + self.optimizer if self.keeps_undo else 0

    @property
    def copy(self) -> int:
        """The copy that a checkpoint is written from."""
        return self.weights + self.optimizer + self.averages + self.own_best

    @property
    def most_bytes(self) -> int | None:
        """The bytes with `more`, and with the copy that a checkpoint is written from."""
        return None if self.more is None else self.bytes + self.more + self.copy

    @property
    def lasting(self) -> int:
        """The bytes that a run keeps from its first step on, besides the data."""
        return self.weights + self.gradients + self.optimizer + self.averages + self.undo

    @property
    def bytes(self) -> int:
        return self.lasting + self.activations + self.data


def estimate(blueprint: Blueprint, seconds: float = 0.6) -> Estimate:
    """Run optimizer steps of this run for about `seconds`, and evaluations as long, on one device and random samples.

    If fewer than three steps fit into that time, a smaller batch is used and its time scaled up. Nothing is written,
    and at most a few photographs of the run's data are read. Raises ConfigurationError or DataError, as assembling
    the run would, and OutOfMemory.
    """
    # compiling would take longer than the measurement
    plain = replace(blueprint, config=blueprint.config | {"compile": False}, strategy=Single())
    waiting, peak = Waiting(), Peak(blueprint.device)
    num_probe = min(_PROBE, blueprint.batch_size)
    peak.begin()
    of_probe = _time_steps(_run(plain, num_probe), seconds / 10)[0].median
    kept = peak.kept()
    peak.begin()
    num_samples = min(blueprint.batch_size, max(num_probe, int(num_probe * seconds / _STEPS_WANTED / of_probe)))
    run = _run(plain, num_samples, int(num_probe * seconds / _EVALUATIONS / _FORWARD / of_probe))
    step, num_steps = _time_steps(run, seconds)
    of_steps = peak.growth()
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    weights = _bytes([*run.model.parameters(), *run.model.buffers()])
    found = Estimate(
        measured_steps=num_steps,
        measured_samples=num_samples,
        step=scaled((num_probe, of_probe), (num_samples, step), blueprint.batch_size),
        evaluation_seconds=0.0,
        weights=weights,
        gradients=_bytes(parameters),
        optimizer=_bytes_of_optimizer(run.optimizer, parameters),
        activations=_activations(run, blueprint.micro_batch),
        data=_data_bytes(blueprint),
        averages=0 if run.averaging is None else _bytes(parameters),
        own_best=0 if run.averaged is None else weights,
        reading_seconds=_reading_seconds(blueprint),
        keeps_undo=run.needs_closure and run.keeps_undo,
    )
    peak.begin()
    per_sample = _time_evaluation(run, seconds) / len(run.splits.val)
    more = _more(found, run, blueprint, (kept, of_steps, peak.growth()))
    return replace(
        found, evaluation_seconds=per_sample * blueprint.facts.num_val, more=more, waiting=waiting.fraction()
    )


def _more(
    found: Estimate, run: Run, blueprint: Blueprint, grown: tuple[int | None, int | None, int | None]
) -> int | None:
    """Return how much more than the tensors in `found` the whole batch takes.

    `run` has been measured; memory has `grown` for good by an earlier run, and by its own steps and its evaluation.
    """
    kept, of_steps, of_evaluation = grown
    if kept is None or of_steps is None or of_evaluation is None:
        return None
    data = [run.batches.images, run.splits.val.images_NCHW, run.splits.train.targets_N, run.splits.val.targets_N]
    of_data = _bytes(tensor for tensor in _tensors(data) if tensor.device.type == run.device.type)
    whole = min(blueprint.facts.num_val, evaluation_size(blueprint, blueprint.micro_batch))
    of_step = max(0, of_steps - found.lasting - of_data)
    # up to two copies of the weights are temporary memory of the optimizer; for an evaluation, layers are rearranged
    # one after the other, and averages take the place of the weights
    largest = max((p.nbytes for p in run.model.parameters()), default=0)
    return (
        kept
        + _OUTPUTS
        + beyond_tensors(
            found.activations,
            (of_step, 2 * found.weights, run.blueprint.micro_batch, blueprint.micro_batch),
            (of_evaluation, found.own_best + largest, len(run.splits.val), whole),
        )
    )


def beyond_tensors(activations: int, *parts: tuple[int, int, int, int]) -> int:
    """Return the bytes to add to those of tensors.

    `parts`: what each part of a run took, how much of it at most does not grow with the samples, for how many it was
    measured, and how many there will be. The allocator does not always reuse for one what another has freed, so all are
    added; the activations of a step are among the tensors already.
    """
    total = 0
    for taken, fixed, measured, whole in parts:
        constant = min(taken, fixed) if measured < whole else 0
        total += constant + (taken - constant) * whole // max(1, measured)
    return max(0, total - activations)


def rank_seconds(blueprint: Blueprint, found: Estimate, cost: Cost, seconds: float = 0.3) -> float:
    """Return the seconds that a rank computes in a step, measured with its threads and its number of samples.

    Ranks of this machine that have more threads than it has cores take turns.
    """
    ranks, parts = blueprint.strategy.world_size, -(-blueprint.batch_size // blueprint.micro_batch)
    threads = blueprint.config["threads"] or max(1, torchs_own_threads() // ranks)
    own = blueprint.batch_size / cost.speed_up
    micro_batch = max(2, round(min(own, found.measured_samples) / parts))  # batch norm needs two samples
    config = blueprint.config | {"compile": False, "threads": threads}
    alone = replace(blueprint, config=config, strategy=Single(), micro_batch=micro_batch)
    before = torch.get_num_threads()
    per_step = _time_steps(_run(alone, micro_batch * parts), seconds)[0].median
    torch.set_num_threads(before)
    turns = max(1.0, ranks * threads / len(os.sched_getaffinity(0)))
    return per_step * own / (micro_batch * parts) * turns


def _bytes_of_optimizer(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> int:
    """Return the bytes of its state, or of a step that needs more, such as a Hessian."""
    count, size = sum(p.numel() for p in parameters), max((p.element_size() for p in parameters), default=4)
    return max(_bytes(_tensors(optimizer.state_dict())), extra_bytes_of(optimizer, count, size))


def cost_of(blueprint: Blueprint, model: nn.Module) -> Cost | None:
    """Return the cost predicted by the run's strategy; `model` is on the meta device.

    None for one device, for a strategy without a prediction, and for a model that cannot run on the meta device.
    """
    if blueprint.strategy.world_size == 1:
        return None
    try:
        layers = layers_of(model, blueprint.facts.input_shape)
    except RuntimeError:
        return None
    activation_bytes = 4 if blueprint.dtype is None else blueprint.dtype.itemsize
    step = Step(layers, blueprint.batch_size, blueprint.micro_batch, activation_bytes=activation_bytes)
    return blueprint.strategy.cost(step, model)


def _run(blueprint: Blueprint, num_samples: int, num_val: int = 0) -> Run:
    """Build the run with `num_samples` per step and random data, and at least `num_val` samples for validation if a
    batch of an evaluation has as many."""
    facts = blueprint.facts
    values_per_sample = max(1, torch.Size(facts.input_shape).numel())
    most = max(num_samples, min(_MAX_STEPS_OF_DATA * num_samples, _MAX_BYTES // values_per_sample))
    generator = torch.Generator().manual_seed(0)
    train = _random_part(facts, min(facts.num_train, most), generator)
    num_val = min(evaluation_size(blueprint, blueprint.micro_batch), max(num_val, 2 * num_samples))
    val = _random_part(facts, min(facts.num_val, num_val), generator)
    smaller = replace(
        blueprint, batch_size=num_samples, micro_batch=min(num_samples, blueprint.micro_batch),
        timeline=Timeline(len(train.targets_N), num_samples, blueprint.timeline.moments),
    )  # fmt: skip
    run = build_run(smaller, Splits(train, val, val), fit=False)
    run.preprocessing.fit_roughly(train.images_NCHW)
    run.preprocessing.to(run.device)
    return run


def _random_part(facts: DataFacts, count: int, generator: torch.Generator) -> Part:
    shape = (count, *facts.input_shape)
    if facts.kind == "features":
        images_NCHW = torch.randn(shape, generator=generator)
    else:
        images_NCHW = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    if facts.task == "regression":
        return Part(images_NCHW, torch.randn(count, facts.num_outputs, generator=generator))
    return Part(images_NCHW, torch.randint(facts.num_outputs, (count,), generator=generator))


def _time_steps(run: Run, seconds: float) -> tuple[Spread, int]:
    """Return seconds per step and the number of timed steps (at least one); the first step is a warm-up."""
    run.model.train()
    batches = _endless(run)
    train_step(run, next(batches))
    _wait(run)
    start, count, times = time.perf_counter(), 0, list[float]()
    before, counted = start, 0
    for batch in batches:
        train_step(run, batch)
        count += 1
        if run.device.type != "cpu" and count & (count - 1):
            continue  # synchronizing after each step would slow it down: only after 1, 2, 4, 8, ...
        _wait(run)
        now = time.perf_counter()
        times += [(now - before) / (count - counted)] * (count - counted)
        before, counted = now, count
        if now - start >= seconds:
            return spread(times), count
    raise AssertionError("the batches never end")


def _endless(run: Run) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from run.batches.epoch(epoch)


def _time_evaluation(run: Run, seconds: float) -> float:
    """Return the median time of up to two evaluations, after one that warms up, unless they take long."""
    times: list[float] = []
    while len(times) < _EVALUATIONS and sum(times) < seconds:
        start = time.perf_counter()
        evaluate(run, run.splits.val, "val")
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:] or times)


def _wait(run: Run) -> None:
    if run.device.type != "cpu":
        torch.accelerator.synchronize(run.device)


def _activations(run: Run, num_samples: int) -> int:
    """Return the bytes that autograd saves for `num_samples`, extrapolated linearly from 2 and 4 samples, because
    some of them (weights in half precision, statistics) do not depend on the number of samples."""
    of_2, of_4 = (_saved_bytes(run, count) for count in (2, 4))
    return of_2 + (of_4 - of_2) * (num_samples - 2) // 2


def _saved_bytes(run: Run, count: int) -> int:
    part = _random_part(run.blueprint.facts, count, torch.Generator().manual_seed(0))
    assert isinstance(part.images_NCHW, Tensor)
    images = run.preprocessing(part.images_NCHW.to(run.device))
    known = {tensor.untyped_storage().data_ptr() for tensor in [*run.model.parameters(), *run.model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run.objective.data_loss(run.objective.forward(images), part.targets_N.to(run.device))
    return sum(storage.nbytes() for storage in kept.values())


def _tensors(state: object) -> Iterator[Tensor]:
    """Yield all tensors in nested mappings and sequences, such as the lists of L-BFGS."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping | list | tuple):
        for item in state.values() if isinstance(state, Mapping) else state:
            yield from _tensors(item)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _reading_seconds(blueprint: Blueprint) -> float | None:
    with as_a_rank(blueprint.strategy):
        return blueprint.data.seconds_to_read()


def _data_bytes(blueprint: Blueprint) -> int:
    facts: DataFacts = blueprint.facts
    data = blueprint.data
    count = facts.num_train + facts.num_val + facts.num_test
    image = torch.Size(facts.input_shape).numel() * (4 if facts.kind == "features" else 1)
    with as_a_rank(blueprint.strategy):
        taken = data.memory_taken()
        images = count * image if taken is None else taken
        bordered, fits = bordered_bytes(blueprint)
    if fits:
        images += bordered - facts.num_train * image
    return images + count * (4 * facts.num_outputs if facts.task == "regression" else 8)


def bordered_bytes(blueprint: Blueprint) -> tuple[int, bool]:
    """Return the bytes of the training images in the augmentation's own layout, and whether they fit into the data
    set's memory limit; 0 and False if there is no such layout."""
    facts, data = blueprint.facts, blueprint.data
    augmentation: Augmentation | None = build_component(blueprint.config, "augmentation")
    room = data.room()
    if augmentation is None or facts.kind != "images" or room is None:
        return 0, False
    needed = augmentation.border_bytes((facts.num_train, *facts.input_shape)) or 0
    return needed, 0 < needed <= room


@contextmanager
def as_a_rank(strategy: Strategy) -> Iterator[None]:
    """Context manager within which data sets report memory for one of the ranks that will share the machine."""
    if rank_info() is not None:
        yield
        return
    count = int(strategy.devices)
    take(RankInfo(0, count, 0, count), None)
    try:
        yield
    finally:
        take(None, None)
