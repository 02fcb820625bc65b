"""Views at test time: against torchvision's crops one by one, on a trained run, and through `train evaluate`."""

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as reference
import yaml
from torch import Tensor

from trainer import app, compose
from trainer.assembly import put_together
from trainer.blueprint import draw
from trainer.errors import ConfigurationError
from trainer.evaluation import evaluate, evaluate_views, log_probabilities
from trainer.loop import train
from trainer.run import Run
from trainer.test_time import KINDS, TestTime, read_words

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 20, 31), (3, 224, 224)]
SMALL = ["model=lenet", "steps=40", "batch_size=64", "threads=1", "early_stopping=null"]


def images(num: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randint(0, 256, (num, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def views_one_by_one(image: Tensor, kind: str, crop: float = 0.875) -> list[Tensor]:
    """What the lecture says, for one image, by torchvision."""
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
    """The same crops, as often, bit for bit."""
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
    assert len(list(TestTime("multi_scale").views(given))) == 42  # the first scale has two that differ


def test_the_lectures_sizes():
    assert TestTime("ten_crop")._sizes(224, 224) == [(256, 256)]
    assert TestTime("multi_scale")._sizes(224, 224) == [(side, side) for side in (224, 256, 384, 480, 640)]
    assert TestTime("multi_scale")._sizes(28, 28) == [(side, side) for side in (28, 32, 48, 60, 80)]


# --- a trained run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> Run:
    run = put_together(draw(compose(SMALL)))
    assert train(run) == "completed"
    return run


def probabilities_one_by_one(run: Run, part: Any, kind: str) -> Tensor:
    """float64 (N, K): a plain loop over images."""
    run.model.eval()
    rows = []
    with torch.inference_mode():
        for image in part.images_NCHW:
            views = run.preprocessing(torch.stack(views_one_by_one(image, kind)))
            rows.append(run.model(views).double().softmax(1).mean(0))
    run.model.train()
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_those_of_a_plain_loop(trained, kind):
    """Within 1e-6: the sums over views are in float32."""
    part = trained.splits.val
    expected = probabilities_one_by_one(trained, part, kind)
    trained.model.eval()
    with torch.inference_mode():
        log_p = log_probabilities(trained, part.images_NCHW, TestTime(kind))
    trained.model.train()
    assert (log_p.double().exp() - expected).abs().max() < 1e-6
    found = evaluate_views(trained, part, "val", TestTime(kind))
    of_target = expected[torch.arange(len(part)), part.targets_N]
    assert found["val/loss"] == pytest.approx(-of_target.log().mean().item(), rel=1e-5)
    assert found["val/accuracy"] == (expected.argmax(1) == part.targets_N).double().mean().item()
    assert found.keys() == evaluate(trained, part, "val").keys()
    assert trained.model.training


def test_views_change_the_answer_and_none_does_not(trained):
    part = trained.splits.val
    plain = evaluate(trained, part, "val")
    assert evaluate_views(trained, part, "val", TestTime()) == pytest.approx(plain, rel=1e-5)
    losses = {kind: evaluate_views(trained, part, "val", TestTime(kind))["val/loss"] for kind in KINDS}
    assert len({round(loss, 5) for loss in losses.values()}) == 4


def test_batches_do_not_matter(trained):
    part = trained.splits.val
    trained.model.eval()
    with torch.inference_mode():
        whole = log_probabilities(trained, part.images_NCHW, TestTime("ten_crop"))
        alone = torch.cat([log_probabilities(trained, i[None], TestTime("ten_crop")) for i in part.images_NCHW])
    trained.model.train()
    assert (whole - alone).abs().max() < 1e-4


def test_a_probability_of_zero_has_a_finite_loss(trained):
    """Averaged as logarithms: an output far behind the others counts."""
    forward = trained.closure.forward
    certain = torch.tensor([[0.0] + [-1000.0] * 9])
    trained.closure.forward = lambda images: certain.expand(len(images), -1)
    try:
        found = log_probabilities(trained, images(3, (1, 8, 8)), TestTime("multi_scale"))
    finally:
        trained.closure.forward = forward
    assert torch.allclose(found, certain.expand(3, -1), atol=1e-3)


def test_loss_in_bits_with_smoothing():
    words = ["loss.base=2", "loss.label_smoothing=0.2"]
    run = put_together(draw(compose([*SMALL, *words])))
    train(run)
    part = run.splits.val
    p = probabilities_one_by_one(run, part, "flip")
    target = 0.8 * torch.nn.functional.one_hot(part.targets_N, 10) + 0.02
    expected = -(target * p.log2()).sum(1).mean().item()
    assert evaluate_views(run, part, "val", TestTime("flip"))["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_another_loss_is_left_out():
    run = put_together(draw(compose([*SMALL, "loss=mse"])))
    train(run)
    found = evaluate_views(run, run.splits.val, "val", TestTime("flip"))
    expected = probabilities_one_by_one(run, run.splits.val, "flip").argmax(1) == run.splits.val.targets_N
    assert sorted(found) == ["val/accuracy", "val/accuracy_top5"]
    assert found["val/accuracy"] == expected.double().mean().item()


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
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["data"]["_target_"] == "trainer.data.Digits"
    names = [f"{part}/{metric}" for part in ("val", "test") for metric in ("loss", "accuracy", "accuracy_top5")]
    assert list(found) == ["run", *names, "throughput/samples_per_second"]
    assert 10 < found["throughput/samples_per_second"] < math.inf
    plain = json.loads((folder / "result.json").read_text())
    expected = plain["best"]["metrics"] | plain["test"]
    if kind == "none":
        assert {name: found[name] for name in names} == pytest.approx({n: expected[n] for n in names}, rel=1e-4)
    else:
        assert found["val/loss"] != pytest.approx(expected["val/loss"], rel=1e-3)


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("words", [[], ["tta=multi_scale"]], ids=["plain", "views"])
@pytest.mark.parametrize("is_screen", [True, False])
def test_progress_is_seen_on_a_terminal_alone(folder, words, is_screen, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("CI", raising=False)
    stderr = _Screen() if is_screen else io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    capsys.readouterr()
    assert app.run(["evaluate", str(folder), *words]) == 0
    assert "val/loss" in json.loads(capsys.readouterr().out)
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", stderr.getvalue())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    facts = draw(config).facts
    total = facts.num_val + facts.num_test
    assert (f"{total}/{total}" in shown) == (str(folder) in shown) == is_screen
    assert is_screen or not shown


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
    "tta=flip tta.crop=0.5": "tta.crop=0.5: is for tta=ten_crop",
    "tta.crop=0.5": "tta.crop=0.5: is for tta=ten_crop",
    "tta=flip tta=none": "tta=flip tta=none: each may be given once",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_line_and_code_2(words, folder):
    with pytest.raises(ConfigurationError) as error:
        app.run(["evaluate", str(folder), *words.split()])
    assert error.value.problems == [MISTAKES[words]]
    assert error.value.exit_code == 2


def test_other_words_are_left_alone():
    words = ["seed=3", "tta=ten_crop", "data.tta=1", "tta.crop=0.5"]
    assert read_words(words) == (TestTime("ten_crop", 0.5), ["seed=3", "data.tta=1"])
    assert read_words(["seed=3"]) == (None, ["seed=3"])


def test_values_have_no_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train"])
    words = ["data=linear_regression", "loss=mse", "model=linear", "epochs=1", "hydra.run.dir=run", "threads=1"]
    assert app.run(words) == 0
    with pytest.raises(
        ConfigurationError, match=r"^tta=flip: averages class probabilities of images; the data is regression$"
    ):
        app.run(["evaluate", "run", "tta=flip"])
