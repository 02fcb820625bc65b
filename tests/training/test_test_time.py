"""Test-time views: against torchvision's crops one by one, on a trained run, and through `train evaluate`."""

import io
import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from torch import Tensor

from tests.data.images import encoded, pixels
from tests.torchvision_reference import functional as reference
from trainer import app, compose
from trainer.assembly.assemble import build_run
from trainer.base.errors import ConfigurationError
from trainer.commands.evaluate import print_metrics
from trainer.configuration.resolve import resolve
from trainer.data.photographs import reading
from trainer.training.evaluation import batches_of_views, evaluate, evaluate_views, log_probabilities
from trainer.training.evaluation_batches import evaluation_shards
from trainer.training.loop import train
from trainer.training.run import Run
from trainer.training.test_time_augmentation import KINDS, TestTime, read_words

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 20, 31), (3, 224, 224)]
SMALL = ["model=lenet", "steps=40", "batch_size=64", "threads=1", "early_stopping=null"]


def images(num: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randint(0, 256, (num, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def views_one_by_one(image: Tensor, kind: str, crop: float = 0.875) -> list[Tensor]:
    """The lecture's views of one image, by torchvision."""
    H, W = image.shape[1:]
    if kind == "none":
        return [image]
    if kind == "flip":
        return [image, reference.horizontal_flip(image)]
    scales = [1 / crop] if kind == "ten_crop" else [side / 224 for side in (224, 256, 384, 480, 640)]
    views: list[Tensor] = []
    for scale in scales:
        enlarged = reference.resize(image, [round(H * scale), round(W * scale)], antialias=True)
        views += reference.ten_crop(enlarged, [H, W])
    return views


def sorted_views(views: list[Tensor]) -> Tensor:
    flat = torch.stack(views).flatten(1).long()
    return torch.tensor(sorted(flat.tolist()))


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("crop", [0.5, 0.875, 1.0])
def test_views_are_torchvisions_crops(shape, kind, crop):
    """The same crops in the same number, bit for bit."""
    given = images(4, shape)
    found = list(TestTime(kind, crop).views(given))
    assert {view.dtype for view, _ in found} == {torch.uint8}
    for i in range(4):
        ours = [view[i] for view, count in found for _ in range(count)]
        assert torch.equal(sorted_views(ours), sorted_views(views_one_by_one(given[i], kind, crop)))
    assert torch.equal(given, images(4, shape))


def test_how_many_views_there_are():
    given = images(1, (3, 32, 32))
    counts = {kind: sum(count for _, count in TestTime(kind).views(given)) for kind in KINDS}
    assert counts == {"none": 1, "flip": 2, "ten_crop": 10, "multi_scale": 50}
    assert len(list(TestTime("multi_scale").views(given))) == 42  # two views of the first scale differ


def test_the_lectures_sizes():
    assert TestTime("ten_crop")._sizes(224, 224) == [(256, 256)]
    assert TestTime("multi_scale")._sizes(224, 224) == [(side, side) for side in (224, 256, 384, 480, 640)]
    assert TestTime("multi_scale")._sizes(28, 28) == [(side, side) for side in (28, 32, 48, 60, 80)]


# --- a trained run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> Run:
    run = build_run(resolve(compose(SMALL)))
    assert train(run) == "completed"
    return run


def probabilities_one_by_one(run: Run, split: Any, kind: str) -> Tensor:
    """float64 (N, K), in a plain loop over images."""
    run.model.eval()
    rows = []
    with torch.inference_mode():
        for image in split.images_NCHW:
            views = run.preprocessing(torch.stack(views_one_by_one(image, kind)))
            rows.append(run.model(views).double().softmax(1).mean(0))
    run.model.train()
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_those_of_a_plain_loop(trained, kind):
    """Within 1e-6, because sums over views are in float32."""
    split = trained.splits.val
    expected = probabilities_one_by_one(trained, split, kind)
    trained.model.eval()
    with torch.inference_mode():
        log_p = log_probabilities(trained, TestTime(kind).views(split.images_NCHW))
    trained.model.train()
    assert (log_p.double().exp() - expected).abs().max() < 1e-6
    found = evaluate_views(trained, split, "val", TestTime(kind))
    of_target = expected[torch.arange(len(split)), split.targets_N]
    assert found["val/loss"] == pytest.approx(-of_target.log().mean().item(), rel=1e-5)
    assert found["val/accuracy"] == (expected.argmax(1) == split.targets_N).double().mean().item()
    assert found.keys() == evaluate(trained, split, "val").keys()
    assert trained.model.training


def test_views_change_the_answer_and_none_does_not(trained):
    split = trained.splits.val
    plain = evaluate(trained, split, "val")
    assert evaluate_views(trained, split, "val", TestTime()) == pytest.approx(plain, rel=1e-5)
    losses = {kind: evaluate_views(trained, split, "val", TestTime(kind))["val/loss"] for kind in KINDS}
    assert len({round(loss, 5) for loss in losses.values()}) == 4


def test_batches_do_not_matter(trained):
    split = trained.splits.val
    trained.model.eval()
    with torch.inference_mode():
        ten = TestTime("ten_crop")
        whole = log_probabilities(trained, ten.views(split.images_NCHW))
        alone = torch.cat([log_probabilities(trained, ten.views(i[None])) for i in split.images_NCHW])
    trained.model.train()
    assert (whole - alone).abs().max() < 1e-4


def test_a_probability_of_zero_has_a_finite_loss(trained):
    """Logarithms are averaged, so that an output far below the others counts."""
    forward = trained.objective.forward
    certain = torch.tensor([[0.0] + [-1000.0] * 9])
    trained.objective.forward = lambda images: certain.expand(len(images), -1)
    try:
        found = log_probabilities(trained, TestTime("multi_scale").views(images(3, (1, 8, 8))))
    finally:
        trained.objective.forward = forward
    assert torch.allclose(found, certain.expand(3, -1), atol=1e-3)


def test_loss_in_bits_with_smoothing():
    overrides = ["loss.base=2", "loss.label_smoothing=0.2"]
    run = build_run(resolve(compose([*SMALL, *overrides])))
    train(run)
    split = run.splits.val
    p = probabilities_one_by_one(run, split, "flip")
    target = 0.8 * torch.nn.functional.one_hot(split.targets_N, 10) + 0.02
    expected = -(target * p.log2()).sum(1).mean().item()
    assert evaluate_views(run, split, "val", TestTime("flip"))["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_another_loss_is_left_out():
    run = build_run(resolve(compose([*SMALL, "loss=mse"])))
    train(run)
    found = evaluate_views(run, run.splits.val, "val", TestTime("flip"))
    expected = probabilities_one_by_one(run, run.splits.val, "flip").argmax(1) == run.splits.val.targets_N
    assert sorted(found) == ["val/accuracy"]
    assert found["val/accuracy"] == expected.double().mean().item()


# --- photographs ------------------------------------------------------------------------------------------

SIZE, SHORT_SIDE = 32, 42
# wider, higher, square, smaller than a view in one or both sides, long; with odd and even margins
PHOTOGRAPHS = [(48, 64), (71, 50), (60, 60), (24, 90), (20, 27), (33, 33), (300, 41), (150, 211), (42, 42), (91, 92)]
OF_PHOTOGRAPHS = ["data=image_folder", f"data.size={SIZE}", "data.evaluation_scale=1.3",
                  "model=lenet", "model.channels=[4,8]", "model.hidden=[16]", "batch_size=8", "micro_batch=4",
                  "optimizer=adam", "optimizer.lr=0.01", "threads=1", "early_stopping=null"]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two classes, one brighter than the other."""
    root = tmp_path_factory.mktemp("photographs")
    seed = 0
    for split, label in [(split, label) for split in ("train", "val", "test") for label in "ab"]:
        (root / split / label).mkdir(parents=True)
        for height, width in PHOTOGRAPHS[label == "b" :]:
            seed += 1
            array = pixels(height, width, seed) // (2 if label == "a" and seed % 3 else 1)
            content = encoded(Image.fromarray(array), quality=92)
            (root / split / label / f"{seed:03}.jpg").write_bytes(content)
    return root


def overrides_for(root: Path, workers: int = 0) -> list[str]:
    return [
        *OF_PHOTOGRAPHS, f"data.root={root}", f"data.cache_dir={root.parent / 'cache'}", f"data.workers={workers}"
    ]  # fmt: skip


@pytest.fixture(scope="module")
def weights(root: Path) -> dict[str, Any]:
    """Weights of a model confident enough to answer differently for different views."""
    run = build_run(resolve(compose([*overrides_for(root), "steps=60"])))
    train(run)
    return {"model": run.model.state_dict(), "preprocessing": run.preprocessing.state_dict()}


def of_photographs(root: Path, weights: dict[str, Any], overrides: Sequence[str] = (), workers: int = 0) -> Run:
    run = build_run(resolve(compose([*overrides_for(root, workers), "steps=60", *overrides])), fit=False)
    run.model.load_state_dict(weights["model"])
    run.preprocessing.load_state_dict(weights["preprocessing"])
    return run


def views_of_file(path: Path, test_time: TestTime, max_side: int | None) -> list[Tensor]:
    """The lecture's views of a file, by torchvision."""
    from torchvision.io import ImageReadMode, decode_image

    photograph = decode_image(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8), ImageReadMode.RGB)
    if max_side is not None and min(photograph.shape[1:]) > max_side:
        photograph = reference.resize(photograph, [max_side], antialias=True)
    if test_time.kind in ("none", "flip"):
        middle = reference.center_crop(reference.resize(photograph, [SHORT_SIDE], antialias=True), [SIZE, SIZE])
        return views_one_by_one(middle, test_time.kind)
    short_side = SHORT_SIDE if test_time.crop is None else round(SIZE / test_time.crop)
    if test_time.kind == "multi_scale":
        short_sides = [round(SIZE * side / 224) for side in (224, 256, 384, 480, 640)]
    else:
        short_sides = [short_side]
    views: list[Tensor] = []
    for side in short_sides:
        views += reference.ten_crop(reference.resize(photograph, [side], antialias=True), [SIZE, SIZE])
    return views


def probabilities_of_files(run: Run, folder: Path, test_time: TestTime, max_side: int | None = None) -> Tensor:
    """float64 (N, K), in a plain loop over files."""
    run.model.eval()
    with torch.inference_mode():
        rows = [
            run.model(run.preprocessing(torch.stack(views_of_file(path, test_time, max_side)))).double().softmax(1)
            for path in sorted(folder.rglob("*.jpg"))
        ]
    run.model.train()
    return torch.stack([row.mean(0) for row in rows])


def probabilities(run: Run, split: Any, test_time: TestTime) -> list[Tensor]:
    """One tensor per batch, with a row per sample."""
    run.model.eval()
    with torch.inference_mode():
        found = [log_probabilities(run, views).exp() for views, _ in batches_of_views(run, split, test_time)]
    run.model.train()
    return found


def check_photographs(run: Run, root: Path, test_time: TestTime, max_side: int | None = None) -> None:
    """Within 1e-6, because of convolutions over other batches and sums over views in float32."""
    split = run.splits.val
    expected = probabilities_of_files(run, root / "val", test_time, max_side)
    assert (torch.cat(probabilities(run, split, test_time)).double() - expected).abs().max() < 1e-6
    seen: list[int] = []
    found = evaluate_views(run, split, "val", test_time, seen.append)
    of_target = expected[torch.arange(len(split)), split.targets_N]
    assert found["val/loss"] == pytest.approx(-of_target.log().mean().item(), abs=1e-6)
    assert found["val/accuracy"] == (expected.argmax(1) == split.targets_N).double().mean().item()
    assert seen == [4, 4, 4, 4, 3]  # the number of images per batch, not of views


ASKED = [TestTime("none"), TestTime("flip"), TestTime("ten_crop"), TestTime("ten_crop", 0.6), TestTime("multi_scale")]
DECODING = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")


@DECODING
@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize("test_time", ASKED, ids=lambda asked: f"{asked.kind}-{asked.crop}")
def test_views_of_photographs_are_those_of_a_plain_loop_over_files(
    test_time: TestTime, cache: str, root: Path, weights: dict[str, Any]
) -> None:
    check_photographs(of_photographs(root, weights, [f"data.cache={cache}"]), root, test_time)


@DECODING
@pytest.mark.parametrize("test_time", [ASKED[2], ASKED[4]], ids=lambda asked: f"{asked.kind}-{asked.crop}")
def test_views_are_of_photographs_as_they_are_stored(test_time: TestTime, root: Path, weights: dict[str, Any]) -> None:
    check_photographs(of_photographs(root, weights, ["data.max_side=40"]), root, test_time, max_side=40)


@DECODING
@pytest.mark.slow
@pytest.mark.parametrize("test_time", ASKED[2:], ids=lambda asked: f"{asked.kind}-{asked.crop}")
def test_workers_read_all_views_of_a_part_in_one_stream(
    test_time: TestTime, root: Path, weights: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[reading.Workers] = []

    class Counted(reading.Workers):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            started.append(self)
            super().__init__(*arguments, **more)

    monkeypatch.setattr(reading, "Workers", Counted)
    run = of_photographs(root, weights, ["data.cache=none"], workers=2)
    check_photographs(run, root, test_time)
    assert len(started) == 2  # the split is evaluated twice
    assert not any(pool._finalizer.still_active() for pool in started)


def test_views_of_photographs_are_shared_among_ranks(
    root: Path, weights: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ranks, one of which has an empty shard of the last batch, have equally many batches and together every
    sample once."""
    run, asked = of_photographs(root, weights), TestTime("ten_crop")
    split = run.splits.val
    alone = torch.cat(probabilities(run, split, asked))
    shards, rows = [], []
    for rank in range(3):
        share = lambda count, rank=rank: slice(rank * count // 3, (rank + 1) * count // 3)  # noqa: E731
        monkeypatch.setattr(run, "strategy", SimpleNamespace(data_size=3, shard=share))
        shards += evaluation_shards(run, split)
        rows += probabilities(run, split, asked)
        assert len(rows) == 2 * (rank + 1)
    assert sorted(torch.cat(shards).tolist()) == list(range(len(split)))
    assert (torch.cat(rows) - alone[torch.cat(shards)]).abs().max() < 1e-6


def test_evaluate_says_when_the_data_are_others(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "root"
    shutil.copytree(root, copy)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train"])
    assert app.run([*overrides_for(copy), "steps=4", "hydra.run.dir=run"]) == 0

    def warnings_of(*overrides: str) -> str:
        capsys.readouterr()
        assert app.run(["evaluate", "run", *overrides]) == 0
        out, err = capsys.readouterr()
        assert "val/loss" in json.loads(out)
        return err

    assert warnings_of() == warnings_of("tta=ten_crop") == ""
    changed = next((copy / "test").rglob("*.jpg"))
    changed.write_bytes(encoded(Image.fromarray(pixels(50, 60, 999)), quality=92))
    line = f"run: data=image_folder data.root={copy}: not the data that the run started with (different checksum)\n"
    assert warnings_of() == warnings_of("tta=ten_crop") == warnings_of("batch_size=4") == line
    assert warnings_of("data.split_seed=1") == ""  # other data may be asked for
    (tmp_path / "run/environment.json").unlink()
    assert warnings_of() == line, "the checkpoint knows the data"


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("tta")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["train"])
        assert app.run([*SMALL, "hydra.run.dir=run"]) == 0
    return folder / "run"


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_tells_metrics_and_throughput(folder, kind, capsys):
    capsys.readouterr()
    assert app.run(["evaluate", str(folder), f"tta={kind}"]) == 0
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    found = json.loads(line)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["data"]["_target_"] == "trainer.data.Digits"
    names = [f"{split}/{metric}" for split in ("val", "test") for metric in ("loss", "accuracy", "cross_entropy")]
    plain_names = [] if kind == "none" else [f"plain/{name}" for name in names]
    assert list(found) == ["run", *names, *plain_names, "throughput/samples_per_second"]
    assert 10 < found["throughput/samples_per_second"] < math.inf
    plain = json.loads((folder / "result.json").read_text())
    expected = plain["best"]["metrics"] | plain["test"]
    if kind == "none":
        assert {name: found[name] for name in names} == pytest.approx({n: expected[n] for n in names}, rel=1e-4)
    else:
        assert found["val/loss"] != pytest.approx(expected["val/loss"], rel=1e-3)
        assert {n: found[f"plain/{n}"] for n in names} == pytest.approx({n: expected[n] for n in names}, rel=1e-4)
    worse = [name for name in names if "accuracy" in name and found[name] < found.get(f"plain/{name}", 0)]
    assert (f"{folder}: tta={kind} makes it worse: " in printed.err) == bool(worse)
    assert all(f"{n} {found[n]:.4f} instead of {found[f'plain/{n}']:.4f}" in printed.err for n in worse)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("kind", [None, "none", "ten_crop"])
def test_the_table_stands_side_by_side_at_any_width(kind: str | None, width: int) -> None:
    names = [f"{split}/{metric}" for split in ("val", "test") for metric in ("loss", "accuracy", "cross_entropy")]
    values = dict.fromkeys(names, 0.25) | {"val/accuracy": 0.4722, "test/accuracy": 0.5}
    if kind == "ten_crop":
        values |= {f"plain/{name}": 0.75 for name in names}
    if kind is not None:
        values["throughput/samples_per_second"] = 1234.5
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    print_metrics(console, Path("outputs/2026-11-30/18-20-04-digits-lenet"), values, kind and TestTime(kind))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert max(map(len, console.file.getvalue().splitlines())) <= width
    assert (["val/accuracy", "0.7500", "0.4722"] if kind == "ten_crop" else ["val/accuracy", "0.4722"]) in lines
    assert (["plain", "ten_crop"] in lines) == (kind == "ten_crop")
    assert (["1,234", "images/s", "with", f"tta={kind}"] in lines) == (kind is not None)


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("overrides", [[], ["tta=multi_scale"]], ids=["plain", "views"])
@pytest.mark.parametrize("is_screen", [True, False])
def test_progress_is_seen_on_a_terminal_alone(folder, overrides, is_screen, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("CI", raising=False)
    stderr = _Screen() if is_screen else io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    capsys.readouterr()
    assert app.run(["evaluate", str(folder), *overrides]) == 0
    assert "val/loss" in json.loads(capsys.readouterr().out)
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", stderr.getvalue())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    facts = resolve(config).facts
    total = facts.num_val + facts.num_test
    rest = "\n".join(line for line in shown.splitlines() if "makes it worse" not in line)
    assert (f"{total}/{total}" in rest) == (str(folder) in rest) == is_screen
    assert is_screen or not rest


def test_without_a_word_nothing_changes(folder, capsys):
    capsys.readouterr()
    assert app.run(["evaluate", str(folder)]) == 0
    assert "throughput/samples_per_second" not in json.loads(capsys.readouterr().out)


MISTAKES: dict[str, str] = {
    "tta=ten_crops": "option 'tta=ten_crops' does not exist. Did you mean 'tta=ten_crop'? "
    "Known: flip, multi_scale, none, ten_crop",
    "tta=": "option 'tta=' does not exist. Known: flip, multi_scale, none, ten_crop",
    "tta=ten_crop tta.crp=0.5": "key 'tta.crp' does not exist. Did you mean 'tta.crop'? Known: crop",
    "tta=ten_crop tta.crop=1.5": "tta.crop=1.5: must be a number from 0.1 to 1",
    "tta=ten_crop tta.crop=half": "tta.crop=half: must be a number from 0.1 to 1",
    "tta=ten_crop tta.crop=nan": "tta.crop=nan: must be a number from 0.1 to 1",
    "tta=flip tta.crop=0.5": "tta.crop=0.5: requires tta=ten_crop",
    "tta.crop=0.5": "tta.crop=0.5: requires tta=ten_crop",
    "tta=flip tta=none": "tta=flip tta=none: each may be given once",
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_mistakes_are_one_line_and_code_2(overrides, folder):
    with pytest.raises(ConfigurationError) as error:
        app.run(["evaluate", str(folder), *overrides.split()])
    assert error.value.problems == [MISTAKES[overrides]]
    assert error.value.exit_code == 2


def test_other_words_are_left_alone():
    overrides = ["seed=3", "tta=ten_crop", "data.tta=1", "tta.crop=0.5"]
    assert read_words(overrides) == (TestTime("ten_crop", 0.5), ["seed=3", "data.tta=1"])
    assert read_words(["seed=3"]) == (None, ["seed=3"])


def test_values_have_no_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train"])
    overrides = ["data=linear_regression", "loss=mse", "model=linear", "epochs=1", "hydra.run.dir=run", "threads=1"]
    assert app.run(overrides) == 0
    with pytest.raises(
        ConfigurationError, match=r"^tta=flip: averages class probabilities of images; the data is regression$"
    ):
        app.run(["evaluate", "run", "tta=flip"])
