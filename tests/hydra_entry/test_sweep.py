"""Hydra's `--multirun`: one folder per trial, found again, resumed, and read by TensorBoard."""

import json
import signal
import time
from pathlib import Path

import pytest
import yaml

from tests.forks import shared, train
from trainer.hydra_entry.sweep_table import Trial, read_trials, table_of

TINY = ["model=linear", "epochs=1", "threads=1", "limit_batches=5"]
FILES = {"config.yaml", "overrides.yaml", "environment.json", "metrics.jsonl", "result.json", "train.log", "curves.png"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of four trials."""
    folder = tmp_path_factory.mktemp("sweep")
    done = train(folder, "-m", "optimizer=sgd,adamw", "seed=1,2", *TINY)
    assert (done.returncode, done.stderr) == (0, "")
    (found,) = (folder / "outputs" / "sweeps").iterdir()
    return found


def test_four_trials_leave_four_complete_run_folders(sweep: Path) -> None:
    trials = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert len(trials) == 4
    seen = set()
    for number, trial in enumerate(trials):
        assert trial.name.startswith(f"{number}_")
        names = {path.name for path in trial.iterdir()}
        assert names >= FILES
        assert sum(name.startswith("events.out.tfevents") for name in names) == 1
        config = yaml.safe_load((trial / "config.yaml").read_text())
        seen.add((config["choices"]["optimizer"], config["seed"]))
        result = json.loads((trial / "result.json").read_text())
        assert result["status"] == "completed"
        assert result["test"] is None  # a sweep does not evaluate the test split
    assert seen == {("sgd", 1), ("sgd", 2), ("adamw", 1), ("adamw", 2)}


def test_the_hparams_tab_shows_them_with_values(sweep: Path) -> None:
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.backend_context import Context
    from tensorboard.plugins.hparams.list_session_groups import Handler

    multiplexer = EventMultiplexer(tensor_size_guidance={"scalars": 0})
    multiplexer.AddRunsFromDirectory(str(sweep.parents[1]))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(sweep.parents[1]))
    context = Context(TBContext(data_provider=provider, multiplexer=multiplexer))
    request = api_pb2.ListSessionGroupsRequest(allowed_statuses=api_pb2.Status.values(), slice_size=100)
    groups = Handler(RequestContext(), context, "", request).run().session_groups
    rows = {
        (group.hparams["optimizer"].string_value, group.hparams["seed"].number_value): {
            value.name.tag: value.value for value in group.sessions[0].metric_values
        }
        for group in groups
    }
    assert set(rows) == {("sgd", 1), ("sgd", 2), ("adamw", 1), ("adamw", 2)}
    for trial in (path for path in sweep.iterdir() if path.is_dir()):
        config = yaml.safe_load((trial / "config.yaml").read_text())
        written = json.loads((trial / "result.json").read_text())["best"]["metrics"]["val/loss"]
        assert rows[config["choices"]["optimizer"], config["seed"]]["val/loss"] == pytest.approx(written, rel=1e-5)


def test_typing_it_again_runs_only_what_is_missing(sweep: Path) -> None:
    trials = sorted(path for path in sweep.iterdir() if path.is_dir())
    (trials[1] / "result.json").unlink()
    before = [(path / "metrics.jsonl").read_bytes() for path in trials]
    times = [(path / "curves.png").stat().st_mtime_ns for path in trials]
    done = train(sweep.parents[2], "-m", "optimizer=sgd,adamw", "seed=1,2", *TINY)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(sweep.parent.iterdir()) == [sweep]
    assert done.stdout.count("completed already") == 3
    head, *rows, where = done.stdout.splitlines()[-6:]
    assert head.split() == ["trial", "val/loss", "status", "overrides"]
    best = [json.loads((path / "result.json").read_text())["best"]["metrics"]["val/loss"] for path in trials]
    assert [row.split() for row in rows] == [
        [str(number), f"{best[number]:.4f}", "completed", f"optimizer={optimizer}", f"seed={seed}"]
        for number, (optimizer, seed) in enumerate([("sgd", 1), ("sgd", 2), ("adamw", 1), ("adamw", 2)])
    ]
    assert where == f"sweep folder: {sweep.relative_to(sweep.parents[2])}, with a run folder per trial"
    assert [(path / "metrics.jsonl").read_bytes() for path in trials] == before
    changed = [(path / "curves.png").stat().st_mtime_ns for path in trials]
    assert [a != b for a, b in zip(times, changed, strict=True)] == [False, True, False, False]


# a model that waits at its 30th batch while the file of its trial exists, or until a stop is requested
GATED = """
import time
from pathlib import Path
from torch import nn
from trainer.base.signals import stop_request

class Gated(nn.Flatten):
    def __init__(self, trial):
        super().__init__()
        self.gate, self.calls = Path(f"gate {trial}"), 0

    def forward(self, images):
        self.calls += self.training
        while self.calls == 30 and self.gate.exists() and stop_request.signum is None:
            Path("waits").touch()
            time.sleep(0.01)
        return super().forward(images)

def gated(input_shape, num_outputs, trial):
    return nn.Sequential(Gated(trial), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], num_outputs))
