"""TensorBoard event files in the run folder, each step exactly once even after a kill and a resume."""

import math
import os
import re
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.base.config import ConfigValue
from trainer.reporting.drawing import load_matplotlib
from trainer.reporting.glyphs import missing_glyphs_allowed
from trainer.storage.files import sync_folder
from trainer.storage.growing import GrowingHash

if TYPE_CHECKING:
    import numpy as np
    from google.protobuf.struct_pb2 import Value
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

_EVENT_FILES = "events.out.tfevents.*"
_SECOND = re.compile(r"events\.out\.tfevents\.(\d{10})\.")

# custom scalars match tags by regular expression
_CHARTS = {
    "Curves": {
        "loss": ["Multiline", [r"^train/loss$", r"^val/loss$"]],
        "accuracy": ["Multiline", [r"^train/accuracy$", r"^val/accuracy$"]],
        "learning rate": ["Multiline", [r"^lr$", r"^lr/"]],
        "gradient norm": ["Multiline", [r"^grad_norm$"]],
    }
}

# run status to a status of the HParams tab; a status that is not here is shown as unknown
_STATUS = {
    "completed": "STATUS_SUCCESS",
    "early_stopped": "STATUS_SUCCESS",
    "converged": "STATUS_SUCCESS",
    "diverged": "STATUS_FAILURE",
    "failed": "STATUS_FAILURE",
}

_HPARAM_TYPES = {
    "bool_value": "DATA_TYPE_BOOL",
    "number_value": "DATA_TYPE_FLOAT64",
    "string_value": "DATA_TYPE_STRING",
}


