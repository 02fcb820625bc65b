"""The header of a run, on the terminal, in the log and in TensorBoard."""

from collections.abc import Iterable

import torch
import yaml

from trainer.base.config import Config, ConfigValue
from trainer.configuration.few_samples import few_samples
from trainer.configuration.lengths import length_notices
from trainer.reporting.initial_outputs import FirstOutputs
from trainer.reporting.pixels import as_levels
from trainer.reporting.tables import format_count
from trainer.storage import run_folder
from trainer.training.run import Run

_ASIDE = ("_target_", "root", "download", "epochs", "rate", "batch_size")  # inside a node; `batch_size` is on top, too
_USUAL = ("model", "optimizer", "optimizer.lr", "data", "batch_size")  # columns of the HParams tab
_COLUMNS_SHOWN = 5  # by TensorBoard
_PIXELS_SHOWN = 2**20  # of the first batch: 64 images up to 128x128, 20 of 224x224


def announce(run: Run, resumed: bool) -> None:
    """Print the header, and write configuration, hyper-parameters and the first images to TensorBoard."""
    assert run.report is not None and run.folder is not None
    plan, config = run.blueprint, run.blueprint.config
    choices, facts = config["choices"], plan.facts
    whole = ", the whole training set" if config["batch_size"] == "full" else ""
    size = f"{plan.batch_size} to {plan.timeline.largest.batch_size}" if plan.timeline.grows else f"{plan.batch_size}"
    length = f"{format_count(plan.total_steps, 'step')} of {size} sample{'' if size == '1' else 's'}{whole}"
    precision = "fp32" if plan.dtype is None else str(plan.dtype).removeprefix("torch.")
    ranks = run.strategy.world_size
    spread = {} if ranks == 1 else {"parallelism": f"{choices['parallelism']}, {ranks} ranks"}
    run.report.header(
        {
            "run": f"{run_folder.shown(run.folder)}" + (f" (resumed at step {run.step})" if resumed else ""),
            "model": f"{choices['model']}, {run.num_parameters:,} parameters",
            "data": f"{choices['data']}: {facts.num_train:,} train, {facts.num_val:,} val, {facts.num_test:,} test",
            "training": f"{choices['optimizer']}, {choices['schedule']}, {length}",
            "device": f"{run.device}, {format_count(torch.get_num_threads(), 'thread')}, {precision}",
            "monitor": f"{plan.monitor}, {'lower' if plan.best.mode == 'min' else 'higher'} is better",
            **spread,
        }
    )
    for notice in (
        *run.notices,
        *run.strategy.differences(run.model, plan.dtype),
        *(f"{subject}: {text}" for subject, text in length_notices(plan)),
        *filter(None, [few_samples(plan, run.model)]),
    ):
        run.report.message(notice)
    board = run.report.tensorboard
    if board.is_resumed:
        return
    board.text("config", f"```yaml\n{yaml.safe_dump(config, sort_keys=False)}```")
    row = hyper_parameters(config)
    board.start_hparams(row, *columns(row, run), compared_metrics(run))
    # a rank has only some of the outputs, and hooks would change what is compiled
    if ranks == 1 and run.step == 0 and not config["compile"]:
        run.first_outputs = FirstOutputs(run.model)
    if facts.kind == "images":
        # before preprocessing, because whitened images have no meaningful colours
        images = next(run.batches.before_preprocessing().epoch(0)).images
        count = max(1, min(64, _PIXELS_SHOWN // (images.shape[2] * images.shape[3])))
        board.images("train/first_batch", as_levels(images[:count], run.batches.images), 0)


def hyper_parameters(config: Config) -> Config:
    """Return one flat row: the option of each group, and every value that affects the outcome."""
    row: Config = dict(config["choices"])
    aside = ("choices", "every", "name", "profile", "threads")
    for key, value in config.items():
        if key in aside:
            continue
        row |= _flattened(key, value)
    return row


def columns(row: Config, run: Run) -> tuple[set[str], set[str]]:
    """Return the hyper-parameters with a column, and those whose columns are first.

    In a sweep, those that were typed, and those that it varies. Otherwise all, because other runs may have other
    values, and those that were typed, then the usual ones.
    """
    assert run.folder is not None
    words = run_folder.read_overrides(run.folder)
    typed = _keys(words) & row.keys()
    varied = _keys(set(run_folder.read_sweep(run.folder)) - set(words)) & row.keys() if run.is_trial else set()
    usual = [name for name in _USUAL if name in row.keys() - typed]
    return (typed, varied) if varied else (set(row), {*typed, *usual[: max(0, _COLUMNS_SHOWN - len(typed))]})


def _keys(overrides: Iterable[str]) -> set[str]:
    return {word.lstrip("+").partition("=")[0] for word in overrides}


def compared_metrics(run: Run) -> list[str]:
    """Return the monitored metric, then the others of validation and test; the cross entropy may repeat the loss."""
    names = sorted(("loss", *run.blueprint.metrics), key=lambda name: name == "cross_entropy")
    splits = ("val",) if run.is_trial else ("val", "test")
    return list(dict.fromkeys([run.blueprint.monitor, *(f"{split}/{name}" for split in splits for name in names)]))


def _flattened(key: str, value: ConfigValue) -> Config:
    if isinstance(value, dict):
        inner = {name: item for name, item in value.items() if name not in _ASIDE}
        return {k: v for name, item in inner.items() for k, v in _flattened(f"{key}.{name}", item).items()}
    return {} if value is None else {key: value}
