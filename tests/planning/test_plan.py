"""`train plan`: its information is correct, its estimates follow from the sizes, and it leaves no files behind."""

import inspect
import itertools
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from tests.forks import train
from trainer import app, compose
from trainer.assembly import assemble
from trainer.augmentation.bordered import Bordered
from trainer.base.errors import ConfigurationError
from trainer.base.rank import rank_info
from trainer.commands import plan as commands_plan
from trainer.configuration.resolve import resolve
from trainer.data import memory
from trainer.data.photographs import caching
from trainer.planning import estimate
from trainer.planning.remarks import weights_rows
from trainer.planning.sections import meta_model
from trainer.preprocessing.whitening import Whitening
from trainer.training.step import snapshot

ROOT = Path(__file__).parents[2]
MLP = ["model=mlp", "model.hidden=[8]", "optimizer.lr=0.01", "batch_size=100", "epochs=2"]

Plan = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(estimate, "estimate", partial(estimate.estimate, seconds=0.05))

    def lines(*arguments: str) -> list[str]:
        assert app.run(["plan", *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    return lines


def sections(lines: list[str]) -> dict[str, list[str]]:
    """Title -> lines of the section."""
    blocks = "\n".join(lines).strip().split("\n\n")
    return {block.split("\n")[0]: block.split("\n")[1:] for block in blocks}


@pytest.mark.parametrize("lib", [None, "torchvision"])
def test_weights_that_do_not_all_fit_are_told_as_by_the_run(lib: str | None, plan: Plan, tmp_path: Path) -> None:
    words = ["init_from=weights.pt", "init_strict=false", *MLP]
    model: torch.nn.Module = torch.nn.ModuleDict({"linear1": torch.nn.Linear(64, 8), "output": torch.nn.Linear(8, 7)})
    if lib is not None:
        words = [f"model={lib}", "model.name=squeezenet1_1", "model.weights=weights.pt", "data=synthetic", "steps=2"]
        model = torchvision.models.squeezenet1_1(num_classes=7)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    blueprint = resolve(compose(words))
    (notice,) = assemble.build_run(blueprint).notices
    assert list(weights_rows(blueprint, meta_model(blueprint))) == [("init_from" if lib is None else "model", notice)]
    if lib is None:
        assert " ".join(" ".join(sections(plan(*words))["weights"]).split()) == f"init_from {notice}"
    assert "2 left out: " in notice and "2 new: " in notice


def test_a_small_network_as_worked_out_by_hand(plan: Plan, tmp_path: Path) -> None:
    shown = sections(plan(*MLP))
    # 64 inputs, 8 hidden, 10 outputs: 512 + 80 weights, 8 + 10 biases
    assert [line.split() for line in shown["model"]] == [
        ["layer", "kind", "output", "parameters"],
        ["flatten", "Flatten", "64"],
        ["linear1", "Linear", "8", "520"],
        ["activation1", "ReLU", "8"],
        ["output", "Linear", "10", "90"],
        ["610", "parameters,", "all", "trainable"],
        ["1.18", "kFLOPs", "forward", "a", "sample", "(a", "multiply-add", "is", "2)"],
    ]
    assert [line.split() for line in shown["parameter groups"]][1:] == [
        ["decay", "0.01", "0.01", "592", "2", "linear1.weight,", "output.weight"],
        ["no_decay", "0.01", "0", "18", "2", "linear1.bias,", "output.bias"],
    ]
    # 1437 training samples: 15 steps per epoch, 5 % warm-up
    assert shown["steps"][:3] == [
        "  length          30 steps = 2 epochs of 15 steps",
        "  batch           100 samples",
        "  warm-up         2 steps",
    ]
    assert "  evaluate        every 15 steps (2 in all)" in shown["steps"]
    # half of the rate after the first of two warm-up steps, then 28 steps of a cosine
    assert "learning rate: 0.005 first, 0.01 highest, 3.14e-05 last" in shown
    assert [line.split()[0] for line in shown["changed keys"]] == [
        "epochs=2",
        "batch_size=100",
        "model.hidden=[8]",
        "optimizer.lr=0.01",
    ]
    assert "instead of [64, 64]" in shown["changed keys"][2]
    assert "  samples   1,437 train, 180 val, 180 test" in shown["data"]
    assert list(tmp_path.iterdir()) == []


def test_choices_are_explained_in_the_order_of_the_groups(plan: Plan) -> None:
    choices = sections(plan("model=linear", "debug=overfit"))["choices"]
    assert choices[0].split()[:2] == ["data", "digits"]
    assert choices[-1].split()[:2] == ["debug", "overfit"]
    line = next(line for line in choices if line.split()[0] == "model")
    assert line.split(maxsplit=2)[2] == (ROOT / "configs/model/linear.yaml").read_text().splitlines()[0][2:]


def test_what_a_run_would_have_to_fetch_split_and_listen_to(plan: Plan) -> None:
    overrides = [
        "data=mnist",
        "model=linear",
        "schedule=plateau",
        "batch_size=128",
        "accumulate=2",
        "early_stopping=null",
    ]
    text = "\n".join(plan(*overrides))
    assert "the run downloads them first" in text
    assert "128 samples, in micro-batches of 64" in text
    assert "(as if val/loss improved at every evaluation)" in text
    assert "early stopping" not in text
    assert "1x28x28" in text


@pytest.mark.parametrize(
    ("optimizer", "state"), [("sgd", 0), ("momentum", 2440), ("adamw", 2 * 2440), ("newton", 3 * 610**2 * 4)]
)
def test_memory_is_counted_in_bytes(optimizer: str, state: int) -> None:
    words = [word for word in MLP if optimizer != "newton" or not word.startswith("optimizer.")]  # which has no lr
    found = estimate.estimate(resolve(compose([*words, f"optimizer={optimizer}"])), seconds=0.01)
    assert (found.weights, found.gradients) == (610 * 4, 610 * 4)
    assert state <= found.optimizer <= state + 4 * 8  # a step counter per tensor
    assert found.data == 1797 * (64 + 8)
    # float32 input, activation and log-probabilities, and the int64 target, of 100 samples
    assert found.activations == pytest.approx(100 * (64 * 4 + 8 * 4 + 10 * 4 + 8), abs=16)


@pytest.mark.parametrize(
    ("settings", "is_kept"),
    [(["on_nonfinite=skip"], True), (["micro_batch=auto"], True), ([], False)],
    ids=str,
)
def test_the_copy_that_undoes_a_step_is_counted(settings: list[str], is_kept: bool) -> None:
    config = compose([*MLP, "schedule=constant", *settings])
    config["optimizer"] = {"_target_": "torch.optim.LBFGS", "lr": 0.1, "max_iter": 3, "history_size": 2}
    blueprint = resolve(config)
    found = estimate.estimate(blueprint, seconds=0.01)
    rows = [text for _, text in commands_plan.estimate_rows(blueprint, found)]
    assert any("copy to undo a step" in row for row in rows) == is_kept
    if not is_kept:
        assert found.undo == 0
        return
    run = estimate._run(blueprint, 100)
    for batch in itertools.islice(estimate._endless(run), 3):
        estimate.train_step(run, batch)
    undo = inspect.getclosurevars(inspect.unwrap(snapshot(run))).nonlocals
    tensors = [*undo["saved"], *estimate._tensors(undo["state"])]
    # weights, and L-BFGS stores lists of two previous directions and of two previous steps
    assert len(tensors) > 4 + 2 + 2
    assert found.undo == sum(tensor.nbytes for tensor in tensors)
    assert (
        found.bytes == found.weights + found.gradients + found.optimizer + found.activations + found.data + found.undo
    )


def test_a_step_is_not_undone_by_a_copy_if_the_optimizer_needs_no_closure() -> None:
    assert estimate.estimate(resolve(compose([*MLP, "on_nonfinite=skip"])), seconds=0.01).undo == 0


@pytest.fixture
def photographs(tmp_path: Path) -> str:
    """Root of twenty photographs of 3 x 10 x 12 bytes each; the files have other sizes."""
    for number in range(20):
        path = tmp_path / "root" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (10, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.numpy()).save(path)
    return str(tmp_path / "root")


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ([], "decoded"),
        (["data.memory_limit=7200"], "decoded"),
        (["data.memory_limit=7199", "data.max_side=9"], "smaller"),
        (["data.cache=disk", "data.cache_dir=cache"], "nothing"),
        (["data.cache=none"], "nothing"),
        (["data.memory_limit=100"], "nothing"),
    ],
    ids=" ".join,
)
def test_photographs_take_what_their_cache_does(settings: list[str], kept: str, photographs: str) -> None:
    overrides = ["data=image_folder", f"data.root={photographs}", "data.size=32", "batch_size=5", *MLP[:2]]
    found = estimate._data_bytes(resolve(compose([*overrides, *settings])))
    # the stored size, 10 x 12 or, with a short side of 9, 9 x 10; not the crops of 32 x 32
    assert found == {"decoded": 20 * 360, "smaller": 20 * 270, "nothing": 0}[kept] + 20 * 8


