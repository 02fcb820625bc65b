"""Reads the pixels of the picture: the curves are at the right coordinates in the palette's colours."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.reporting import curves
from trainer.reporting.curves import draw_curves

BLUE, ORANGE, GREEN = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)


def run(num_epochs: int = 30, steps_per_epoch: int = 100) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(50, num_epochs * steps_per_epoch + 1, 50):
        part = step / (num_epochs * steps_per_epoch)
        record = {"step": step, "epoch": step / steps_per_epoch, "lr": 1e-3 * (1 - part)}
        record |= {"train/loss": 2.0 - part, "train/accuracy": 0.2 + 0.7 * part}
        if step % steps_per_epoch == 0:
            record |= {"val/loss": 2.2 - part, "val/accuracy": 0.1 + 0.7 * part}
        records.append(record)
    return records


def pixels(path: Path, colour: tuple[int, int, int]) -> np.ndarray:
    """(row, column) of every pixel with exactly this colour."""
    with Image.open(path) as picture:
        return np.argwhere((np.asarray(picture.convert("RGB")) == colour).all(axis=2))


def height_of(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.height


def in_plot(points: np.ndarray) -> np.ndarray:
    """Pixels without the legend, which is on the right."""
    return points[points[:, 1] < 900]


def test_curves_are_where_the_numbers_put_them(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    draw_curves(run(), path, "a run", 2900, 0.777, "val/accuracy")
    assert [child.name for child in tmp_path.iterdir()] == ["curves.png"], "no temporary file is left"
    height = height_of(path)
    blue, orange, green = (in_plot(pixels(path, colour)) for colour in (BLUE, ORANGE, GREEN))
    loss, accuracy = blue[blue[:, 0] < height * 0.4], blue[blue[:, 0] > height * 0.4]

    def slope(points: np.ndarray) -> float:
        return float(np.polyfit(points[:, 1], points[:, 0], 1)[0])

    assert slope(loss) > 0, "rows count downwards: the loss falls"
    assert slope(accuracy) < 0
    assert slope(green) > 0
    assert orange[orange[:, 0] < height * 0.4][:, 0].mean() < loss[:, 0].mean(), "validation loss is higher"
    assert green[:, 0].min() > accuracy[:, 0].max(), "the learning rate has its own panel below"


def test_panels_without_data_are_left_out(tmp_path: Path) -> None:
    full, without = tmp_path / "full.png", tmp_path / "without.png"
    draw_curves(run(), full, "a run")
    keep = ("step", "epoch", "train/loss", "val/loss")
    draw_curves([{name: record[name] for name in keep if name in record} for record in run()], without, "a run")
    assert len(pixels(without, GREEN)) == 0
    assert len(pixels(without, BLUE)) > 100
    assert height_of(without) == height_of(full) - 2 * 2.2 * 120


def test_another_monitored_metric_gets_a_panel(tmp_path: Path) -> None:
    records = [{"step": step, "epoch": step / 10, "val/mae": 1 / step} for step in range(1, 100)]
    draw_curves(records, tmp_path / "curves.png", "a run", 99, 1 / 99, "val/mae")
    assert len(in_plot(pixels(tmp_path / "curves.png", ORANGE))) > 100


def test_values_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    records = run()
    for record in records[20:40]:
        record |= {"train/loss": math.nan, "train/accuracy": math.inf, "lr": None}
    draw_curves(records, tmp_path / "curves.png", "a run", 100, math.nan, "val/loss")
    blue = in_plot(pixels(tmp_path / "curves.png", BLUE))
    columns = np.unique(blue[:, 1])
    assert np.diff(columns).max() > 0.3 * (columns.max() - columns.min())


@pytest.mark.parametrize(
    "records",
    [
        [{"step": 1, "epoch": 1.0, "train/loss": 2.0}],
        [{"step": 0, "epoch": 0.0, "val/loss": 2.0}],
        [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.0}],
        [{"step": 1, "epoch": 0.5, "train/loss": math.nan, "lr": 0.0}],
        [{"step": step, "epoch": step / 3, "train/loss": 1e30 * 0.1**step, "lr": 0.0} for step in range(60)],
        [{"step": step, "epoch": 1.0, "train/loss": -float(step)} for step in range(60)],
        [{"step": step, "epoch": step / 3, "train/loss": 0.1**step * (step % 9)} for step in range(60)],
    ],
    ids=["one", "step_0", "no_epoch", "nan", "huge", "negative", "zeros_on_a_log_axis"],
)
def test_unusual_runs_are_drawn(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    path = tmp_path / "curves.png"
    draw_curves(records, path, "100 % of $runs_a{$ with \u96ea\n" + "long " * 60, 1, records[0].get("val/loss"))
    with Image.open(path) as picture:
        picture.verify()


def test_nothing_is_written_without_data(tmp_path: Path) -> None:
    draw_curves([], tmp_path / "curves.png", "a run")
    draw_curves([{"step": 1, "epoch": 0.1, "grad_norm": 1.0}], tmp_path / "curves.png", "a run")
    assert list(tmp_path.iterdir()) == []


def test_a_million_lines_are_not_kept_in_memory(tmp_path: Path) -> None:
    """Here 60,000; the curve keeps its form and its ends, within the distance of two points that are kept."""
    count = 60_000
    records = ({"step": step, "epoch": step / 100, "train/loss": 1 + step % 2 / count} for step in range(count))
    panels, epochs = curves._panels(records, None)
    (curve,) = panels["loss"]
    assert 10_000 < len(curve.steps) <= 20_000 and len(epochs.steps) <= 20_000
    distances = np.diff([0, *curve.steps, count])
    assert distances.max() <= 8
    assert curve.values == [1 + step % 2 / count for step in curve.steps]
