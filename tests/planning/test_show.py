"""The picture of `train plan --show` contains exactly the pixels that training uses; TensorBoard shows the same."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trainer import app, assemble, compose
from trainer.assembly.assemble import build_run
from trainer.assembly.data import make_batches
from trainer.augmentation import Crop, HorizontalFlip, MixUp, Pipeline
from trainer.base.errors import ConfigurationError, DataError
from trainer.base.randomness import generator_for
from trainer.configuration.resolve import resolve
from trainer.contracts import Augmentation
from trainer.parallelism.single import Single
from trainer.planning import augmentation_picture as picture
from trainer.planning import estimate
from trainer.planning.augmentation_strips import Strip, strips
from trainer.planning.show import draw_augmentation
from trainer.preprocessing import ToFloat
from trainer.reporting.tensorboard import image_grid
from trainer.samplers import Sequential, Shuffle, WithReplacement
from trainer.training.batches import TrainingBatches

MARGIN, GAP, BELOW = 36, 14, 28  # pixels of the picture
LINEAR = ["model=linear", "epochs=1"]
TRAINED = [*LINEAR, "preprocessing=none"]  # batches then contain the input of the preprocessing

PHOTOGRAPHS = ["data=image_folder", "data.size=32", "data.workers=0", "batch_size=12"]

Show = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "estimate", partial(estimate.estimate, seconds=0.01))
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture
def show(tmp_path: Path) -> Show:
    def shown(*overrides: str) -> Tensor:
        draw_augmentation(resolve(compose(overrides)), tmp_path / "augmentation.png")
        return read((tmp_path / "augmentation.png").read_bytes())

    return shown


def read(png: bytes) -> Tensor:
    """Decode to uint8 (3, height, width)."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB"))).permute(2, 0, 1)


def tiles(page: Tensor, bottom: int, size: int, factor: int, count: int, pitch: int) -> Tensor:
    """Images (count, 3, size, size) whose lower edge is `bottom` pixels above the end of the page."""
    edge = size * factor
    top = page.shape[1] - bottom - edge
    found = []
    for k in range(count):
        tile = page[:, top : top + edge, MARGIN + k * pitch :][..., :edge]
        small = tile[:, ::factor, ::factor]
        assert torch.equal(small.repeat_interleave(factor, 1).repeat_interleave(factor, 2), tile), "not whole blocks"
        found.append(small)
    return torch.stack(found)


def trained_on(*overrides: str) -> tuple[Tensor, list[int], Any]:
    """Images of a run's first steps, the indices of those that are shown, and the run."""
    run = build_run(resolve(compose([*TRAINED, *overrides])))
    images, classes = [], []
    for batch in run.batches.epoch(0):
        images.append(batch.images)
        classes += run.batches.targets[batch.indices].tolist()
        if len(classes) >= 8:
            break
    chosen = [index for index, label in enumerate(classes) if label not in classes[:index]]
    chosen += [index for index in range(len(classes)) if index not in chosen]
    return torch.cat(images), sorted(chosen[:8]), run


@pytest.mark.parametrize(
    "overrides",
    [
        ["augmentation=none"],
        ["augmentation=flip_crop"],
        ["augmentation=colour", "seed=3"],
        ["augmentation=geometry", "sampler=with_replacement"],
        ["augmentation=trivial", "sampler=sequential", "batch_size=3"],
        ["augmentation=crop_erase", "sampler=class_balanced"],
        ["augmentation=flip_crop", "micro_batch=5", "limit_batches=1", "batch_size=6"],
    ],
    ids=" ".join,
)
def test_the_last_row_is_what_training_sees(overrides: list[str], show: Show) -> None:
    page = show(*TRAINED, *overrides)
    images, chosen, _ = trained_on(*overrides)
    expected = images[chosen].to(torch.uint8).expand(-1, 3, -1, -1)
    bottom = BELOW + 20 * (
        overrides == ["augmentation=none"]
    )  # the only row is that of the originals, which has labels
    assert torch.equal(tiles(page, bottom, 8, 24, len(chosen), 192 + GAP), expected)


