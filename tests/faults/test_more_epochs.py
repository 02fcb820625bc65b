"""`train resume RUN epochs=N`: a finished run that is extended equals a run of that length."""

import json
from pathlib import Path

import torch
import yaml
from faults import EXIT_CODE
from harness import CONFIGURATIONS, but, differences, metric_lines, train

from tests.forks import Zygote

# 23 steps per epoch, and a schedule that does not depend on the length of the run
CONSTANT = but(CONFIGURATIONS["adamw"], "schedule=constant", "steps=null", "epochs=2", "batch_size=64")
ON_THE_GRID = but(CONSTANT, "every.log=23step", "every.evaluate=1ep", "every.checkpoint=1ep")


def test_more_epochs_give_the_bits_of_a_longer_run(zygote: Zygote, tmp_path: Path) -> None:
    assert train(zygote, tmp_path, *but(ON_THE_GRID, "epochs=3"), "hydra.run.dir=reference")[0] == 0
    assert train(zygote, tmp_path, *ON_THE_GRID, "hydra.run.dir=run")[0] == 0
    code, output = train(zygote, tmp_path, "resume", "run", "epochs=3", sitting=1)
    assert code == 0
    assert output.startswith("epochs: 2 -> 3\n")
    found = differences(tmp_path / "reference", tmp_path / "run")
    # step 0 has the original configuration
    assert [line for line in found if "['config/text_summary']['0']" not in line] == []
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["epochs"] == 3


