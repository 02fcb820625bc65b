"""Images per second of our input and of common alternatives: `python benchmarks/input.py [recipes...] [--rounds 9]`.

Recipes on 32x32x3, batches of 256 (CIFAR-10 if `--data` or DATA_ROOT has it, else random pixels):

- standard: crop after padding 4, horizontal flip
- rich: rotation by up to 15 degrees and shifts by up to 1/8 in one resampling; brightness, contrast and saturation by
  up to 20 %; random erasing
- trivial, rand: crop, flip, then TrivialAugmentWide, or RandAugment(2, 9)

and `photographs` (the folder `flowers`, batches of 64): decode, random resized crop to 224, horizontal flip. All end
with normalization to float32. Ours are epochs of `TrainingBatches`, as in a run: draw order and parameters, gather,
augment, normalize; no training step. The alternatives, in a DataLoader:

- PIL: torchvision's v1 transforms on PIL images, without workers and with 2
- v2: torchvision's v2 transforms on uint8 tensors, one sample at a time
- kornia, if installed: on batches; its trivial and rand apply one operation to a whole batch and are omitted

Before timing, our images are compared with torchvision's v2 functions (and with PIL where noted) on single images with
the same parameters; a difference above the recipe's tolerance aborts the benchmark.

Each process has one thread. All contestants take turns within a round; the time until the queues of workers are full is
not counted. Ratios are computed per round and reported as median (minimum..maximum).

`--device cuda`: our images per second target, relative to a training step of ResNet-18 (bf16, channels_last), and an
epoch of CIFAR-10 with our input and with a DataLoader.
"""

import argparse
import datetime
import gc
import importlib.metadata
import itertools
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
import torchvision.transforms as v1
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as one

from trainer.augmentation import Crop, Erasing, HorizontalFlip, Pipeline
from trainer.augmentation.colour import Brightness, Contrast, Saturation
from trainer.augmentation.framing import ResizedCrop
from trainer.augmentation.policies import OPERATIONS, RandAugment, TrivialAugment
from trainer.augmentation.warp import Rotate, TranslateX, TranslateY
from trainer.base.randomness import generator_for
from trainer.data import CIFAR10, ImageFolder
from trainer.parallelism.single import Single
from trainer.preprocessing import Standardize
from trainer.samplers import Shuffle
from trainer.training.batches import Batch, TrainingBatches

try:
    import kornia.augmentation as kornia
except ImportError:
    kornia = None

SEED, BATCH, PHOTO_BATCH = 0, 256, 64
PHOTO_SIZE = 224
SLACK = 1e-3  # levels: allowance for a different order of float32 operations in normalization
PIL_DECODES_WITHIN = 3  # levels: PIL has its own libjpeg and resize
BILINEAR = v1.InterpolationMode.BILINEAR
JITTER, DEGREES, SHIFT = 0.2, 15.0, 0.125
Row = dict[str, Any]  # the parameters of one sample, as Python numbers


# --- recipes ----------------------------------------------------------------------------------------------


@dataclass
class Recipe:
    """One recipe for every contestant, and how to verify that all of them produce the same images.

    `reference` transforms one image with the parameters of its row; `tolerance` is in levels of 0..255; `wanted` has
    the target ratios to PIL without workers and with 2.
    """

    pipeline: Pipeline
    pil: list[Any]
    tensors: list[Any]
    reference: Callable[[Tensor, Row], Tensor]
    tolerance: float
    wanted: tuple[float, float]
    batches: list[Any] = field(default_factory=list)
    pil_reference: Callable[[Any, Row], Any] | None = None


def crop_and_flip(image: Any, row: Row) -> Any:
    image = one.crop(one.pad(image, [4]), row["crop.offset_y"], row["crop.offset_x"], 32, 32)
    return one.horizontal_flip(image) if row["flip.applied"] else image