@pytest.mark.parametrize("option", ["mixup", "cutmix"])
def test_mixed_images_are_shown_with_their_mixed_labels(option: str) -> None:
    images, chosen, run = trained_on(f"augmentation={option}", "augmentation.crop.padding=1")
    found = rows(run, run.batches._augmentation)
    assert torch.equal(found["as trained on"].images_KCHW, images[chosen])
    batch = next(run.batches.epoch(0))
    for index, caption in zip(chosen, found["as trained on"].captions, strict=True):
        captioned = shares(caption)
        for label, share in enumerate(batch.targets[index].tolist()):
            assert captioned.get(str(label), 0.0) == pytest.approx(share, abs=0.0051)


def shares(caption: list[str]) -> dict[str, float]:
    """Class -> share, from "0.70 cat", "0.30 dog", or "cat"."""
    return {overrides.split()[-1]: float(overrides.split()[0]) if " " in overrides else 1.0 for overrides in caption}


def rows(run: Any, augmentation: Any, **changes: Any) -> dict[str, Strip]:
    settings = run.blueprint.config["augmentation"] or {}
    given = {"repeats": False, "settings": settings, "name_of": lambda t: str(int(t)), "preprocessing": "x", **changes}
    return {strip.title: strip for strip in strips(run.batches, augmentation, **given)}