def test_an_end_off_the_grid_leaves_one_more_record_and_nothing_else(zygote: Zygote, tmp_path: Path) -> None:
    """Step 46 is logged and evaluated as the last one, and the next mean starts there."""
    longer = but(CONSTANT, "early_stopping=null")
    assert train(zygote, tmp_path, *but(longer, "epochs=3"), "hydra.run.dir=reference")[0] == 0
    assert train(zygote, tmp_path, *longer, "hydra.run.dir=run")[0] == 0
    assert train(zygote, tmp_path, "resume", "run", "epochs=3", sitting=1)[0] == 0
    states = [torch.load(tmp_path / run / "checkpoints/last.pt", weights_only=True) for run in ("reference", "run")]
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name
    for index, moments in states[0]["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, states[1]["optimizer"]["state"][index][name]), name
    reference, run = (
        {record["step"]: record for record in map(json.loads, metric_lines(tmp_path / name)) if "lr" in record}
        for name in ("reference", "run")
    )
    assert run.keys() - reference.keys() == {46}
    assert [step for step in reference if reference[step] != run[step]] == [49]


WARMUP = ["schedule=cosine_warmup", "schedule.warmup=10step", "every.log=1step", "early_stopping=null"]


def rates(folder: Path, run: str) -> dict[int, float]:
    records = map(json.loads, metric_lines(folder / run))
    return {record["step"]: record["lr"] for record in records if "lr" in record}


def test_the_planned_schedule_is_kept_and_its_last_rate_held(zygote: Zygote, tmp_path: Path) -> None:
    """Made longer twice, interrupted in between: the bits of a run that was to be so from the start."""
    held = but(ON_THE_GRID, *WARMUP)
    assert train(zygote, tmp_path, *but(held, "epochs=4", "schedule_length=46step"), "hydra.run.dir=reference")[0] == 0
    assert train(zygote, tmp_path, *held, "hydra.run.dir=run")[0] == 0
    fault = {"signal": 10, "during": "trainer.training.loop.train_step", "call": 9}
    longer = ["epochs=3", "schedule_length=2ep"]
    code, output = train(zygote, tmp_path, "resume", "run", *longer, sitting=1, fault=fault)
    assert (code, output.splitlines()[:2]) == (138, ["epochs: 2 -> 3", "schedule_length: null -> 2ep"])
    found = rates(tmp_path, "run")
    same = (
        f"learning rate: {found[46]:.3g} in the last step, {found[46]:.3g} in the next; the schedule is 46 steps long"
    )
    assert same in output
    assert train(zygote, tmp_path, "resume", "run", sitting=2)[0] == 0
    assert train(zygote, tmp_path, "resume", "run", "epochs=4", sitting=3)[0] == 0
    found = rates(tmp_path, "run")
    assert list(found) == list(range(1, 93))
    assert found == rates(tmp_path, "reference")
    assert max(found.values()) == found[10] and {found[step] for step in range(46, 93)} == {found[46]}
    states = [torch.load(tmp_path / run / "checkpoints/last.pt", weights_only=True) for run in ("reference", "run")]
    assert all(torch.equal(value, states[1]["model"][name]) for name, value in states[0]["model"].items())


def test_a_schedule_that_is_spread_says_so_and_its_advice_can_be_typed(zygote: Zygote, tmp_path: Path) -> None:
    spread = but(ON_THE_GRID, *WARMUP)
    assert train(zygote, tmp_path, *but(spread, "epochs=4"), "hydra.run.dir=reference")[0] == 0
    assert train(zygote, tmp_path, *spread, "hydra.run.dir=run")[0] == 0
    planned = rates(tmp_path, "run")
    fault = {"signal": 15, "during": "trainer.training.loop.train_step", "call": 5}
    _, output = train(zygote, tmp_path, "resume", "run", "epochs=4", sitting=1, fault=fault)
    reference, found = rates(tmp_path, "reference"), rates(tmp_path, "run")
    assert {step: rate for step, rate in found.items() if step > 46} == {
        step: reference[step] for step in range(47, 52)
    }
    (line,) = (line for line in output.splitlines() if line.startswith("learning rate: "))
    assert line.startswith(
        f"learning rate: {planned[46]:.3g} in the last step, {found[47]:.3g} in the next; the schedule "
    )
    assert found[47] > 50 * planned[46]
    words = line.partition("hold its last rate, stop (Ctrl-C) and type: train ")[2].split()
    assert words == ["resume", "run", "schedule_length=46step"]
    assert train(zygote, tmp_path, *words, sitting=2)[0] == 0
    found = rates(tmp_path, "run")
    assert {found[step] for step in range(52, 93)} == {planned[46]}


STOPPING = but(
    [argument for argument in CONFIGURATIONS["momentum"] if not argument.startswith("schedule.")],
    "schedule=constant", "every.evaluate=5step",
)  # fmt: skip


def status_of(run: Path) -> tuple[str, int]:
    result = json.loads((run / "result.json").read_text())
    return result["status"], result["steps"]


def test_more_epochs_do_not_renew_patience_that_is_not_spent(zygote: Zygote, tmp_path: Path) -> None:
    """A run that is interrupted with some patience used and then extended stops where a run of that length stops."""
    assert train(zygote, tmp_path, *but(STOPPING, "steps=120"), "hydra.run.dir=reference")[0] == 0
    status, stopped_at = status_of(tmp_path / "reference")
    assert status == "early_stopped" and stopped_at < 66
    fault = {"signal": 15, "during": "trainer.training.loop.train_step", "call": stopped_at - 2}
    assert train(zygote, tmp_path, *STOPPING, "hydra.run.dir=run", fault=fault)[0] == 143
    assert train(zygote, tmp_path, "resume", "run", "steps=120", sitting=1)[0] == 0
    found = differences(tmp_path / "reference", tmp_path / "run")
    assert [line for line in found if "['config/text_summary']['0']" not in line] == []


def test_a_run_that_stopped_early_goes_on_when_more_is_asked_for(zygote: Zygote, tmp_path: Path) -> None:
    """Also after a kill, when the next `resume` does not repeat the override."""
    for name in ("reference", "run"):
        assert train(zygote, tmp_path, *STOPPING, f"hydra.run.dir={name}")[0] == 0
    status, stopped_at = status_of(tmp_path / "run")
    assert status == "early_stopped" and stopped_at < 66
    assert train(zygote, tmp_path, "resume", "run", sitting=1)[1].startswith("run is complete")
    assert train(zygote, tmp_path, "resume", "reference", "steps=100", sitting=1)[0] == 0
    assert status_of(tmp_path / "reference")[1] > stopped_at
    fault = {"folder": str(tmp_path / "run"), "at": ("write metrics.jsonl", 0)}
    assert train(zygote, tmp_path, "resume", "run", "steps=100", sitting=1, fault=fault)[0] == EXIT_CODE
    assert train(zygote, tmp_path, "resume", "run", sitting=2)[0] == 0
    assert differences(tmp_path / "reference", tmp_path / "run") == []


def test_what_is_refused_changes_nothing_even_on_a_full_disk(zygote: Zygote, tmp_path: Path) -> None:
    assert train(zygote, tmp_path, *ON_THE_GRID, "hydra.run.dir=run")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    fault = {"bytes_left": 0}
    code, output = train(zygote, tmp_path, "resume", "run", "epochs=3", sitting=1, fault=fault)
    assert code == 74, output
    for name, content in before.items():
        # the result is written last and records that the run is incomplete
        assert name == "result.json" or (tmp_path / "run" / name).read_bytes() == content, name
    assert train(zygote, tmp_path, "resume", "run", "epochs=3", sitting=2)[0] == 0
    assert status_of(tmp_path / "run") == ("completed", 69)


def test_killed_after_the_change_was_written_the_new_length_holds(zygote: Zygote, tmp_path: Path) -> None:
    """The configuration is longer than the old result, which must therefore be deleted first."""
    assert train(zygote, tmp_path, *ON_THE_GRID, "hydra.run.dir=run")[0] == 0
    fault = {"folder": str(tmp_path / "run"), "at": ("replace .overrides.yaml.#.tmp", 0)}
    assert train(zygote, tmp_path, "resume", "run", "epochs=3", sitting=1, fault=fault)[0] == EXIT_CODE
    code, output = train(zygote, tmp_path, "resume", "run", sitting=2)
    assert code == 0
    assert "is complete" not in output
    assert json.loads((tmp_path / "run/result.json").read_text())["steps"] == 69