def rich(image: Tensor, row: Row) -> Tensor:
    shift = [round(row["right.fraction"] * 32), round(row["down.fraction"] * 32)]
    image = one.affine(image, -row["rotate.degrees"], shift, 1.0, [0.0, 0.0], interpolation=BILINEAR)
    image = one.adjust_brightness(image, row["brightness.factor"])
    image = one.adjust_contrast(image, row["contrast.factor"])
    image = one.adjust_saturation(image, row["saturation.factor"])
    top, left, height, width = (row[f"erase.{name}"] for name in ("top", "left", "height", "width"))
    return one.erase(image, top, left, height, width, torch.zeros((), dtype=torch.uint8)) if height else image


def policy(name: str, theirs: Any, magnitude_of: Callable[[int], int]) -> Callable[[Tensor, Row], Tensor]:
    """Crop and flip, followed by torchvision's own class with the operations and strengths of the row."""

    def reference(image: Tensor, row: Row) -> Tensor:
        image = crop_and_flip(image, row)
        bins = theirs.num_magnitude_bins
        for number, strength, negative in zip(
            row[f"{name}.operation"], row[f"{name}.strength"], row[f"{name}.negative"], strict=True
        ):
            magnitudes, signed = theirs._AUGMENTATION_SPACE[OPERATIONS[number]]
            found = magnitudes(bins, 32, 32)
            magnitude = 0.0 if found is None else float(found[magnitude_of(strength)])
            image = theirs._apply_image_or_video_transform(
                image, OPERATIONS[number], -magnitude if signed and negative else magnitude,
                interpolation=theirs.interpolation, fill=theirs._fill,
            )  # fmt: skip
        return image

    return reference


def recipes() -> dict[str, Recipe]:
    usual: dict[str, Any] = {"crop": Crop(4), "flip": HorizontalFlip()}
    return {
        "standard": Recipe(
            Pipeline(**usual),
            [v1.RandomCrop(32, padding=4), v1.RandomHorizontalFlip(), v1.ToTensor()],
            [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)],
            crop_and_flip, 0, (35, 25), pil_reference=crop_and_flip,
            batches=[] if kornia is None else [kornia.RandomCrop((32, 32), padding=4), kornia.RandomHorizontalFlip()],
        ),
        "rich": Recipe(
            Pipeline(
                rotate=Rotate(DEGREES), right=TranslateX(SHIFT), down=TranslateY(SHIFT),
                brightness=Brightness((1 - JITTER, 1 + JITTER)), contrast=Contrast((1 - JITTER, 1 + JITTER)),
                saturation=Saturation((1 - JITTER, 1 + JITTER)), erase=Erasing(),
            ),
            [v1.RandomAffine(DEGREES, (SHIFT, SHIFT), interpolation=BILINEAR), v1.ColorJitter(JITTER, JITTER, JITTER),
             v1.ToTensor(), v1.RandomErasing()],
            [v2.RandomAffine(DEGREES, (SHIFT, SHIFT), interpolation=BILINEAR), v2.ColorJitter(JITTER, JITTER, JITTER),
             v2.RandomErasing(), v2.ToDtype(torch.float32, scale=True)],
            rich, 2, (20, 12),
            batches=[] if kornia is None else [
                kornia.RandomAffine(DEGREES, (SHIFT, SHIFT), p=1.0), kornia.ColorJitter(JITTER, JITTER, JITTER, p=1.0),
                kornia.RandomErasing(),
            ],
        ),
        "trivial": Recipe(
            Pipeline(**usual, trivial=TrivialAugment()),
            [v1.RandomCrop(32, padding=4), v1.RandomHorizontalFlip(), v1.TrivialAugmentWide(), v1.ToTensor()],
            [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.TrivialAugmentWide(),
             v2.ToDtype(torch.float32, scale=True)],
            policy("trivial", v2.TrivialAugmentWide(), lambda strength: strength), 1, (25, 16),
        ),
        "rand": Recipe(
            Pipeline(**usual, rand=RandAugment(2, 9)),
            [v1.RandomCrop(32, padding=4), v1.RandomHorizontalFlip(), v1.RandAugment(2, 9), v1.ToTensor()],
            [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.RandAugment(2, 9),
             v2.ToDtype(torch.float32, scale=True)],
            policy("rand", v2.RandAugment(2, 9), lambda strength: 9), 2, (18, 10),
        ),
    }  # fmt: skip