class Run:
    """The attributes of a run that `rows` uses: 40 colour images of 8 x 6 pixels, all batches of 16."""

    def __init__(self, augmentation: Any, **changes: Any) -> None:
        images = torch.randint(0, 256, (40, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        given: dict[str, Any] = {"sampler": Shuffle(), "preprocessing": ToFloat(), **changes}
        self.batches = TrainingBatches(
            images, torch.arange(40) % 9, batch_size=16, micro_batch=16, limit=None, seed=5, augmentation=augmentation,
            strategy=Single(), channels_last=False, num_classes=9, **given,
        )  # fmt: skip
        self.blueprint = type("B", (), {"config": {"augmentation": {"flip": {"probability": 0.5}}}})

    def shown(self) -> list[int]:
        """Indices of the samples that are shown: the first of each class in the first batch."""
        first = generator_for(5, "order", 0)
        order = torch.randperm(40, generator=first)[:16].tolist()
        classes = [number % 9 for number in order]
        chosen = [index for index, label in enumerate(classes) if label not in classes[:index]][:8]
        chosen += [index for index in range(16) if index not in chosen]
        return [order[index] for index in sorted(chosen[:8])]


def test_an_operation_alone_has_the_parameters_that_it_has_in_the_whole() -> None:
    pipeline = Pipeline(flip=HorizontalFlip(probability=0.5), crop=Crop(padding=2, probability=0.3))
    run = Run(pipeline)
    found, numbers = rows(run, pipeline), run.shown()
    stored = run.batches.images[numbers].float()
    assert list(found) == ["originals", "flip", "crop", "as trained on"]
    assert torch.equal(found["originals"].images_KCHW, stored)
    assert found["originals"].captions == [[str(number % 9)] for number in numbers]
    assert torch.equal(found["flip"].images_KCHW, stored.flip(3))
    table = pipeline.draw(40, (3, 8, 6), generator_for(5, "augmentation", 0))
    always = Pipeline(flip=HorizontalFlip(probability=1), crop=Crop(padding=2)).draw(
        40, (3, 8, 6), generator_for(5, "augmentation", 0)
    )
    for k, number in enumerate(numbers):
        y, x = (int(always[f"crop.offset_{axis}"][number]) for axis in "yx")
        cropped = F.pad(stored[k], (2,) * 4)[:, y : y + 8, x : x + 6]
        assert torch.equal(found["crop"].images_KCHW[k], cropped)
        assert found["crop"].captions[k] == [f"offset y {y}", f"offset x {x}"]
        moved = (int(table["crop.offset_y"][number]), int(table["crop.offset_x"][number]))
        assert moved in ((y, x), (2, 2))
    assert found["flip"].note == "applied to 50 %, here to all"
    assert found["crop"].note == "applied to 30 %, here to all"
    assert (pipeline.operations["flip"].probability, pipeline.operations["crop"].probability) == (0.5, 0.3)  # type: ignore[attr-defined]


def test_mixing_alone_mixes_originals_of_one_batch() -> None:
    pipeline = Pipeline(mixup=MixUp(alpha=1.0, probability=0.1), crop=Crop(padding=2))
    run = Run(pipeline, sampler=Sequential())
    mixed = rows(run, pipeline)["mixup"]
    table = Pipeline(mixup=MixUp(alpha=1.0)).draw(40, (3, 8, 6), generator_for(5, "augmentation", 0))
    images = run.batches.images.float()
    for k in range(8):
        share, partner = float(table["mixup.lam"][k]), (k - 1) % 16
        expected = images[k] * share + images[partner] * (1 - share)
        torch.testing.assert_close(mixed.images_KCHW[k], expected, rtol=0, atol=1e-3)
        expected_shares = {str(partner % 9): 1 - share, str(k): share}
        for label in expected_shares:
            assert shares(mixed.captions[k]).get(label, 0.0) == pytest.approx(expected_shares[label], abs=0.0051)


@pytest.mark.parametrize("sampler", [Shuffle(), WithReplacement()], ids=["by sample", "by place in the epoch"])
def test_a_single_operation_that_is_always_applied_is_the_whole(sampler: Any) -> None:
    pipeline = Pipeline(crop=Crop(padding=2))
    found = rows(Run(pipeline, sampler=sampler), pipeline, repeats=sampler.repeats)
    assert torch.equal(found["crop"].images_KCHW, found["as trained on"].images_KCHW)
    assert not torch.equal(found["crop"].images_KCHW, found["originals"].images_KCHW)


class Halve(Augmentation):
    """A user's augmentation that is not a pipeline, with one number per sample."""

    def draw(
        self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {"divisor": torch.randint(1, 3, (num_samples,), generator=generator)}

    def __call__(self, images: Tensor, rows: dict[str, Tensor]) -> Tensor:
        return (images / rows["divisor"].view(-1, 1, 1, 1)).floor()


def test_an_augmentation_that_is_no_pipeline_is_shown_as_a_whole() -> None:
    run = Run(Halve())
    found = rows(run, Halve())
    assert list(found) == ["originals", "as trained on"]
    divisor = Halve().draw(40, (3, 8, 6), generator_for(5, "augmentation", 0))["divisor"][run.shown()]
    expected = (found["originals"].images_KCHW / divisor.view(-1, 1, 1, 1)).floor()
    assert torch.equal(found["as trained on"].images_KCHW, expected)


class Fixed:
    """A user's operation without a probability, with many parameters."""

    def draw(
        self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {"table": torch.zeros(num_samples, 50), "level": torch.full((num_samples,), 7)}

    def __call__(self, images: Tensor, rows: dict[str, Tensor]) -> Tensor:
        return images.mul_(0).add_(rows["level"].view(-1, 1, 1, 1))


def test_an_operation_of_ones_own_may_overwrite_what_it_is_given() -> None:
    pipeline = Pipeline(fixed=Fixed())
    run = Run(pipeline)
    found = rows(run, pipeline)
    assert found["fixed"].images_KCHW.unique().tolist() == [7.0]
    assert (found["fixed"].note, found["fixed"].captions) == ("", [["level 7"]] * 8)
    assert torch.equal(found["originals"].images_KCHW, run.batches.images[run.shown()].float())


# --- photographs ------------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path: Path) -> str:
    """Three classes of nine colour photographs of different sizes."""
    rng = np.random.default_rng(0)
    for number in range(27):
        folder = tmp_path / "photographs" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return str(tmp_path / "photographs")


class LeftOrRight:
    """Crops 32 x 32 pixels at the lower edge of a photograph, on the left or on the right."""

    def draw(
        self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {"right": torch.randint(2, (num_samples,), generator=generator)}

    def frames(self, rows: dict[str, Tensor], sizes_N2: Tensor, output_hw: tuple[int, int]) -> Tensor:
        height_N, width_N = sizes_N2.unbind(1)
        zero_N, side_N = torch.zeros_like(height_N), torch.full_like(height_N, 32)
        left_N = rows["right"] * (width_N - 32)
        return torch.stack((height_N - 32, left_N, side_N, side_N, side_N, side_N, zero_N, zero_N), 1)

    def __call__(self, images: Tensor, rows: dict[str, Tensor]) -> Tensor:
        raise AssertionError("it was done while the photograph was read")


def test_what_is_cut_out_of_a_photograph_is_shown_as_trained_on(photographs: str) -> None:
    run = build_run(resolve(compose([*TRAINED, *PHOTOGRAPHS, f"data.root={photographs}"])))
    pipeline = Pipeline(frame=LeftOrRight(), flip=HorizontalFlip(probability=1))
    run.batches = make_batches(run.blueprint, run.splits.train, Sequential(), pipeline, ToFloat())
    found = rows(run, pipeline)
    assert found["originals"].note == "framed as for evaluation"
    assert torch.equal(found["flip"].images_KCHW, found["originals"].images_KCHW.flip(3))
    assert torch.equal(found["as trained on"].images_KCHW, found["frame"].images_KCHW.flip(3))
    edges = [np.array(Image.open(path))[-32:] for path in Path(photographs).glob("*/*.png")]
    for image, caption in zip(found["frame"].images_KCHW, found["frame"].captions, strict=True):
        pixels = image.permute(1, 2, 0).to(torch.uint8).numpy()
        sides = [edge[:, -32:] if caption == ["right 1"] else edge[:, :32] for edge in edges]
        assert sum(np.array_equal(pixels, side) for side in sides) == 1


def test_photographs_are_shown_as_trained_on(photographs: str, show: Show) -> None:
    overrides = [*PHOTOGRAPHS, f"data.root={photographs}", "augmentation=flip_crop"]
    page = show(*TRAINED, *overrides)
    images, chosen, _ = trained_on(*overrides)
    assert torch.equal(tiles(page, BELOW, 32, 6, 8, 192 + GAP), images[chosen].to(torch.uint8))


# --- the picture ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 28, 28), (3, 28, 23), (1, 121, 192), (2, 16, 40), (4, 96, 32), (3, 224, 224), (1, 1, 64)]
)
def test_pixels_of_any_shape_are_kept(shape: tuple[int, int, int]) -> None:
    images = torch.randint(0, 256, (8, *shape), generator=torch.Generator().manual_seed(1)).float()
    strip = Strip("t", "", images, [])
    count = 6 if shape == (1, 121, 192) else 2  # 1218 pixels in all, of which rounding down would leave 1217
    page = read(picture.draw([strip] * count, "heading", images.to(torch.uint8)))
    C, H, W = shape
    factor = max(1, round(192 / max(H, W)))
    expected = (images if C == 3 else images[:, :1].expand(-1, 3, -1, -1)).to(torch.uint8)
    expected = expected.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    pitch = GAP + max(192, W * factor)
    bottom = page.shape[1] - BELOW
    for k in range(8):
        left = MARGIN + k * pitch
        assert torch.equal(page[:, bottom - H * factor : bottom, left : left + W * factor], expected[k])


def test_large_images_are_made_smaller_and_features_stretched_to_what_can_be_seen() -> None:
    features = torch.linspace(-3, 5, 8 * 640 * 320).view(8, 1, 640, 320)
    page = read(picture.draw([Strip("t", "", features, [])], "heading", features))
    assert page.shape[1] < 500
    bottom, right = page.shape[1] - BELOW, MARGIN + 7 * (192 + GAP) + 128
    assert page[:, bottom - 256, MARGIN].max() <= 1
    assert page[:, bottom - 1, right - 1].min() >= 254


@pytest.mark.parametrize(("count", "num_images"), [(1, 1), (10, 1), (3, 8), (9, 4), (10, 5), (11, 8)])
def test_nothing_overlaps_or_leaves_the_page(count: int, num_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[Any] = []
    write = picture._Page._write

    def spy(page: Any, text: str, left: int, baseline: int, **style: Any) -> float:
        end = write(page, text, left, baseline, **style)
        assert end <= page._figure.bbox.width
        if text:
            box = page._figure.texts[-1].get_window_extent(page._renderer)
            assert box.y0 >= 0 and box.y1 <= page._figure.bbox.height
            top = int(page._figure.bbox.height)
            area = page._pixels[max(0, top - int(box.y1)) : top - int(box.y0), int(box.x0) : int(box.x1)]
            assert (area == 255).all(), f"{text} is written over an image"
            assert not any(box.overlaps(other) for other in boxes), text
            boxes.append(box)
        return end

    monkeypatch.setattr(picture._Page, "_write", spy)
    images = torch.zeros(num_images, 1, 28, 28)
    captions = [["a long name of a class", "opacity 0.123", "coverage -0.0123", "level 200", "x 1"]] * num_images
    found = [Strip(f"operation_{k}", "density=[0.002, 0.01], length=0.2, " * 5, images, captions) for k in range(count)]
    page = read(picture.draw(found, "augmentation=everything, data=fashion_mnist, seed=0", images))
    assert page.shape[1] < 340 * (count if count <= 8 or num_images < 4 else 2 + count // 2) + 100


# --- the command line -------------------------------------------------------------------------------------


def test_it_is_said_in_one_line_and_the_plan_is_as_usual(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(estimate, "estimate", partial(estimate.estimate, seconds=0.01))
    overrides = [*LINEAR, "augmentation=flip_crop"]
    app.run(["plan", *overrides])
    usual = capsys.readouterr().out.splitlines()
    Path("augmentation.png").write_text("the picture of an earlier call, which is overwritten")
    app.run(["plan", *overrides, "--show"])
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith("  augmentation.png")] == [
        "  augmentation.png  8 training samples: originals, flip, crop, as trained on"
    ]
    titles = [line for line in usual if line and not line.startswith(" ")]
    assert [line for line in shown if line and not line.startswith(" ")] == [*titles, "picture"]
    assert [path.name for path in tmp_path.iterdir()] == ["augmentation.png"]
    app.run(["plan", *overrides, "--show=other.png"])
    assert Path("other.png").read_bytes() == Path("augmentation.png").read_bytes()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["--show=there.png"],
            "--show=there.png: already exists; only --show without a name overwrites (augmentation.png)",
        ),
        (["--show=picture.jpg"], "--show=picture.jpg: must name a .png file"),
        (["--show="], "--show=: must name a .png file"),
        (["--show=nowhere/picture.png"], "--show=nowhere/picture.png: there is no folder nowhere"),
        (["--show", "-m", "seed=1,2"], "--show: draws one configuration, not a sweep"),
        (["--sho"], "train plan: flag '--sho' does not exist. Did you mean '--show'?"),
        (["--show", "data=fashion_mnist", "data.root=absent"], "data.root=absent: "),
        (["--show", "data=fashion_mnist", "data.download=false", "data.root=data"], "data: "),
    ],
)
def test_mistakes_are_a_line_and_nothing_is_written(overrides: list[str], message: str, tmp_path: Path) -> None:
    Path("there.png").write_bytes(b"precious")
    with pytest.raises(ConfigurationError) as caught:
        app.run(["plan", *LINEAR, *overrides])
    assert message in str(caught.value) and len(caught.value.problems) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.png"]
    assert Path("there.png").read_bytes() == b"precious"


def test_damaged_data_are_told_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "FashionMNIST/raw"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte").write_bytes(b"no images")
    with pytest.raises(DataError, match="data: "):
        app.run(["plan", *LINEAR, "data=fashion_mnist", f"data.root={tmp_path}", "--show"])
    assert (capsys.readouterr().out, list(tmp_path.glob("*.png"))) == ("", [])


# --- TensorBoard ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preprocessing", "option"),
    [("standardize", "none"), ("zca", "crop"), ("pca_whitening", "none"), ("scale", "mixup")],
)
def test_tensorboard_has_the_first_batch_in_its_own_colours(preprocessing: str, option: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = [f"augmentation={option}", "batch_size=20"]
    (tmp_path / "run").mkdir()
    run = assemble(compose([*LINEAR, f"preprocessing={preprocessing}", *overrides]), tmp_path / "run")
    assert run.report is not None
    run.report.close()
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0})
    events.Reload()
    (event,) = events.Images("train/first_batch")
    images, _, _ = trained_on(*overrides)
    expected = image_grid(images[:20].round().to(torch.uint8)).expand(3, -1, -1)
    assert torch.equal(read(event.encoded_image_string), expected)


def test_of_large_images_a_few_are_enough(photographs: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = ["data=image_folder", f"data.root={photographs}", "data.size=260", "data.workers=0", "batch_size=20"]
    (tmp_path / "run").mkdir()
    run = assemble(compose([*LINEAR, *overrides, "augmentation=none"]), tmp_path / "run")
    assert run.report is not None
    run.report.close()
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0})
    events.Reload()
    (event,) = events.Images("train/first_batch")
    images, _, _ = trained_on(*overrides, "augmentation=none")
    assert torch.equal(read(event.encoded_image_string), image_grid(images[:15].to(torch.uint8)))
