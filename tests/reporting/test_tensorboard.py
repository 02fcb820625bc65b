"""Everything is read with TensorBoard's own code: event accumulator, multiplexer, HParams back end."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from trainer import assemble, compose, fit
from trainer.reporting.metrics_file import read_metrics
from trainer.reporting.tensorboard import TensorBoard, check_events, draw_confusion_matrix, image_grid
from trainer.storage import run_folder
from trainer.storage.records import write_yaml


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return accumulator.Reload()


def series(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def event_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("events.out.tfevents.*"))


@pytest.fixture
def board(tmp_path: Path) -> Iterator[TensorBoard]:
    board = TensorBoard(tmp_path, None, None)
    yield board
    board.close()


def test_scalars_are_read_back_with_step_and_value(board: TensorBoard, tmp_path: Path) -> None:
    for step in (10, 20):
        board.scalars(step, {"train/loss": 1.0 / step, "lr": 0.1})
    board.scalars(30, {"train/loss": math.nan, "lr": math.inf})
    board.close()
    steps, losses = zip(*series(tmp_path, "train/loss"), strict=True)
    assert steps == (10, 20, 30)
    assert losses[:2] == (np.float32(0.1), np.float32(0.05))
    assert math.isnan(losses[2])
    assert series(tmp_path, "lr")[-1] == (30, math.inf)
    assert [path.name for path in tmp_path.iterdir()] == event_files(tmp_path), "no sub-folder"


KILLED_RUN = """
    import json, os, signal, sys
    from pathlib import Path
    from trainer.reporting.tensorboard import TensorBoard
    board = TensorBoard(Path(sys.argv[1]), None, None)
    board.charts()
    board.start_hparams({"lr": 0.1})
    for step in range(1, 11):
        board.scalars(step, {"train/loss": step / 4 if step <= 6 else -1.0, "lr": 0.1})
        if step == 6:
            print(json.dumps(board.offsets()), flush=True)
    board.finish_hparams("interrupted")
    if sys.argv[2] == "flushed":
        board.offsets()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("state", ["flushed", "half_written"])
def test_a_killed_and_resumed_run_shows_every_step_once(tmp_path: Path, state: str) -> None:
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(KILLED_RUN), str(tmp_path), state],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    if state == "flushed":
        assert len(series(tmp_path, "train/loss")) == 10, "the test needs something to cut off"
    board = TensorBoard(tmp_path, json.loads(child.stdout), purge_step=7)
    board.charts()
    board.start_hparams({"lr": 0.1})
    for step in range(7, 11):
        board.scalars(step, {"train/loss": step / 4, "lr": 0.1})
    board.finish_hparams("completed")
    board.close()
    assert series(tmp_path, "train/loss") == [(step, step / 4) for step in range(1, 11)]
    assert [step for step, _ in series(tmp_path, "lr")] == list(range(1, 11))
    assert len(event_files(tmp_path)) == 2
    for tag in ("_hparams_/session_start_info", "_hparams_/session_end_info", "custom_scalars__config__"):
        assert len(read(tmp_path).Tensors(tag)) == 1
    (group,) = session_groups(tmp_path)
    assert status_name(group.sessions[0]) == "STATUS_SUCCESS"


def test_a_run_can_be_resumed_twice(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, None, None)
    board.scalars(1, {"lr": 1.0})
    for step in (2, 3):
        offsets = board.offsets()
        board.scalars(step, {"lr": -1.0})
        board.sync()
        board.close()
        board = TensorBoard(tmp_path, offsets, purge_step=step)
        board.scalars(step, {"lr": float(step)})
    board.close()
    assert len(event_files(tmp_path)) == 3
    assert series(tmp_path, "lr") == [(1, 1.0), (2, 2.0), (3, 3.0)]