# --- what is timed ----------------------------------------------------------------------------------------


class Pictures(Dataset):  # type: ignore[type-arg]
    """The PIL images of an array, like torchvision's CIFAR10."""

    def __init__(self, images_NCHW: Tensor, transforms: list[Any]) -> None:
        self.images_NHWC = images_NCHW.permute(0, 2, 3, 1).contiguous().numpy()
        self.transform = v1.Compose(transforms)

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images_NHWC[index])), 0


class Tensors(Dataset):  # type: ignore[type-arg]
    def __init__(self, images_NCHW: Tensor, transforms: list[Any]) -> None:
        self.images_NCHW, self.transform = images_NCHW, v2.Compose(transforms)

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images_NCHW[index]), 0


class Batched(Tensors):
    """Transforms whole batches, for kornia."""

    def __init__(self, images_NCHW: Tensor, transforms: list[Any]) -> None:
        self.images_NCHW, self.transform = images_NCHW, nn.Sequential(*transforms)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(indices)
        return self.transform(self.images_NCHW[chosen].float().div_(255)), torch.zeros(len(chosen))


def speed(batches: Iterable[Any], skip: int, count: int) -> float:
    """Images per second over `count` batches, after `skip` untimed ones."""
    gc.collect()
    source, seen = iter(batches), 0
    for _ in itertools.islice(source, skip):
        pass
    start = time.perf_counter()
    for images, *_ in itertools.islice(source, count):
        seen += len(images)
    return seen / (time.perf_counter() - start)


def loader_speed(data: Any, workers: int, batch_size: int, count: int, collate: Any = None) -> float:
    skip = 1 + 2 * workers  # a DataLoader prefetches two batches per worker
    sampler = RandomSampler(data, num_samples=(2 * skip + count) * batch_size)
    return speed(DataLoader(data, batch_size, sampler=sampler, num_workers=workers, collate_fn=collate), skip, count)


class Epochs:
    """Our input: the batches of successive epochs."""

    def __init__(
        self, images: Any, preprocessing: nn.Module, pipeline: Pipeline, batch_size: int, device: str = "cpu"
    ) -> None:
        self.pipeline, self.shape, self.numbers = pipeline, tuple(images.shape), itertools.count()
        self.batches = TrainingBatches(
            images.to(device) if isinstance(images, Tensor) else images,
            torch.zeros(len(images), dtype=torch.int64, device=device),
            batch_size=batch_size, micro_batch=batch_size, limit=None, seed=SEED, sampler=Shuffle(),
            augmentation=pipeline, preprocessing=preprocessing.to(device), strategy=Single(), channels_last=False,
        )  # fmt: skip

    def __iter__(self) -> Any:
        return self.batches.epoch(next(self.numbers))

    def table(self, epoch: int) -> dict[str, Tensor]:
        """Augmentation parameters of every sample in `epoch`."""
        C, H, W = self.shape[1:]
        return self.pipeline.draw(self.shape[0], (C, H, W), generator_for(SEED, "augmentation", epoch))


def normalising(preprocessing: Standardize) -> tuple[list[float], list[float]]:
    """Mean and standard deviation for images in 0..1."""
    mean, reciprocal = preprocessing.mean.flatten().cpu(), preprocessing.reciprocal_std.flatten().cpu()
    return (mean / 255).tolist(), (1 / (255 * reciprocal)).tolist()


# --- what is compared -------------------------------------------------------------------------------------


@dataclass
class Equality:
    """Largest difference of our images from a reference, in levels of 0..255; `share` of the values differ by half a
    level or more.
    """

    name: str
    images: int
    most: float
    share: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"{self.name}, {self.images} images: {max(0, self.most - SLACK):.3g} levels apart at most "
            f"({self.tolerance:g} allowed), {self.share:.2%} of the values"
        )

    @property
    def holds(self) -> bool:
        return self.most <= self.tolerance + SLACK