@pytest.mark.parametrize(
    ("limit", "images"),
    [("1GB", 16_000 * 784 + Bordered.size((54_000, 1, 28, 28), 4)), ("55MB", 70_000 * 784), ("54MB", 0)],
)
def test_images_between_borders_or_in_a_file_are_counted_as_they_lie(limit: str, images: int) -> None:
    overrides = ["data=fashion_mnist", "model=linear", "augmentation=crop", f"data.memory_limit={limit}", "device=cpu"]
    found = estimate._data_bytes(resolve(compose([*overrides, "augmentation.crop.padding=4"])))
    assert found == images + 70_000 * 8


def test_ranks_share_the_memory_of_the_machine(plan: Plan, photographs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_free_memory", lambda: 2 * 7200)
    overrides = ["data=image_folder", f"data.root={photographs}", "data.size=32", "batch_size=5", "model=linear"]
    for ranks, described in (("", "7.2 kB: decoded in memory"), (["parallelism=ddp"], "3.6 kB: ")):
        (row,) = [line for line in plan(*overrides, "device=cpu", *ranks) if line.startswith("  photographs")]
        assert f"data.memory_limit is {described}" in row
    assert rank_info() is None


@pytest.mark.parametrize(("kind", "components"), [("zca", "5"), ("pca_whitening", "null")])
def test_whitening_is_measured_without_estimating_it(
    kind: str, components: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eigenvectors take seconds or minutes, and a plan only needs their number."""
    overrides = [f"preprocessing={kind}", f"preprocessing.components={components}"]
    blueprint = resolve(compose([*MLP, *overrides]))
    fitted = assemble.build_run(blueprint).preprocessing.state_dict()
    monkeypatch.setattr(Whitening, "fit", None)  # must not be called
    run = estimate._run(blueprint, 10)
    guessed = run.preprocessing.state_dict()
    assert {name: (value.shape, value.dtype) for name, value in guessed.items()} == {
        name: (value.shape, value.dtype) for name, value in fitted.items()
    }
    batch = next(run.batches.epoch(0))
    assert 0.5 < batch.images.abs().max() <= 2
    assert estimate.estimate(blueprint, seconds=0.01).step_seconds > 0


@pytest.mark.parametrize("batch_size", ["5", "100", "full"])
def test_time_grows_with_the_samples_however_few_were_measured(
    batch_size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, do_step = 0.0, estimate.train_step

    def step(run: estimate.Run, batch: estimate.Batch) -> None:
        nonlocal now
        now += 0.01 * len(batch.targets)  # 10 ms per sample
        do_step(run, batch)

    monkeypatch.setattr(estimate, "train_step", step)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now)
    blueprint = resolve(compose(["model=mlp", f"batch_size={batch_size}"]))
    found = estimate.estimate(blueprint, seconds=0.5)
    assert found.step_seconds == pytest.approx(0.01 * blueprint.batch_size)
    assert found.measured_samples == min(16, blueprint.batch_size)  # three steps in half a second
    assert now < 2


@pytest.mark.parametrize(
    ("settings", "workers"),
    [
        (["data.cache=none"], "by 2 workers, in parallel if there are enough cores"),
        (["data.cache=none", "data.workers=0"], "by this process"),
        (["data.memory_limit=100"], "by 2 workers"),
        ([], None),
        (["data.cache=disk", "data.cache_dir=cache"], None),
    ],
    ids=str,
)
def test_reading_photographs_is_told_apart(
    settings: list[str], workers: str | None, plan: Plan, photographs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(caching.time, "perf_counter", lambda: next(clock) / 50)  # 20 ms per photograph
    overrides = ["data=image_folder", f"data.root={photographs}", "data.size=32", "batch_size=5", *MLP[:2], *settings]
    found = estimate.estimate(resolve(compose(overrides)), seconds=0.01)
    if workers is None:
        assert found.reading_seconds is None
        return
    assert found.reading_seconds == pytest.approx(0.02)
    rows = dict(commands_plan.estimate_rows(resolve(compose(overrides)), found))
    assert ", without reading photographs" in rows["time"]
    a_step = "50" if "2" in workers else "100"
    assert rows["reading"].startswith(f"20 ms per photograph, {a_step} ms per step {workers}")


def test_a_sweep_is_listed_in_the_order_it_would_run(plan: Plan, tmp_path: Path) -> None:
    lines = plan("-m", "model=linear,mlp", "batch_size=64,full", "seed=3")
    assert lines[0] == "4 trials"
    assert [line.split() for line in lines[1:-1]] == [
        ["trial", "steps", "parameters", "overrides"],
        ["0", "690", "650", "model=linear", "batch_size=64", "seed=3"],
        ["1", "30", "650", "model=linear", "batch_size=full", "seed=3"],
        ["2", "690", "8,970", "model=mlp", "batch_size=64", "seed=3"],
        ["3", "30", "8,970", "model=mlp", "batch_size=full", "seed=3"],
    ]
    assert list(tmp_path.iterdir()) == []


def test_problems_of_all_trials_are_raised_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        app.run(["plan", "-m", "schedule=constant", "epochs=0,1", "batch_size=64,2000"])
    assert [line.partition(":")[0] for line in caught.value.problems] == ["epochs=0", "batch_size=2000"]
    assert "[trial schedule=constant epochs=1 batch_size=2000]" in caught.value.problems[1]


@pytest.mark.parametrize("is_sweep", [False, True])
def test_options_of_a_folder_of_ones_own(is_sweep: bool, plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "my options, 'odd' [ones]"
    (folder / "model").mkdir(parents=True)
    (folder / "model/mine.yaml").write_text("# Seven wide\n_target_: trainer.models.mlp.mlp\nhidden: [7]\n")
    flags = [f"--config-dir={folder}"] + ["-m"] * is_sweep
    text = "\n".join(plan(*flags, "model=mine"))
    assert str(64 * 7 + 7 + 7 * 10 + 10) in text
    assert is_sweep or "Seven wide" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lrr=1"], "key 'optimizer.lrr' does not exist. Did you mean 'optimizer.lr'?"),
        (["model=lenett"], "option 'model=lenett' does not exist. Did you mean 'model=lenet'?"),
        (["model.hidden=[-1]", "model=mlp"], "hidden=[-1]: "),
        (["some/run"], "cannot read 'some/run'"),
        (["--multi"], "train plan: flag '--multi' does not exist. Did you mean '--multirun'?"),
        (["--config-dir"], "--config-dir: must be followed by a folder"),
        (["--config-dir", "nowhere"], "config_dir=nowhere: there is no such folder"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        app.run(["plan", *arguments])
    assert message in str(caught.value)


def run_in_a_pipe(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return train(cwd, "plan", *arguments, COLUMNS="40")


def test_on_a_pipe_lines_are_whole_and_plain(tmp_path: Path) -> None:
    done = run_in_a_pipe("model=linear", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    meaning = (ROOT / "configs/optimizer/adamw.yaml").read_text().splitlines()[0][2:]
    assert f"  optimizer      adamw          {meaning}" in lines
    assert [line for line in lines if line != line.rstrip() or "\x1b" in line] == []
    assert list(tmp_path.iterdir()) == []


def test_the_exit_code_of_a_mistake_is_2(tmp_path: Path) -> None:
    done = run_in_a_pipe("epochs=0", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: epochs=0: ") and done.stderr.count("\n") == 1