@pytest.mark.parametrize("now", [2_000_000_000.0, 1_000_000_000.0], ids=["the same second", "set back"])
def test_sessions_are_read_in_their_order_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: float
) -> None:
    clock = [2_000_000_000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    offsets: dict[str, int] | None = None
    for step in (1, 2, 3):
        board = TensorBoard(tmp_path, offsets, purge_step=step)
        board.scalars(step, {"lr": float(step)})
        offsets = board.offsets()
        board.close()
        clock[0] = now
    assert [Path(name).name.split(".")[3] for name in event_files(tmp_path)] == [
        "2000000000",
        "2000000001",
        "2000000002",
    ]
    assert series(tmp_path, "lr") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_changed_event_file_is_noticed_up_to_its_offset(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, None, None)
    board.scalars(1, {"lr": 1.0})
    board.checksums(board.offsets())
    board.scalars(2, {"lr": 1.0})
    offsets = board.offsets()
    checksums = board.checksums(offsets)
    board.scalars(3, {"lr": 1.0})
    board.close()
    check_events(tmp_path, offsets, checksums)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    check_events(tmp_path, offsets, checksums)
    content[offsets[path.name] - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged: its beginning is not what the checkpoint recorded"):
        check_events(tmp_path, offsets, checksums)


def test_a_fresh_run_removes_earlier_events_and_nothing_else(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, None, None)
    board.scalars(1, {"old": 1.0})
    board.close()
    (tmp_path / "metrics.jsonl").write_text("kept")
    board = TensorBoard(tmp_path, None, None)
    board.scalars(1, {"new": 1.0})
    board.close()
    assert read(tmp_path).Tags()["scalars"] == ["new"]
    assert len(event_files(tmp_path)) == 1
    assert (tmp_path / "metrics.jsonl").read_text() == "kept"


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_damaged_event_files_are_refused_and_left_alone(tmp_path: Path, damage: str) -> None:
    board = TensorBoard(tmp_path, None, None)
    board.scalars(1, {"lr": 1.0})
    offsets = board.offsets()
    board.close()
    if damage == "missing":
        wanted = {**offsets, "events.out.tfevents.0000000001.host.1.0": 88}
    else:
        wanted = {name: size + 1 for name, size in offsets.items()}
    with pytest.raises(ValueError, match=r"damaged: it has \d+ bytes, but the checkpoint recorded"):
        TensorBoard(tmp_path, wanted, purge_step=2)
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == offsets


def test_offsets_name_nothing_outside_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ValueError, match="damaged"):
        TensorBoard(folder, {"../outside": 3}, purge_step=None)
    assert outside.read_text() == "precious"


def test_text_is_kept_as_markdown(board: TensorBoard, tmp_path: Path) -> None:
    board.text("config", "```yaml\nlr: 0.1\n```")
    board.close()
    (event,) = read(tmp_path).Tensors("config/text_summary")
    assert event.tensor_proto.string_val == [b"```yaml\nlr: 0.1\n```"]


def test_images_become_one_picture(board: TensorBoard, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    board.images("augmented", images, step=3)
    board.close()
    (event,) = read(tmp_path).Images("augmented")
    picture = np.asarray(Image.open(BytesIO(event.encoded_image_string)))
    assert event.step == 3
    assert np.array_equal(picture.transpose(2, 0, 1), image_grid(images).numpy())


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (3, 3), (4, 1), (2, 1)])
def test_grid_shows_every_image_whole_and_enlarged(channels: int, shown: int) -> None:
    images = torch.rand(5, channels, 8, 6, generator=torch.Generator().manual_seed(1))
    grid = image_grid(images)
    cell_height, cell_width = 8 * 8 + 2, 8 * 6 + 2
    assert grid.shape == (shown, 2 * cell_height, 3 * cell_width)
    for index in range(5):
        top, left = index // 3 * cell_height + 1, index % 3 * cell_width + 1
        cell = grid[:, top : top + 64, left : left + 48].numpy()
        expected = np.stack(
            [
                np.kron(np.rint(image.numpy() * 255).astype(np.uint8), np.ones((8, 8), np.uint8))
                for image in images[index, :shown]
            ]
        )
        assert np.array_equal(cell, expected)
    assert (grid[:, cell_height:, 2 * cell_width :] == 128).all(), "the sixth place is empty"


def test_grid_does_not_enlarge_large_images_and_clamps_floats() -> None:
    grid = image_grid(torch.tensor([-0.5, 0.0, 1.0, 2.0]).repeat_interleave(50 * 50).view(4, 1, 50, 50))
    assert grid.shape == (1, 104, 104)
    corners = [int(grid[0, row, column]) for row in (1, 102) for column in (1, 102)]
    assert corners == [0, 0, 255, 255]