def compare(
    name: str, batch: Batch, references: Iterable[Any], preprocessing: Standardize, tolerance: float
) -> Equality:
    """Compare our batch with images (PIL or uint8 tensors) that torchvision normalizes."""
    mean, std = normalising(preprocessing)
    theirs = torch.stack([
        one.normalize(one.to_dtype(one.to_image(image), torch.float32, scale=True), mean, std) for image in references
    ])  # fmt: skip
    levels = (batch.images.cpu() - theirs).abs_().mul_(torch.tensor(std).view(-1, 1, 1) * 255)
    return Equality(name, len(theirs), levels.max().item(), (levels >= 0.5).float().mean().item(), tolerance)


def rows_of(table: dict[str, Tensor], indices: Tensor) -> list[Row]:
    chosen = {name: values[indices].tolist() for name, values in table.items()}
    return [dict(zip(chosen, row, strict=True)) for row in zip(*chosen.values(), strict=True)]


def check(name: str, recipe: Recipe, images_NCHW: Tensor, ours: Epochs, preprocessing: Standardize) -> list[Equality]:
    """Compare the first batch of an epoch with the references, image by image."""
    batch = next(iter(ours.batches.epoch(0)))
    rows = rows_of(ours.table(0), batch.indices)
    originals = images_NCHW[batch.indices]
    theirs = [recipe.reference(image, row) for image, row in zip(originals, rows, strict=True)]
    found = [compare(f"{name} to v2", batch, theirs, preprocessing, recipe.tolerance)]
    if recipe.pil_reference is not None:
        theirs = [
            recipe.pil_reference(one.to_pil_image(image), row) for image, row in zip(originals, rows, strict=True)
        ]
        found.append(compare(f"{name} to PIL", batch, theirs, preprocessing, recipe.tolerance))
    return found


def require_equal(found: list[Equality]) -> list[str]:
    """Format the comparisons. Raises SystemExit if one exceeds its tolerance."""
    for equality in found:
        if not equality.holds:
            raise SystemExit(f"not the same images, so nothing is timed: {equality}")
    return [str(equality) for equality in found]


# --- small images -----------------------------------------------------------------------------------------


def small_images(data: Path | None, count: int) -> tuple[Tensor, str]:
    """uint8 images (count, 3, 32, 32) and a description of them."""
    with tempfile.TemporaryDirectory() as folder:
        root = data
        if data is not None and (data / "cifar10-packed").is_dir():
            subprocess.run([sys.executable, data / "unpack.py", folder], check=True, stdout=subprocess.DEVNULL)
            root = Path(folder)
        if root is None or not (cifar := CIFAR10(str(root), download=False)).is_present():
            generator = torch.Generator().manual_seed(SEED)
            shape = (count, 3, 32, 32)
            return torch.randint(256, shape, dtype=torch.uint8, generator=generator), "random pixels"
        splits = cifar.load()
    images = torch.cat((splits.train.images_NCHW, splits.val.images_NCHW))
    return images[:count].clone(), "CIFAR-10"


def small_contestants(
    recipe: Recipe, images_NCHW: Tensor, ours: Epochs, preprocessing: Standardize, count: int, batch_size: int
) -> dict[str, Callable[[], float]]:
    """Our input is timed over whole epochs, including drawing the order and the parameters; the others over `count`
    batches."""
    mean, std = normalising(preprocessing)
    pil = Pictures(images_NCHW, [*recipe.pil, v1.Normalize(mean, std)])
    tensors = Tensors(images_NCHW, [*recipe.tensors, v2.Normalize(mean, std)])
    found = {
        "PIL, 0 workers": lambda: loader_speed(pil, 0, batch_size, count),
        "PIL, 2 workers": lambda: loader_speed(pil, 2, batch_size, 2 * count),
        "v2, 0 workers": lambda: loader_speed(tensors, 0, batch_size, count),
    }
    if recipe.batches:
        batches = Batched(images_NCHW, [*recipe.batches, kornia.Normalize(torch.tensor(mean), torch.tensor(std))])
        found["kornia, 0 workers"] = lambda: loader_speed(batches, 0, batch_size, count, collate=tuple)
    found["ours"] = lambda: speed(ours, 0, len(images_NCHW))
    return found


