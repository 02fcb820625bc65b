"""The benchmark of input pipelines compares the images of all contestants before it times them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import input as benchmark
from trainer.preprocessing import Standardize

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "input.py"


def checked(name: str, recipe: benchmark.Recipe, size: int = 64) -> list[benchmark.Equality]:
    images, _ = benchmark.small_images(None, 2 * size)
    images[::4] //= 8  # dark images with few levels
    preprocessing = Standardize()
    preprocessing.fit(images)
    ours = benchmark.Epochs(images, preprocessing, recipe.pipeline, size)
    return benchmark.check(name, recipe, images, ours, preprocessing)


@pytest.mark.parametrize("name", benchmark.recipes())
def test_recipes_are_torchvisions(name: str) -> None:
    found = checked(name, benchmark.recipes()[name])
    assert all(equality.holds and equality.images == 64 for equality in found)
    assert benchmark.require_equal(found) == [str(equality) for equality in found]


def test_nothing_is_timed_where_the_images_differ() -> None:
    recipe = benchmark.recipes()["standard"]
    recipe.reference = lambda image, row: benchmark.crop_and_flip(image, row | {"crop.offset_x": 0})
    with pytest.raises(SystemExit, match="not the same images, so nothing is timed: standard to v2, 64 images: "):
        benchmark.require_equal(checked("standard", recipe))


def test_a_difference_of_one_level_is_seen() -> None:
    recipe = benchmark.recipes()["standard"]
    recipe.reference = lambda image, row: benchmark.crop_and_flip(image, row).clamp(min=1)
    to_v2, _ = checked("standard", recipe)
    assert to_v2.most == pytest.approx(1, abs=1e-3)
    assert not to_v2.holds


def test_speed_counts_neither_what_is_skipped_nor_what_is_left() -> None:
    drawn = []

    def batches():
        for number in range(9):
            drawn.append(number)
            yield torch.zeros(4), number

    assert benchmark.speed(batches(), skip=2, count=3) > 0
    assert drawn == [0, 1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["standard", "photographs"])
def test_it_runs(recipe: str, data_root: Path, tmp_path: Path) -> None:
    few = ["--rounds", "1", "--batches", "1", "--images", "600", "--copies", "1"]
    command = [
        sys.executable,
        str(BENCHMARK),
        recipe,
        *few,
        "--data",
        str(data_root),
        "--output",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_text() == done.stdout
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(f"| {recipe} |")]
    assert {row[1] for row in rows} >= {"PIL, 0 workers", "PIL, 2 workers"}
    assert all(float(row[2].split()[0].replace(",", "")) > 0 for row in rows)
    assert f"{recipe} to v2" in done.stdout