def test_confusion_matrix_is_coloured_by_row_share() -> None:
    matrix_KK = torch.tensor([[8, 0], [900, 100]])
    picture = draw_confusion_matrix(matrix_KK, ["cat", "dog"])
    colours = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    large = {tuple(map(int, colour)) for colour, count in zip(*colours, strict=True) if count > 5000}
    from matplotlib import colormaps

    expected = {
        tuple(int(part) for part in colormaps["Blues"](share, bytes=True)[:3]) for share in (0.0, 0.1, 0.9, 1.0)
    }
    assert expected <= large


@pytest.mark.parametrize("num_classes", [1, 2, 20, 21, 100, 1000])
def test_confusion_matrix_of_any_size_is_drawn(board: TensorBoard, tmp_path: Path, num_classes: int) -> None:
    matrix_KK = torch.eye(num_classes, dtype=torch.int64)
    matrix_KK[0, 0] = 0  # a class without samples
    names = [f"${index}_\u96ea" for index in range(num_classes)]
    board.confusion_matrix(matrix_KK, names, step=1)
    board.close()
    (event,) = read(tmp_path).Images("val/confusion_matrix")
    assert 250 < event.height <= 1250
    assert 350 < event.width <= 1350


def test_matplotlib_is_imported_late_and_pyplot_never(tmp_path: Path) -> None:
    code = """
        import pathlib, sys
        from trainer.reporting.curves import draw_curves
        from trainer.reporting.tensorboard import draw_confusion_matrix
        assert "matplotlib" not in sys.modules and "tensorboard" not in sys.modules
        import torch
        draw_confusion_matrix(torch.eye(2), ["a", "b"])
        draw_curves([{"step": 1, "epoch": 1.0, "train/loss": 2.0}], pathlib.Path(sys.argv[1]), "a run")
        assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(tmp_path / "curves.png")]
    subprocess.run(command, check=True)


def test_charts_put_train_and_val_together(board: TensorBoard, tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    board.charts()
    board.close()
    (event,) = read(tmp_path).Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(event.tensor_proto.string_val[0]).category
    tags = ["train/loss", "val/loss", "val/loss_ema", "train/accuracy", "val/accuracy", "val/accuracy_top5"]
    tags += ["lr", "lr/head", "lr_other", "grad_norm"]
    shown = {
        chart.title: [tag for tag in tags if any(re.match(pattern, tag) for pattern in chart.multiline.tag)]
        for chart in category.chart
    }
    assert shown == {
        "loss": ["train/loss", "val/loss"],
        "accuracy": ["train/accuracy", "val/accuracy"],
        "learning rate": ["lr", "lr/head"],
        "gradient norm": ["grad_norm"],
    }


def backend(folder: Path) -> tuple[Any, Any]:
    """TensorBoard's HParams back end over all runs below `folder`, constructed like its web server's."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams.backend_context import Context

    multiplexer = EventMultiplexer(tensor_size_guidance={"scalars": 0})
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    return Context(TBContext(data_provider=provider, multiplexer=multiplexer)), RequestContext()


def session_groups(folder: Path) -> Any:
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.list_session_groups import Handler

    context, request_context = backend(folder)
    request = api_pb2.ListSessionGroupsRequest(allowed_statuses=api_pb2.Status.values(), slice_size=100)
    return Handler(request_context, context, "", request).run().session_groups


def experiment(folder: Path) -> Any:
    from tensorboard.plugins.hparams.api_pb2 import GetExperimentRequest
    from tensorboard.plugins.hparams.get_experiment import Handler

    context, request_context = backend(folder)
    return Handler(request_context, context, "", GetExperimentRequest()).run()


def status_name(session: Any) -> str:
    from tensorboard.plugins.hparams import api_pb2

    return str(api_pb2.Status.Name(session.status))


def hparam_values(group: Any) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()}


