"""Statistics of the preprocessing: computed by the main rank only, with the same bits on every rank."""

import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests import forks
from tests.parallelism.harness import in_new_run, make, spawn
from trainer import compose
from trainer.assembly import assemble, run_folder_of
from trainer.base.rank import rank_info
from trainer.configuration.resolve import resolve
from trainer.data import Digits
from trainer.parallelism import downpour
from trainer.preprocessing import ZCA, MeanImage
from trainer.training.state import capture

BASE = ["threads=1", "model=mlp", "model.hidden=[8]", "device=cpu", "batch_size=50", "steps=3"]


def rank() -> int:
    info = rank_info()
    assert info is not None
    return info.rank


def watch(kind: Any, calls: list[int]) -> None:
    """Record which ranks fit. On other ranks than the main one the result would differ."""

    def fit(self: Any, images: Any, original: Any = kind.fit) -> None:
        calls.append(rank())
        original(self, images[rank() :])

    kind.fit = fit


def inspected(strategy: str) -> tuple[list[int], dict[str, torch.Tensor]]:
    """The ranks that fit, as recorded on this one, and the statistics on this rank."""
    downpour._MAX_STORED = 1000  # smaller than the matrix
    calls: list[int] = []
    watch(ZCA, calls)
    run = make([*BASE, f"parallelism={strategy}", "preprocessing=zca"])
    state = {key: value.clone() for key, value in run.preprocessing.state_dict().items()}
    if strategy == "downpour":
        run.close()
    return calls, state


@pytest.mark.parametrize("strategy", ["ddp", "downpour"])
def test_the_main_rank_fits_and_all_have_the_same_bits(strategy: str) -> None:
    alone = ZCA()
    alone.fit(Digits().load().train.images_NCHW)
    main, other = spawn(2, inspected, strategy)
    assert (main[0], other[0]) == ([0], [])
    for _, state in (main, other):
        assert state.keys() == alone.state_dict().keys()
        assert all(torch.equal(value, state[key]) for key, value in alone.state_dict().items())


def resumed(strategy: str) -> list[tuple[list[int], torch.Tensor]]:
    """The ranks that fit when a run is resumed with and without a checkpoint, and the resulting mean."""
    calls: list[int] = []
    watch(MeanImage, calls)
    overrides = [*BASE, f"parallelism={strategy}", "preprocessing=mean_image"]
    state = in_new_run(0, _captured, overrides)
    state["preprocessing"]["mean"] += 1  # of a different training split
    return [in_new_run(1, _resumed, overrides, state, calls), in_new_run(2, _resumed, overrides, None, calls)]


def _captured(overrides: list[str]) -> dict[str, Any]:
    run = make(overrides)
    is_downpour = isinstance(run.strategy, downpour.Downpour)
    state = capture(run) if run.strategy.is_main or not is_downpour else {"preprocessing": {"mean": 0}}
    if is_downpour:
        run.close()
    return state


def _resumed(overrides: list[str], state: Any, calls: list[int]) -> tuple[list[int], torch.Tensor]:
    calls.clear()
    blueprint = resolve(compose(overrides))
    assemble.connect(blueprint)
    run = assemble.build_run(blueprint, fit=state is None)
    run_folder_of.continue_from(run, state if run.strategy.is_main else None, Path("nowhere"), resume=True)
    if isinstance(run.strategy, downpour.Downpour):
        run.close()
    return list(calls), run.preprocessing.state_dict()["mean"].clone()


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("downpour", marks=pytest.mark.slow)])
def test_a_run_that_goes_on_has_the_statistics_of_its_checkpoint_or_of_the_main_rank(strategy: str) -> None:
    main, other = spawn(2, resumed, strategy)
    assert [calls for calls, _ in main] == [[], [0]]
    assert [calls for calls, _ in other] == [[], []]
    assert torch.equal(main[0][1], main[1][1] + 1)
    assert all(torch.equal(own, its) for (_, own), (_, its) in zip(main, other, strict=True))


def test_a_replica_takes_the_statistics_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make([*BASE, "preprocessing=mean_image"])
    monkeypatch.setattr(MeanImage, "fit", None)  # must not be called
    mean = run.preprocessing.state_dict()["mean"]
    assert torch.equal(run.replica().preprocessing.state_dict()["mean"], mean) and len(mean) == 1


def after_a_while(strategy: str, timeout: float) -> Any:
    """Work of the main rank that takes longer than the timeout between ranks."""
    blueprint = resolve(compose([*BASE, f"parallelism={strategy}"]))
    assemble.connect(blueprint)
    together: Any = blueprint.strategy
    together.timeout = timeout
    if strategy == "ddp":
        set_timeout(together, timeout)
    else:  # the main worker may be late, but not by this much
        together._store.set(f"rank {rank()} is here", "yes")
        together._store.wait(["rank 0 is here", "rank 1 is here"])

    def make() -> dict[str, torch.Tensor]:
        time.sleep(timeout + 1)
        return {"made by": torch.tensor(rank())}

    found = together.from_main(make)
    if strategy == "downpour":
        together.close()
    else:
        set_timeout(together, 300)  # these ranks still have to synchronize at their end
    return found


def set_timeout(together: Any, seconds: float) -> None:
    set_it = getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)  # public from torch 2.14 on
    for group in (None, together._control):
        set_it(timedelta(seconds=seconds), group)


@pytest.mark.parametrize(("strategy", "timeout"), [("ddp", 1), pytest.param("downpour", 10, marks=pytest.mark.slow)])
def test_the_others_wait_as_long_as_it_takes(strategy: str, timeout: float) -> None:
    assert spawn(2, after_a_while, strategy, timeout) == [{"made by": torch.tensor(0)}] * 2


# --- through the program ----------------------------------------------------------------------------------

OWN = '''
import os
from trainer.base.errors import DataError
from trainer.base.rank import rank_info
from trainer.preprocessing import MeanImage

class Own(MeanImage):
    """Says who fits, and may fail."""
    def __init__(self, fails=False):
        super().__init__()
        self.fails = fails
    def fit(self, images):
        rank = 0 if rank_info() is None else rank_info().rank
        if len(images) > 1000:
            with open("fits", "a") as file:
                file.write(f"{rank} ")
        if self.fails and len(images) > 1000:  # not for the samples of the checks
            raise DataError("data: a.jpg: has changed")
        super().fit(images)
'''


@pytest.fixture
def train(tmp_path: Path) -> Any:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "conf/preprocessing").mkdir(parents=True)
    (tmp_path / "conf/preprocessing/own.yaml").write_text("# Own\n_target_: own.Own\nfails: false\n")
    return partial(forks.train, tmp_path)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("downpour", marks=pytest.mark.slow)])
def test_a_failure_to_fit_ends_all_ranks_with_one_line(strategy: str, train: Any, tmp_path: Path) -> None:
    overrides = ["--trust", "own", "--config-dir", "conf", "preprocessing=own", "preprocessing.fails=true"]
    more = [f"parallelism={strategy}", "parallelism.devices=2", "hydra.run.dir=run"]
    done = train(*overrides, *BASE, *more)
    assert (done.returncode, done.stderr) == (65, "error: rank 0: data: a.jpg: has changed\n")
    assert (tmp_path / "fits").read_text() == "0 "