"""


def test_an_interrupted_trial_goes_on_where_it_stopped(tmp_path: Path) -> None:
    (tmp_path / "gated.py").write_text(GATED)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/gated.yaml").write_text("# Gated\n_target_: gated.gated\ntrial: 0\n")
    (tmp_path / "gate 2").touch()
    arguments = [
        "--trust", "gated", "--config-dir", "conf", "-m", "model=gated", "model.trial=1,2", "threads=1", "steps=100",
        "early_stopping=null", "every.log=10step", "name=long",
    ]  # fmt: skip
    child = shared().start(arguments, tmp_path, apart=True)
    while not (tmp_path / "waits").exists():
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    output, errors = child.communicate()
    assert (child.returncode, errors) == (143, "")
    second = next(line for line in output.splitlines() if line.startswith("trial 1_")).split()[1]
    folder = tmp_path / "outputs/sweeps/long"
    stopped = json.loads((folder / second / "result.json").read_text())
    assert stopped["status"] == "interrupted"
    assert stopped["steps"] == 30

    (tmp_path / "gate 2").unlink()
    done = train(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("0_") and lines[0].endswith("completed already")
    assert f"run: outputs/sweeps/long/{second} (resumed at step {stopped['steps']})" in lines
    steps = [json.loads(line)["step"] for line in (folder / second / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 100
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {lines[0].partition(":")[0], second}


def test_a_trial_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    # with this rate the weights are infinite after one step, and the loss is not finite from then on
    done = train(tmp_path, "-m", "optimizer=sgd", "optimizer.lr=0.1,1.0e+38", "schedule=constant", *TINY, "name=mixed")
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert "diverged" in lines[0]
    assert "1 of 2 trials failed" in lines[1]
    rows = [line.split() for line in done.stdout.splitlines()[-3:-1]]
    assert [row[-2:] for row in rows] == [["completed", "optimizer.lr=0.1"], ["diverged", "optimizer.lr=1e+38"]]
    statuses = {
        path.parent.name: json.loads(path.read_text())["status"]
        for path in (tmp_path / "outputs" / "sweeps" / "mixed").glob("*/result.json")
    }
    assert sorted(statuses.values()) == ["completed", "diverged"]


def test_one_bad_trial_is_refused_before_any_starts(tmp_path: Path) -> None:
    done = train(tmp_path, "-m", "optimizer=sgd,adamx", "seed=1,2", *TINY)
    assert done.returncode == 2
    assert "optimizer=adamx" in done.stderr
    assert not list(tmp_path.iterdir())


WORDS = ["optimizer=schedule_free_adamw", "optimizer.weight_decay=0.0001", "parallelism=ddp", "epochs=3"]


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize(
    ("monitor", "value"), [("val/loss", 0.5), ("val/cross_entropy", -1e38), ("val/accuracy_top5", None)]
)
def test_the_table_fits_and_breaks_no_word(width: int, monitor: str, value: float | None) -> None:
    trials = [Trial(str(n), (*WORDS[: n % 4], f"seed={n}"), "early_stopped", monitor, value) for n in range(12)]
    lines = table_of([*trials, Trial("1200", (), "not ended", None, None)], width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    assert words.count(WORDS[0]) == 9 and words.count("seed=11") == 1 and words.count("early_stopped") == 12


def test_trials_that_are_damaged_or_not_ended_have_a_row(tmp_path: Path) -> None:
    for name, result in (("10_b", "{"), ("2_a", None), ("9", '{"status": "failed"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
        if result is not None:
            (tmp_path / name / "result.json").write_text(result)
    assert [(trial.name, trial.status) for trial in read_trials(tmp_path)] == [
        ("2", "not ended"), ("9", "damaged"), ("10", "damaged")
    ]  # fmt: skip
    assert read_trials(tmp_path / "nowhere") == []
