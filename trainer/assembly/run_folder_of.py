"""Opens the folder of a run, restores its last checkpoint, and compares data and environment with the recorded ones."""

import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from trainer.assembly.announce import announce
from trainer.assembly.data import share_statistics
from trainer.assembly.last_checkpoint import find_last, keep_matching_best, own_identity, promise, put_in_place
from trainer.base.config import Config
from trainer.base.errors import ConfigurationError, DataError
from trainer.base.stateful import State
from trainer.configuration.recorded import as_trained
from trainer.reporting.report import Report
from trainer.reporting.terminal import Terminal
from trainer.storage import run_folder
from trainer.storage.checkpoint import CheckpointWriter
from trainer.storage.files import disk_errors
from trainer.storage.identity import new_identity
from trainer.storage.records import write_json
from trainer.training.run import Run
from trainer.training.state import is_planned, restore_checked


def open_folder(run: Run, folder: Path, *, resume: bool = False, console: Console | None = None) -> None:
    """Open log, metrics, TensorBoard and checkpoints in `folder`; with `resume`, at the last checkpoint."""
    found = find_last(folder) if resume else None
    state = None if found is None else found[1]
    if found is not None:
        run.identity = own_identity(run, folder, *found)
    continue_from(run, state, folder, resume)
    if found is not None:
        keep_matching_best(run, folder / run_folder.CHECKPOINTS / "best.pt")
        put_in_place(found[0], folder / run_folder.CHECKPOINTS / "last.pt")
    plan = run.blueprint
    terminal = Terminal(plan.total_steps, plan.epochs_at, plan.monitor, plan.best.mode, console)
    offsets = state["offsets"] if state is not None else None
    try:
        run.report = Report(folder, terminal, offsets, run.step)
    except ValueError as error:
        raise DataError(str(error)) from error
    run.folder = folder.absolute()  # the current folder may change before the end
    if run.identity is None:
        run.identity = new_identity(plan.config, run.splits.checksum(), torch.get_num_threads())
    record_environment(run, folder, resumed=state is not None)
    with disk_errors(folder):
        announce(run, resumed=state is not None)
    if state is not None:
        tell_learning_rate(run, state["total_steps"])
    run.profiler = start_profiler(run, run.folder)
    run.checkpoints = checkpoint_writer(run, state)


def tell_learning_rate(run: Run, total_before: int) -> None:
    """If the run is longer than it was, or its schedule shorter, tell the learning rate before and after."""
    plan = run.blueprint
    assert run.report is not None and run.folder is not None
    total = plan.timeline.moments
    is_as_planned = total == total_before == plan.schedule_steps
    if is_as_planned or run.step in (0, plan.total_steps):
        return
    after = run.base_lrs[0] * run.lr_factor
    line = f"learning rate: {run.lr:.3g} in the last step, {after:.3g} in the next"
    if plan.config["schedule_length"] is not None:
        line += f"; the schedule is {plan.schedule_steps:,} steps long, afterwards its last rate is held"
    elif after != run.lr:
        again = f"train resume {run_folder.quoted(run.folder)} schedule_length={total_before}step"
        line += (
            f"; the schedule now spreads over {total:,} steps instead of {total_before:,}; to keep it and then hold "
            f"its last rate, stop (Ctrl-C) and type: {again}"
        )
    run.report.message(line)


def for_resuming(config: Config, folder: Path) -> Config:
    """Return the configuration without the starting weights if the run has a checkpoint, which replaces them."""
    return as_trained(config) if has_checkpoint(folder) else config


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has come as far as a checkpoint."""
    return any((folder / run_folder.CHECKPOINTS).glob("last*.pt"))


def join(run: Run, folder: Path, *, resume: bool) -> None:
    """Restore the run on a rank other than the main one, and make it take part in snapshots."""
    run.folder = folder
    continue_from(run, None, folder, resume)
    run.checkpoints = checkpoint_writer(run, None)


def continue_from(run: Run, state: State | None, folder: Path, resume: bool) -> None:
    """With `resume`, restore the main rank's `state` on all ranks, if there is one."""
    if not resume:
        return
    # a run that stopped before its first checkpoint has been built like a new one
    known = run.preprocessing.state_dict() if state is None else state["preprocessing"]
    share_statistics(run.preprocessing, run.splits, run.strategy, known)
    run.preprocessing.to(run.device)
    state = run.strategy.distribute(state, run.model)
    compare_data(run, state, folder)
    if state is None:
        return
    restore_checked(run, state, folder / run_folder.CHECKPOINTS / "last.pt")
    check_position(run)
    if run.step > run.blueprint.total_steps:
        config = run.blueprint.config
        raise ConfigurationError(
            f"epochs={config['epochs']}, steps={config['steps']}: is {run.blueprint.total_steps} steps; "
            f"the run has taken {run.step} already"
        )