# --- photographs ------------------------------------------------------------------------------------------


def photo_folder(source: Path, folder: Path, copies: int) -> Path:
    """Symlinks to the photographs, `copies` for each training photograph, so that an epoch is longer than worker
    start-up."""
    for part, origin, times in (("train", "train", copies), ("val", "val", 1), ("test", "val", 1)):
        for path in sorted((source / origin).glob("*/*.jpg")):
            target = folder / part / path.parent.name
            target.mkdir(parents=True, exist_ok=True)
            for copy in range(times):
                (target / f"{path.stem}_{copy}.jpg").symlink_to(path)
    return folder


def photo_epochs(root: Path, cache: Any, workers: int, batch_size: int) -> Epochs:
    data = ImageFolder(str(root), PHOTO_SIZE, cache=cache, workers=workers, cache_dir=str(root / ".cache"))
    pipeline = Pipeline(crop=ResizedCrop(), flip=HorizontalFlip())
    return Epochs(data.load().train.images_NCHW, imagenet(), pipeline, batch_size)


def imagenet() -> Standardize:
    preprocessing = Standardize()
    preprocessing.mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1) * 255
    preprocessing.reciprocal_std = 1 / (torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) * 255)
    return preprocessing


def pil_folder(root: Path) -> torchvision.datasets.ImageFolder:
    transforms = [v1.RandomResizedCrop(PHOTO_SIZE), v1.RandomHorizontalFlip(), v1.ToTensor()]
    return torchvision.datasets.ImageFolder(
        str(root / "train"), v1.Compose([*transforms, v1.Normalize(*normalising(imagenet()))])
    )


def check_photographs(pil: torchvision.datasets.ImageFolder, ours: Epochs, others: list[Epochs]) -> list[Equality]:
    """Compare the first batch of an epoch with torchvision's decoder and resize, with PIL's, and with ours using
    workers or a cache."""
    batch = next(iter(ours.batches.epoch(0)))
    chosen = {name: values[batch.indices] for name, values in ours.table(0).items()}
    images: Any = ours.batches.images
    frames = ours.pipeline.frames(chosen, images.sizes[batch.indices], (PHOTO_SIZE, PHOTO_SIZE))
    assert frames is not None
    by_v2, by_pil = [], []
    for index, frame, flip in zip(batch.indices.tolist(), frames.tolist(), chosen["flip.applied"], strict=True):
        path = pil.samples[index][0]
        content = bytearray(Path(path).read_bytes())
        decoded = decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), mode=ImageReadMode.RGB)
        for image, done in ((decoded, by_v2), (pil.loader(path), by_pil)):
            cut = one.resized_crop(image, *frame[:4], [PHOTO_SIZE, PHOTO_SIZE], antialias=True)
            done.append(one.horizontal_flip(cut) if flip else cut)
    found = [
        compare("photographs to v2", batch, by_v2, imagenet(), 0),
        compare("photographs to PIL", batch, by_pil, imagenet(), PIL_DECODES_WITHIN),
    ]
    for other in others:
        apart = (next(iter(other.batches.epoch(0))).images - batch.images).abs_()
        share = (apart > 0).float().mean().item()
        found.append(Equality("photographs from workers, a cache", len(apart), apart.max().item(), share, 0))
    return found


def photo_contestants(
    root: Path, ours: dict[str, Epochs], batch_size: int, count: int
) -> dict[str, Callable[[], float]]:
    pil = pil_folder(root)
    found: dict[str, Callable[[], float]] = {}
    for n in (0, 1, 2):
        found[f"PIL, {n} workers"] = partial(loader_speed, pil, n, batch_size, count)
    for name, epochs in ours.items():
        # from memory: a whole epoch; otherwise the batches prefetched by workers are skipped
        skip, length = (0, len(pil)) if "memory" in name else (5, count)
        found[name] = partial(speed, epochs, skip, length)
    return found


# --- on another device ------------------------------------------------------------------------------------


def resnet18(device: str) -> nn.Module:
    """ResNet-18 for 32x32 images: a 3x3 first convolution with stride 1 and no max pooling."""
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model.to(device, memory_format=torch.channels_last).train()


