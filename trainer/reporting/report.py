"""Output of a run to metrics file, TensorBoard, terminal and log."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from trainer.reporting import logs
from trainer.reporting.metrics_file import MetricsFile, check_lines, stream_metrics
from trainer.reporting.tensorboard import TensorBoard, put_damaged_aside
from trainer.reporting.terminal import Terminal
from trainer.storage.files import disk_errors
from trainer.storage.growing import LineMarks
from trainer.storage.run_folder import LOG, METRICS

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("trainer")

_FIRST = ("diagnostics/initial_loss", "diagnostics/untrained_loss")  # recorded once; see `Report.once`


class Offsets(TypedDict):
    """How far the files of a run have come, in bytes."""

    metrics: int
    lines: LineMarks
    events: dict[str, int]
    checksums: dict[str, str]  # of the event files, up to these bytes


class Report:
    """All outputs of a run; `offsets` and `step` of a checkpoint continue them from there, None starts anew."""

    def __init__(self, folder: Path, terminal: Terminal, offsets: Offsets | None, step: int) -> None:
        self._folder, self.terminal = folder, terminal
        self._once: set[str] = set()
        with disk_errors(folder), ExitStack() as undo:
            notice = self._open(offsets, step)
            undo.callback(self._close_files)
            if notice:
                log.warning(notice)  # also on the terminal, until the log is open
            self._log = logs.open_run_log(folder / LOG)
            undo.pop_all()
        self._folder = folder.absolute()  # the current folder may change before the end
        self._aloud = logs.tell_warnings_of_data(terminal.message)

    def _open(self, offsets: Offsets | None, step: int) -> str | None:
        """Open the files, cut to `offsets`. Returns a notice if event files had to be written again."""
        path, lines = self._folder / METRICS, None
        if offsets:  # before anything is changed
            lines = check_lines(path, offsets["metrics"], offsets["lines"])
        with ExitStack() as undo:  # no thread may be left if one of these fails
            self._metrics = MetricsFile(path, offsets["metrics"] if offsets else 0)
            undo.callback(self._metrics.close)
            if lines is not None:
                self._metrics.lines = lines
            damage = put_damaged_aside(self._folder, offsets["events"], offsets["checksums"]) if offsets else None
            events, purge_step = (offsets["events"], step + 1) if offsets and damage is None else (None, None)
            self.tensorboard = TensorBoard(self._folder, events, purge_step)
            undo.callback(self.tensorboard.close)
            self.tensorboard.charts()
            notice = None if damage is None else self._write_events_again(path, damage, step)
            undo.pop_all()
        return notice

    def _write_events_again(self, path: Path, damage: str, step: int) -> str:
        """Write the events of the metrics file, and return what happened.

        Event files are only looked at, and the metrics file has the same numbers: the damage need not end the run.
        """
        for record in stream_metrics(path):
            values = {name: value for name, value in record.items() if name not in ("step", "epoch")}
            if first := {name: values.pop(name) for name in _FIRST if name in values}:
                self.once(first)
            self.tensorboard.scalars(record["step"], values)
        return (
            f"{damage}; TensorBoard's files are written again from {METRICS}, without pictures and histograms before"
            f" step {step} (the old files are now {self._folder / 'events.out.damaged.*'})"
        )

    def _close_files(self) -> None:
        for close in (self.tensorboard.close, self._metrics.close):
            with suppress(OSError):
                close()

    def header(self, facts: Mapping[str, str]) -> None:
        """Show the header of the run."""
        self.terminal.header(facts)
        for name, value in facts.items():
            log.info("%s: %s", name, value)

    def rewind(self, offsets: Offsets, step: int) -> None:
        """Remove everything written after the checkpoint with these `offsets`."""
        with disk_errors(self._folder):
            self.tensorboard.close()
            self._metrics.close()
            if notice := self._open(offsets, step):
                self.message(notice)

    def tick(self, step: int) -> None:
        """Update the progress bar after a step, at most five times per second."""
        self.terminal.tick(step)

    def once(self, values: Mapping[str, float]) -> None:
        """Show metrics that are recorded once as text in TensorBoard, where charts with one point would come first."""
        self._once |= values.keys()
        lines = [f"| {name} | {value:.6g} |" for name, value in values.items()]
        with disk_errors(self._folder):
            self.tensorboard.text("first_step", "\n".join(["| metric | value |", "|---|---|", *lines]))

    def record(
        self, step: int, epoch: float, values: Mapping[str, float], histograms: "Mapping[str, Tensor] | None" = None
    ) -> None:
        """Write all metrics of a step as one line and one event, and histograms."""
        with disk_errors(self._folder):
            self._metrics.write({"step": step, "epoch": round(epoch, 6), **values})
            self.tensorboard.scalars(step, {name: v for name, v in values.items() if name not in self._once})
            for name, sample in (histograms or {}).items():
                self.tensorboard.histogram(name, sample, step)
        self.terminal.tick(step, values.get("train/loss"), values.get("throughput/samples_per_second"))

    def text(self, tag: str, markdown: str) -> None:
        """Write text to TensorBoard."""
        with disk_errors(self._folder):
            self.tensorboard.text(tag, markdown)

    def row(self, step: int, epoch: float, values: Mapping[str, float], best: bool) -> None:
        """Show an evaluation on the terminal."""
        self.terminal.row(step, epoch, values, best)
        words = "  ".join(f"{name} {value:.6g}" for name, value in values.items() if not name.startswith("throughput"))
        log.info("epoch %.2f  step %d  %s%s", epoch, step, words, "  best" if best else "")

    def message(self, text: str) -> None:
        """Show a message to the user and write it to the log."""
        self.terminal.message(text)
        log.warning(text)

    def offsets(self) -> Offsets:
        """Return the sizes of the files; checkpoints store them, so that each line is written exactly once."""
        with disk_errors(self._folder):
            events = self.tensorboard.offsets()
            return {
                "metrics": self._metrics.offset(), "lines": self._metrics.lines.marks(),
                "events": events, "checksums": self.tensorboard.checksums(events),
            }  # fmt: skip

    def sync(self) -> None:
        """Flush to disk (fsync) what a checkpoint is about to count."""
        with disk_errors(self._folder):
            self._metrics.sync()
            self.tensorboard.sync()

    def close(self) -> None:
        """Close everything; the last `sync` has written to disk what must be there."""
        self.terminal.close()
        self._close_files()
        for handler in (self._log, self._aloud):
            with suppress(OSError):
                logs.close(handler)