def check_position(run: Run) -> None:
    """Raise ConfigurationError if the batch has grown at other moments so far than it would have now."""
    timeline, progress = run.blueprint.timeline, run.progress
    if run.strategy.is_synchronous and timeline.position(run.step) != (progress.epoch, progress.samples_seen):
        raise ConfigurationError(
            "schedule.max_batch: with this length, the batch would have grown at other moments than it has; set "
            "schedule_length to the length that the run had"
        )


def checkpoint_writer(run: Run, state: State | None) -> CheckpointWriter:
    """Return the checkpoint writer; on other ranks than the main one, it only takes part in snapshots."""
    assert run.folder is not None
    return CheckpointWriter(
        run.folder / run_folder.CHECKPOINTS,
        run.report.sync if run.report is not None else lambda: None,
        keep_previous=state is not None and not is_planned(run, state),
        decide=run.strategy.broadcast,
        is_main=run.strategy.is_main,
        promise=partial(promise, run.folder, run.identity) if run.identity is not None and state is None else None,
    )


def start_profiler(run: Run, folder: Path) -> torch.profiler.profile | None:
    """With `profile=N`, trace N steps into `trace.json`, after ten steps of warm-up."""
    steps = run.blueprint.config["profile"]
    if steps is None:
        return None
    is_cuda = run.device.type == "cuda"
    if not is_cuda:  # the tracer, Kineto, looks for CUDA devices and calls it an error that there are none
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    path = folder / "trace.json"

    def export(traced: torch.profiler.profile) -> None:
        traced.export_chrome_trace(str(path))
        run.say(f"trace: {run_folder.shown(path)}; open it in a browser at https://ui.perfetto.dev")

    kinds = torch.profiler.ProfilerActivity
    profiler = torch.profiler.profile(
        activities=[kinds.CPU, kinds.CUDA] if is_cuda else [kinds.CPU],
        schedule=torch.profiler.schedule(wait=5, warmup=5, active=steps, repeat=1),
        on_trace_ready=export,
        record_shapes=True,
        acc_events=True,  # no effect with one cycle, but torch 2.11 warns without it
    )
    profiler.start()
    return profiler


def compare_data(run: Run, state: State | None, folder: Path) -> None:
    """Raise DataError if the data differ from those that the run started with."""
    before = state["run"]["data"] if state is not None and state["run"] is not None else recorded_data(folder)
    if before not in (None, run.splits.checksum()):
        raise DataError(other_data(run.blueprint.config))


def recorded_data(folder: Path) -> str | None:
    """Return the checksum of the data in `environment.json`, or None if there is none."""
    with suppress(DataError):  # a damaged file is reported when the environments are compared
        if (environment := run_folder.read_environment(folder)) is not None:
            return str(environment["data_sha256"])
    return None


def other_data(config: Config) -> str:
    """Return the message about data that have changed since the run began."""
    root = config["data"].get("root")
    chosen = f"data={config['choices']['data']}" + ("" if root is None else f" data.root={root}")
    return f"{chosen}: not the data that the run started with (different checksum)"


def record_environment(run: Run, folder: Path, resumed: bool) -> None:
    """Write `environment.json`; on resuming, report differences that may change the last bits."""
    now = run_folder.describe_environment(
        str(run.device), torch.get_num_threads(), run.strategy.world_size, run.splits.checksum()
    ) | {run_folder.HAS_CHECKPOINTS: resumed}
    path = folder / run_folder.ENVIRONMENT
    before, problem = None, f"{path} is missing"
    if resumed:
        try:
            before = run_folder.read_environment(folder)
        except DataError as error:
            problem = str(error)
        if before is None and run.report is not None:
            run.report.message(f"{problem}; it is written again, with what the run has now")
    if before is None:
        write_json(path, now)
        return
    for key in ("packages", "device", "threads", "world_size", "platform"):
        if before.get(key) != now[key] and run.report is not None:
            run.report.message(f"{key}: changed since the run started, so the last bits may differ; now {now[key]}")
