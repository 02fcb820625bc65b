"""Every sampler and augmentation in a run: resumed at any step, sharded over ranks, and reported if slow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.training.loop
import trainer.training.throughput
from tests.parallelism.harness import advance, curve, difference, make, spawn, state_of
from trainer import assemble, compose, fit
from trainer.base.errors import ConfigurationError
from trainer.contracts import Augmentation, adapt
from trainer.storage import checkpoint
from trainer.training.state import capture, restore
from trainer.training.throughput import Throughput

FOLDER = Path(__file__).parents[2] / "configs"
SMALL = ["data=digits", "model=mlp", "model.hidden=[16]", "batch_size=64", "limit_batches=6", "epochs=5", "threads=1"]
IN_TURN = {  # options with state or tables that an interruption might affect
    group: sorted(path.stem for path in (FOLDER / group).glob("*.yaml")) for group in ("sampler", "augmentation")
}
OPTIONS = [f"{group}={option}" for group, options in IN_TURN.items() for option in options]


def interrupted(overrides: list[str], steps: int, path: Path) -> dict[str, Any]:
    """18 steps; the last ones are taken by another run that has loaded a checkpoint."""
    run = make(overrides)
    losses = advance(run, steps)
    checkpoint.save(path, capture(run))
    again = make(overrides)
    restore(again, checkpoint.load(path))
    return {"losses": losses + advance(again, 18 - steps), **state_of(again)}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_interrupted_anywhere_ends_with_the_same_bits(option: str, tmp_path: Path) -> None:
    overrides = [*SMALL, option]
    run = make(overrides)
    whole = {"losses": advance(run, 18), **state_of(run)}
    for steps in (3, 6, 11):  # within an epoch, at its end, in the next one
        assert difference(whole, interrupted(overrides, steps, tmp_path / "last.pt")) == {
            "losses": 0.0, "model": 0.0, "optimizer": 0.0,
        }  # fmt: skip


SHARED = ["sampler=hard_examples", "augmentation=cutmix"]


@pytest.mark.parametrize(
    "option", [pytest.param(o, marks=[] if o in SHARED else [pytest.mark.slow]) for o in OPTIONS if o[-4:] != "none"]
)
def test_two_ranks_see_what_one_device_sees(option: str) -> None:
    overrides = [*(o for o in SMALL if "epochs" not in o), option, "optimizer=momentum"]
    alone = curve(overrides, 18, double=True)
    for rank in spawn(2, curve, [*overrides, "parallelism=ddp", "parallelism.devices=2"], 18, True):
        assert max(difference(alone, rank).values()) < 1e-9


def test_hard_examples_come_more_often_once_they_are_known() -> None:
    run = make([*(o for o in SMALL if "batch" not in o), "sampler=hard_examples", "sampler.power=4", "batch_size=32"])
    first = [batch.indices for batch in run.batches.epoch(0)]
    assert len(torch.cat(first).unique()) == len(run.splits.train)  # a plain shuffle
    advance(run, len(first))
    losses = run.batches.state_dict(lambda value: value)["running"]  # type: ignore[index]
    drawn = torch.bincount(torch.cat([batch.indices for batch in run.batches.epoch(1)]), minlength=len(losses))
    hardest = losses.topk(len(losses) // 10).indices
    assert drawn[hardest].float().mean() > 1.5 * drawn.float().mean()


class Clock:
    """A clock that tests advance, independent of the machine's speed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(trainer.training.throughput, "time", self)

    def perf_counter(self) -> float:
        return self.now


class Slow:
    """An augmentation that takes time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def draw(self, num_samples: int, input_shape: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"nothing": torch.zeros(num_samples)}

    def __call__(self, images: torch.Tensor, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        self.clock.now += 0.6
        return images


@pytest.mark.parametrize("every", ["1step", "1000step"])  # the second: read once, at the end
def test_a_loop_that_waits_for_data_says_so_once(
    every: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, do_step = Clock(monkeypatch), trainer.training.loop.train_step

    def step(run: Any, batch: Any) -> None:
        do_step(run, batch)
        clock.now += 0.05

    monkeypatch.setattr(trainer.training.loop, "train_step", step)
    run = assemble(compose([*SMALL, f"every.log={every}"]), tmp_path)
    run.batches._augmentation = adapt("augmentation", Augmentation, Slow(clock))
    fit(run)
    lines = [line for line in capsys.readouterr().out.splitlines() if "waiting for data" in line]
    assert len(lines) == 1
    assert "a cheaper augmentation, more threads or a GPU would help" in lines[0]
    percent = int(lines[0].partition("%")[0].split()[-1])
    assert 50 < percent < 100


def test_only_long_waiting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def reported(*readings: tuple[float, float]) -> float | None:
        throughput = Throughput()
        throughput.since = clock.now
        for waited, elapsed in readings:
            throughput.waited = waited
            clock.now += elapsed
            throughput.read()
        return throughput.excessive_wait()

    assert reported((9.0, 10.0)) is None  # the first reading, while workers start
    assert reported((0.0, 1.0), (1.0, 1.5)) is None  # too short to tell
    assert reported((0.0, 1.0), (0.9, 5.0)) is None
    assert reported((0.0, 1.0), (1.0, 2.0), (0.5, 2.0)) == pytest.approx(1.5 / 4)


def test_in_the_end_all_waiting_counts_but_for_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def reported(*steps: tuple[float, float]) -> float | None:
        throughput = Throughput()
        batches = iter(range(len(steps)))
        for waited, worked in steps:
            before = clock.now
            throughput.await_next(Waited(batches, clock, waited))  # type: ignore[arg-type]
            assert clock.now == before + waited
            clock.now += worked
        fraction = throughput.excessive_wait(at_end=True)
        assert throughput.excessive_wait(at_end=True) is None
        return fraction

    assert reported() is None
    assert reported((9.0, 10.0)) is None  # the first batch, while workers start
    assert reported((9.0, 0.5), (1.0, 0.4)) is None  # too short to tell
    assert reported((9.0, 2.0), (0.4, 2.0)) is None
    assert reported((9.0, 1.0), (0.6, 1.0)) == pytest.approx(0.6 / 2.6)
    assert reported((9.0, 1.0), (0.7, 1.0), (0.3, 1.0)) == pytest.approx(1.0 / 4)


class Waited:
    """A slow iterator."""

    def __init__(self, items: Iterator[int], clock: Clock, seconds: float) -> None:
        self.items, self.clock, self.seconds = items, clock, seconds

    def __next__(self) -> int:
        self.clock.now += self.seconds
        return next(self.items)


def test_an_operation_is_added_on_the_command_line() -> None:
    override = "+augmentation.blur={_target_: trainer.augmentation.GaussianBlur, kernel_size: 3}"
    run = make([*SMALL, "augmentation=crop", override])
    assert list(run.batches._augmentation.operations) == ["crop", "blur"]
    for wrong, line in (
        (override.replace("kernel_size", "kernelsize"), "augmentation.blur.kernelsize=3: .*kernel_size"),
        (override.replace("GaussianBlur", "GausianBlur"), "augmentation.blur._target_=.*GaussianBlur"),
        ("+augmentation.blur=2", "augmentation.blur.*must be an operation"),
    ):
        with pytest.raises(ConfigurationError, match=line):
            make([*SMALL, "augmentation=crop", wrong])
    assert list(make([*SMALL, "augmentation=none", override]).batches._augmentation.operations) == ["blur"]


def test_a_crop_beyond_the_image_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^augmentation\.crop\.padding=1000000000: must be from 0 to 256"):
        make([*SMALL, "augmentation=crop", "augmentation.crop.padding=1000000000"])