class Training:
    """Training steps of ResNet-18 in bf16 and channels_last."""

    def __init__(self, device: str) -> None:
        self.device, self.model = device, resnet18(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9, fused=True)

    def step(self, images: Tensor, targets: Tensor) -> None:
        images = images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            outputs = self.model(images)
        nn.functional.cross_entropy(outputs.float(), targets.to(self.device, torch.int64)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def epoch(self, batches: Iterable[Any]) -> None:
        for images, targets, *_ in batches:
            self.step(images, targets)


def seconds(work: Callable[[], Any], device: str, rounds: int) -> list[float]:
    """Seconds per round; one warm-up round is not counted."""
    found = []
    for _ in range(rounds + 1):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return found[1:]


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def device_table(
    chosen: dict[str, Recipe], images_NCHW: Tensor, device: str, rounds: int, batch_size: int, workers: int
) -> list[str]:
    """Images per second on `device`, their cost relative to a training step, and the duration of training epochs."""
    preprocessing = Standardize()
    preprocessing.fit(images_NCHW)
    training, count = Training(device), len(images_NCHW)
    batch = torch.randn(batch_size, 3, 32, 32, device=device), torch.zeros(batch_size, dtype=torch.int64, device=device)
    step = statistics.median(seconds(lambda: training.epoch([batch] * 20), device, rounds)) / 20
    head, rule = ["recipe", "images/s", "share of a step", "epoch (s)", f"epoch with PIL, {workers} workers (s)"], []
    for name, recipe in chosen.items():
        ours = Epochs(images_NCHW, preprocessing, recipe.pipeline, batch_size, device)
        require_equal(check(name, recipe, images_NCHW, ours, preprocessing))
        alone = [count / taken for taken in seconds(partial(deque, ours, 0), device, rounds)]
        shares = [batch_size / images_a_second / step for images_a_second in alone]
        pil = Pictures(images_NCHW, [*recipe.pil, v1.Normalize(*normalising(preprocessing))])
        loader = DataLoader(pil, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        with_ours = seconds(partial(training.epoch, ours), device, rounds)
        with_pil = seconds(partial(training.epoch, loader), device, 1)
        columns = [_spread(alone, 0), _spread(shares, 3), _spread(with_ours, 2), _spread(with_pil, 2)]
        rule.append(f"| {name} | {' | '.join(columns)} |")
    speed_line = f"ResNet-18, bf16, channels_last: {batch_size / step:,.0f} images/s"
    return [speed_line, "", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rule]


# --- tables -----------------------------------------------------------------------------------------------

Speeds = dict[str, list[float]]


def measure(groups: dict[str, dict[str, Callable[[], float]]], rounds: int) -> dict[str, Speeds]:
    """Images per second of each contestant in each round; one warm-up round is not counted."""
    found: dict[str, Speeds] = {group: {name: [] for name in members} for group, members in groups.items()}
    for number in range(rounds + 1):
        for group, members in groups.items():
            for name, contestant in members.items():
                images_a_second = contestant()
                if number:
                    found[group][name].append(images_a_second)
    return found


def ratios(own: list[float], other: list[float]) -> list[float]:
    return [a / b for a, b in zip(own, other, strict=True)]


def table(speeds: dict[str, Speeds], wanted: dict[str, dict[str, str]]) -> list[str]:
    lines = [
        "| recipe | loader | images/s | to PIL, 0 workers | to PIL, 2 workers | wanted |",
        "|---|---|---|---|---|---|",
    ]
    for group, members in speeds.items():
        for name, found in members.items():
            columns = [_spread(found, 0)]
            columns += [_spread(ratios(found, members[f"PIL, {n} workers"]), 1) for n in (0, 2)]
            lines.append(f"| {group} | {name} | {' | '.join(columns)} | {wanted[group].get(name, '')} |")
    return lines


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}..{max(values):,.{digits}f})"