def test_hparams_tab_has_the_chosen_columns_and_all_values(tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {
        "adamw": {"optimizer": "adamw", "optimizer.lr": 0.001, "optimizer.weight_decay": 0.01, "seed": 1},
        "sgd": {"optimizer": "sgd", "optimizer.lr": 0.1, "optimizer.nesterov": True, "seed": None},
    }
    for number, (name, values) in enumerate(runs.items()):
        board = TensorBoard(tmp_path / name, None, None)
        row = {**values, "betas": [0.9, 0.999], "clip_norm": math.inf}
        board.start_hparams(row, first=["optimizer", "optimizer.lr"], metrics=["val/loss", "val/accuracy", "test/loss"])
        for step in (1, 2):
            board.scalars(step, {"val/accuracy": step / 4 + number / 8, "train/loss": 1.0})
        board.finish_hparams("completed" if name == "adamw" else "diverged")
        board.close()

    groups = {group.name: group for group in session_groups(tmp_path)}
    assert set(groups) == {"adamw", "sgd"}
    common = {"betas": "[0.9, 0.999]", "clip_norm": "inf"}
    assert hparam_values(groups["adamw"]) == runs["adamw"] | common
    assert hparam_values(groups["sgd"]) == runs["sgd"] | common | {"seed": "null"}
    assert isinstance(hparam_values(groups["sgd"])["optimizer.nesterov"], bool)
    metrics = {
        name: {value.name.tag: (value.training_step, value.value) for value in group.sessions[0].metric_values}
        for name, group in groups.items()
    }
    assert metrics == {
        "adamw": {"val/accuracy": (2, 0.5)},
        "sgd": {"val/accuracy": (2, 0.625)},
    }
    statuses = {name: status_name(group.sessions[0]) for name, group in groups.items()}
    assert statuses == {"adamw": "STATUS_SUCCESS", "sgd": "STATUS_FAILURE"}

    columns = experiment(tmp_path)
    names = [info.name for info in columns.hparam_infos]
    assert names[:2] == ["optimizer", "optimizer.lr"]
    assert set(names) in (set(values) | set(common) for values in runs.values())  # of one run
    assert [info.name.tag for info in columns.metric_infos] == ["val/loss", "val/accuracy", "test/loss"]
    assert not any(info.domain_discrete.values or info.HasField("domain_interval") for info in columns.hparam_infos)


def test_a_running_run_is_listed_with_what_it_has_so_far(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path / "run", None, None)
    board.start_hparams({"lr": 0.5}, metrics=["val/loss"])
    board.scalars(4, {"val/loss": 0.25})
    board.offsets()
    (group,) = session_groups(tmp_path)
    assert hparam_values(group) == {"lr": 0.5}
    assert [value.value for value in group.sessions[0].metric_values] == [0.25]
    assert status_name(group.sessions[0]) == "STATUS_UNKNOWN"
    board.close()


SMALL = ["model=linear", "threads=1", "steps=4", "every.evaluate=2step", "data.val_fraction=0.8"]


@pytest.mark.parametrize("is_trial", [False, True])
def test_what_a_run_shows_first(tmp_path: Path, is_trial: bool) -> None:
    """HParams begins with what was varied and the metrics to compare; Time Series with charts of several points."""
    write_yaml(tmp_path / "multirun.yaml", {"hydra": {"overrides": {"task": [*SMALL, "seed=1,2"]}}}, "Hydra's")
    words = [*SMALL, "seed=1", "+early_stopping.monitor=val/accuracy"]
    config, folder = compose([word.lstrip("+") for word in words]), tmp_path / "0"
    run_folder.create(folder, config, words, exact=True)
    fit(assemble(config, folder, is_trial=is_trial, console=Console(file=StringIO())))
    columns, events = experiment(tmp_path), read(folder)
    first = [info.name for info in columns.hparam_infos if info.differs]
    listed = {info.name for info in columns.hparam_infos}
    typed = {word.lstrip("+").partition("=")[0] for word in words} & listed
    assert first == (["seed"] if is_trial else sorted(typed))
    assert {"seed", "model", "steps", "early_stopping.monitor", "data.val_fraction"} <= typed
    assert ("batch_size" in listed) != is_trial
    validation = ["val/accuracy", "val/loss", "val/cross_entropy"]
    test = ["test/loss", "test/accuracy", "test/cross_entropy"]
    assert [info.name.tag for info in columns.metric_infos] == validation + ([] if is_trial else test)
    (group,) = session_groups(tmp_path)
    shown = {value.name.tag for value in group.sessions[0].metric_values}
    assert shown == {info.name.tag for info in columns.metric_infos}, "each is a scalar"

    single = [tag for tag in events.Tags()["scalars"] if len(events.Scalars(tag)) == 1]
    assert single == ([] if is_trial else sorted(test, key=events.Tags()["scalars"].index))
    assert "diagnostics/initial_loss" in read_metrics(folder / "metrics.jsonl")[0]
    assert "diagnostics/initial_loss" in str(events.Tensors("first_step/text_summary")[0].tensor_proto)
    assert f"{'val' if is_trial else 'test'}/confusion_matrix" in events.Tags()["images"]