class TensorBoard:
    """Writes scalars, text, images and hyper-parameters to event files in `folder`.

    `offsets` (bytes of each event file, from a checkpoint) truncates the files to that checkpoint and removes other
    event files; None removes all. `purge_step` is the first step that will be written again, checkpoint step + 1: a
    running TensorBoard discards what it has read from there on. Raises ValueError, before anything is changed, if a
    file is missing or shorter than its offset.
    """

    def __init__(self, folder: Path, offsets: Mapping[str, int] | None, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder.absolute()  # event files are opened by name for each write
        self.is_resumed = bool(offsets)
        _cut(folder, offsets or {})
        _leave_errors_to_the_caller()
        with _later_than_all(folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)
        self._events: Any = self._writer.file_writer  # torch's hint says None
        self._hashes: dict[str, GrowingHash] = {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one event with all values, including non-finite ones (which TensorBoard draws as triangles)."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        entries = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._events.add_summary(Summary(value=entries), step)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        self._writer.add_text(tag, markdown, step)

    def images(self, tag: str, images_NCHW: Tensor, step: int) -> None:
        """Write a grid of all images, uint8 or floats in 0..1; see `image_grid`."""
        self._writer.add_image(tag, image_grid(images_NCHW), step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Write the distribution of some values."""
        self._writer.add_histogram(tag, values.float(), step)

    def confusion_matrix(
        self, matrix_KK: Tensor, class_names: Sequence[str], step: int, tag: str = "val/confusion_matrix"
    ) -> None:
        """Write counts (row: true class, column: predicted class), coloured by the fraction of the row."""
        self._writer.add_image(tag, draw_confusion_matrix(matrix_KK, class_names), step, dataformats="HWC")

    def charts(self) -> None:
        """Define charts with training and validation (Custom Scalars tab); only for a new run."""
        if not self.is_resumed:
            self._writer.add_custom_scalars(_CHARTS)

    def start_hparams(
        self,
        values: Mapping[str, ConfigValue],
        columns: Collection[str] | None = None,
        first: Collection[str] = (),
        metrics: Sequence[str] = (),
    ) -> None:
        """Write the run's row and columns of the HParams tab; only for a new run.

        Booleans, finite numbers and strings keep their type, other values are written as text (None as "null").
        `columns` (default: all) are the hyper-parameters to list. The tab shows five of them, sorted by name, those in
        `first` before the others, and the first five `metrics`.

        TensorBoard takes the columns of one run for all runs of a folder. They have no domain of values, which would
        hide the other values of other runs.
        """
        if self.is_resumed:
            return
        from tensorboard.plugins.hparams import api_pb2
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

        start = SessionStartInfo(start_time_secs=time.time())
        experiment = api_pb2.Experiment()
        for name, value in values.items():
            _set_hparam(start.hparams[name], value)
            kind = start.hparams[name].WhichOneof("kind")
            if columns is None or name in columns:
                experiment.hparam_infos.add(name=name, type=_HPARAM_TYPES[kind], differs=name in first)
        for name in metrics:
            experiment.metric_infos.add(name=api_pb2.MetricName(tag=name))
        self._add_hparams("_hparams_/experiment", HParamsPluginData(experiment=experiment))
        self._add_hparams("_hparams_/session_start_info", HParamsPluginData(session_start_info=start))

    def finish_hparams(self, status: str) -> None:
        """Write the run's status (completed, early_stopped, converged, interrupted, diverged, failed) and end time.

        Call it after the last `offsets()`: TensorBoard keeps the first status that it reads, so a resumed run must
        truncate it before writing its own.
        """
        from tensorboard.plugins.hparams.api_pb2 import Status
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

        code = Status.Value(_STATUS.get(status, "STATUS_UNKNOWN"))
        end = SessionEndInfo(status=code, end_time_secs=time.time())
        self._add_hparams("_hparams_/session_end_info", HParamsPluginData(session_end_info=end))

    def offsets(self) -> dict[str, int]:
        """Return the size of each event file in bytes, which checkpoints store."""
        self._writer.flush()
        return {path.name: path.stat().st_size for path in sorted(self._folder.glob(_EVENT_FILES))}

    def checksums(self, offsets: Mapping[str, int]) -> dict[str, str]:
        """Return the SHA-256 of each event file up to its offset, which checkpoints store, too."""
        for name in offsets.keys() - self._hashes.keys():
            self._hashes[name] = GrowingHash(self._folder / name)
        return {name: self._hashes[name].upto(size) for name, size in offsets.items()}

    def sync(self) -> None:
        """Flush the events to disk (fsync), before a checkpoint that counts them."""
        self._writer.flush()
        for path in self._folder.glob(_EVENT_FILES):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(self._folder)

    def close(self) -> None:
        self._writer.close()

    def _add_hparams(self, tag: str, data: "HParamsPluginData") -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import metadata

        value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
        self._events.add_summary(Summary(value=[value]))


def image_grid(images_NCHW: Tensor) -> Tensor:
    """Return all images in a square grid, uint8 (C, height, width), C = 1 or 3 (otherwise the first channel).

    Floats are in 0..1. Images are enlarged by an integer factor, without smoothing, until their shorter side is at
    least 48 pixels, so that 8x8 digits are visible.
    """
    images = images_NCHW.detach().cpu()
    if images.is_floating_point():
        images = images.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    if images.shape[1] not in (1, 3):
        images = images[:, :1]
    factor = max(1, math.ceil(48 / min(images.shape[2:])))
    images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    images = F.pad(images, (1, 1, 1, 1), value=128)
    num_images, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(num_images))
    rows = math.ceil(num_images / columns)
    images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, rows * columns - num_images), value=128)
    grid = images.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * height, columns * width)


def draw_confusion_matrix(matrix_KK: Tensor, class_names: Sequence[str]) -> "NDArray[np.uint8]":
    """Draw an RGB picture (uint8 array, height x width x 3): rows are true classes, columns predicted ones.

    The colour is the fraction of the row; counts are written into the cells for up to 20 classes.
    """
    import numpy as np

    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts_KK = matrix_KK.cpu().numpy()
    share_KK = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    num_classes = len(class_names)
    side = min(3.0 + 0.45 * num_classes, 12.0)
    figure = Figure(figsize=(side + 1.0, side), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(share_KK, cmap="Blues", vmin=0.0, vmax=1.0)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    every = math.ceil(num_classes / 40)
    ticks = range(0, num_classes, every)
    names = [class_names[tick] for tick in ticks]
    turned = 90 if max(map(len, names)) > 2 else 0
    axes.set_xticks(ticks, names, rotation=turned, fontsize=8, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=8, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if num_classes <= 20:
        _write_counts(axes, counts_KK, share_KK)
    with missing_glyphs_allowed():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _write_counts(axes: "Axes", counts_KK: "NDArray[np.int64]", share_KK: "NDArray[np.float64]") -> None:
    for row, column in zip(*counts_KK.nonzero(), strict=True):
        colour = "white" if share_KK[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts_KK[row, column]), ha="center", va="center", color=colour, fontsize=7)


def _set_hparam(slot: "Value", value: ConfigValue) -> None:
    if isinstance(value, bool):
        slot.bool_value = value
    elif isinstance(value, int | float) and math.isfinite(value):
        slot.number_value = value
    else:
        slot.string_value = "null" if value is None else str(value)


def check_events(folder: Path, offsets: Mapping[str, int], checksums: Mapping[str, str]) -> None:
    """Raise ValueError if an event file is missing, shorter than its offset, or has changed before it."""
    existing = {path.name: path for path in folder.glob(_EVENT_FILES) if path.is_file()}
    for name, offset in offsets.items():
        size = existing[name].stat().st_size if name in existing else 0
        if size < offset:
            raise ValueError(f"{folder / name} is damaged: it has {size} bytes, but the checkpoint recorded {offset}")
        if name in checksums and GrowingHash(existing[name]).upto(offset) != checksums[name]:
            raise ValueError(f"{folder / name} is damaged: its beginning is not what the checkpoint recorded")


def put_damaged_aside(folder: Path, offsets: Mapping[str, int], checksums: Mapping[str, str]) -> str | None:
    """If an event file is damaged, give all of them names that TensorBoard does not read, and return what is wrong."""
    try:
        check_events(folder, offsets, checksums)
    except ValueError as error:
        for path in folder.glob(_EVENT_FILES):
            path.replace(path.with_name(path.name.replace("tfevents", "damaged")))
        return str(error)
    return None


def _cut(folder: Path, offsets: Mapping[str, int]) -> None:
    check_events(folder, offsets, {})
    existing = {path.name: path for path in folder.glob(_EVENT_FILES)}
    for name, path in existing.items():
        if name in offsets:
            os.truncate(path, offsets[name])
        else:
            path.unlink()


def _leave_errors_to_the_caller() -> None:
    """Do not print errors of the thread that writes events: the next call raises them."""
    before = threading.excepthook
    if getattr(before, "__name__", "") == "not_printed":
        return

    def not_printed(error: threading.ExceptHookArgs) -> None:
        if not (isinstance(error.exc_value, OSError) and type(error.thread).__module__.startswith("tensorboard.")):
            before(error)

    threading.excepthook = not_printed


@contextmanager
def _later_than_all(folder: Path) -> Iterator[None]:
    """While it lasts, new event files get a name that TensorBoard sorts behind those in `folder`.

    It orders them by the second in their names, and a clock can be set back, or two sessions begin in one second.
    """
    from tensorboard.summary.writer import event_file_writer

    names = [_SECOND.match(path.name) for path in folder.glob(_EVENT_FILES)]
    least = max((int(match[1]) for match in names if match is not None), default=-1) + 1
    event_file_writer.time = _Clock(least)
    try:
        yield
    finally:
        event_file_writer.time = time


class _Clock:
    """Replaces the module `time` where TensorBoard names a file."""

    def __init__(self, least: int) -> None:
        self._least = least

    def time(self) -> float:
        return max(time.time(), self._least)