def header(arguments: argparse.Namespace, pixels: str) -> list[str]:
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    versions |= {"Pillow": PIL.__version__, "kornia": kornia_version() or "not installed, left out"}
    return [
        f"{datetime.date.today()}, {processor()}, {os.cpu_count()} cores, {', '.join(map(' '.join, versions.items()))}",
        f"`{shlex.join(['python', *sys.argv])}`",
        f"{pixels}, 1 thread a process, n={arguments.rounds}; median (least..most)",
        "",
    ]


def processor() -> str:
    """Processor model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def kornia_version() -> str | None:
    return None if kornia is None else importlib.metadata.version("kornia")


def small_table(chosen: dict[str, Recipe], images_NCHW: Tensor, rounds: int, count: int, batch_size: int) -> list[str]:
    """Results of the comparisons, memory used by the layout, and the speeds."""
    preprocessing = Standardize()
    preprocessing.fit(images_NCHW)
    lines, groups = [], {}
    for name, recipe in chosen.items():
        ours = Epochs(images_NCHW, preprocessing, recipe.pipeline, batch_size)
        lines += [f"- {line}" for line in require_equal(check(name, recipe, images_NCHW, ours, preprocessing))]
        taken = ours.batches.images.untyped_storage().nbytes() / images_NCHW.nbytes
        lines.append(f"- {name} is read from {taken:.2f} times the bytes of the uint8 images")
        groups[name] = small_contestants(recipe, images_NCHW, ours, preprocessing, count, batch_size)
    wanted = {name: {"ours": "{} ({})".format(*recipe.wanted)} for name, recipe in chosen.items()}
    return [*lines, "", *table(measure(groups, rounds), wanted)]


def photo_table(source: Path, rounds: int, count: int, batch_size: int, copies: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        root = photo_folder(source, Path(folder), copies)
        ours = {f"ours, {n} workers": photo_epochs(root, "none", n, batch_size) for n in (0, 1, 2)}
        ours["ours, from memory"] = photo_epochs(root, "memory", 0, batch_size)
        first, *others = ours.values()
        lines = [f"- {line}" for line in require_equal(check_photographs(pil_folder(root), first, others))]
        speeds = measure({"photographs": photo_contestants(root, ours, batch_size, count)}, rounds)
    found = speeds["photographs"]
    lines += ["", *table(speeds, {"photographs": {"ours, from memory": "10"}}), ""]
    for n in (0, 1, 2):
        gained = ratios(found[f"ours, {n} workers"], found[f"PIL, {n} workers"])
        lines.append(f"- ours to PIL, {n} workers each: {_spread(gained, 2)} (wanted 1.5)")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*recipes(), "photographs"]
    parser.add_argument("recipes", nargs="*", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=8, help="that a DataLoader is timed for in a round")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--copies", type=int, default=4, help="of each photograph in an epoch")
    parser.add_argument("--data", type=Path, default=os.environ.get("DATA_ROOT"), help="DATA_ROOT by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="a file for the report")
    arguments = parser.parse_args()
    chosen = arguments.recipes or known
    if unknown := set(chosen) - set(known):
        parser.error(f"{', '.join(unknown)}: must be of {', '.join(known)}")
    torch.set_num_threads(1)
    small = {name: recipe for name, recipe in recipes().items() if name in chosen}
    images_NCHW, pixels = small_images(arguments.data, arguments.images)
    report = header(arguments, pixels)
    if small and arguments.device != "cpu":
        report += device_table(small, images_NCHW, arguments.device, arguments.rounds, BATCH, os.cpu_count() or 1)
    elif small:
        report += small_table(small, images_NCHW, arguments.rounds, arguments.batches, BATCH)
    if "photographs" in chosen and arguments.device == "cpu":
        source = None if arguments.data is None else arguments.data / "flowers"
        if source is not None and source.is_dir():
            report += photo_table(source, arguments.rounds, arguments.batches, PHOTO_BATCH, arguments.copies)
        else:
            report += ["photographs: left out, target is no folder `flowers` in --data"]
    print("\n".join(report))
    if arguments.output is not None:
        arguments.output.write_text("\n".join(report) + "\n")


if __name__ == "__main__":
    main()
