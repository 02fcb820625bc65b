"""Assembles a run from a configuration, in one fixed order."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from trainer.assembly.data import load_data, make_batches, share_statistics
from trainer.assembly.pruning import make_pruning
from trainer.assembly.run_folder_of import for_resuming, has_checkpoint, join, open_folder
from trainer.assembly.torch_settings import keep_torch_settings, set_up_torch, use_channels_last
from trainer.assembly.weights import make_model
from trainer.averaging.averaging import Averaging
from trainer.base.config import Config
from trainer.base.errors import ConfigurationError, DiskError
from trainer.base.memory_layout import make_dense
from trainer.base.precision import LossScale
from trainer.base.randomness import StepRandomness
from trainer.base.recomputation import recompute_blocks
from trainer.base.signals import stop_request
from trainer.base.stateful import Stateful
from trainer.base.turns import turn
from trainer.configuration.blueprint import Blueprint
from trainer.configuration.components import build_component
from trainer.configuration.from_python import check_configuration
from trainer.configuration.recorded import with_absolute_paths, with_changes
from trainer.configuration.resolve import resolve
from trainer.configuration.rules import SINGLE
from trainer.contracts import Preprocessing, convergence_of, needs_closure
from trainer.data.facts import Splits
from trainer.metrics import Meter
from trainer.optimizers.parameter_groups import entries_of, excluded_names, parameter_groups
from trainer.regularizers.regularizer import Regularizer
from trainer.reporting.logs import held
from trainer.storage import run_folder
from trainer.storage.run_folder import Lock
from trainer.training.finish import record_failure
from trainer.training.freezing import Freezing
from trainer.training.gradients import GradientGuard
from trainer.training.objective import Objective
from trainer.training.progress import Progress
from trainer.training.pruning import Pruning
from trainer.training.run import Run


@turn()
@held()  # so that messages from loading the data also appear in the log
def assemble(
    config: Config,
    folder: str | Path | None = None,
    *,
    resume: bool = False,
    is_trial: bool = False,
    lock: Lock | None = None,
    console: Console | None = None,
) -> Run:
    """Check a configuration, build everything it names and open its run folder.

    `config` may have been changed since it was composed. Without `folder`, a new one is created under `outputs/`;
    `lock` is a lock already held on it. With `resume`, the run continues from its last checkpoint. Raises
    ConfigurationError, DataError, DiskError or RunInUse.
    """
    check_configuration(config, "assemble")
    folder = None if folder is None else Path(folder)
    restore_settings = keep_torch_settings()
    blueprint = resolve(config if folder is None or not resume else for_resuming(config, folder))
    connect(blueprint)
    run: Run | None = None
    if not blueprint.strategy.is_main:
        assert folder is not None
        run = build_run(blueprint, fit=not resume or not has_checkpoint(folder))
        run.is_trial = is_trial
        join(run, folder, resume=resume)
        return run
    if folder is None:
        folder = run_folder.new(config)
    folder = run_folder.shown(folder)
    has_begun = (folder / run_folder.ENVIRONMENT).is_file()
    if has_begun and not resume:
        raise ConfigurationError(f"{folder}: holds a run; to continue it: assemble(config, '{folder}', resume=True)")
    run_folder.claim(folder, config)
    lock = lock or Lock(folder)
    try:
        run = build_run(blueprint, fit=not resume or not has_checkpoint(folder))
        run.is_trial, run.lock, run.restore_settings = is_trial, lock, restore_settings
        open_folder(run, folder, resume=resume, console=console)
        record_changes(folder, config)
    except BaseException as error:
        if run is not None:
            run.lock = None  # until the failure is recorded
            close_refused(run)
        is_failure = isinstance(error, Exception) and stop_request.behind(error) is None
        if is_failure and not has_begun:  # a failed resume must not overwrite the result
            with suppress(DiskError):  # report the first error only
                record_failure(folder, config, error)
        lock.release()
        restore_settings()
        raise
    return run


def close_refused(run: Run) -> None:
    """Close what a run has opened that is not going to be trained: files, and the threads that write them."""
    if run.strategy.world_size == 1:
        run.close()
    elif run.report is not None:  # leaving the other ranks may wait for them
        run.report.close()


def record_changes(folder: Path, config: Config) -> None:
    """Record what has changed of a run that is continued from Python, such as its length."""
    recorded = run_folder.read_configuration(folder)
    changed = with_changes(recorded, config)
    if changed != recorded:
        run_folder.write_configuration(folder, changed, run_folder.read_overrides(folder))


def connect(blueprint: Blueprint) -> None:
    """Connect to the other ranks. Raises ConfigurationError if this process is not a rank."""
    try:
        blueprint.strategy.connect(blueprint.device)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def build_run(blueprint: Blueprint, splits: Splits | None = None, *, fit: bool = True) -> Run:
    """Build everything a run needs except its files: data, model, optimizer, objective.

    Without `fit`, the statistics of the preprocessing must be loaded from a checkpoint afterwards.
    """
    config, device = blueprint.config, blueprint.device
    set_up_torch(config, device)
    strategy = blueprint.strategy
    splits = splits or load_data(blueprint)
    preprocessing = build_component(config, "preprocessing")
    if fit:
        share_statistics(preprocessing, splits, strategy)
    notices: list[str] = []
    model = make_model(blueprint, _samples(splits, preprocessing) if fit else None, notices)
    preprocessing = preprocessing.to(device)
    channels_last = use_channels_last(config["channels_last"], model, blueprint)
    model = model.to(device).to(memory_format=torch.channels_last if channels_last else torch.preserve_format)
    make_dense(model)
    compute = strategy.apply(recompute_blocks(model) if config["checkpoint_activations"] else model)
    optimizer = blueprint.build_optimizer(parameter_groups(model, config))
    optimizer = strategy.wrap_optimizer(optimizer, model)
    regularizer, averaging = make_regularizer(config, model), make_averaging(blueprint, optimizer)
    pruning = make_pruning(config, model, notices)
    loss_scale = LossScale(device) if blueprint.dtype is torch.float16 else None
    guard = GradientGuard(
        optimizer, strategy, config["clip_norm"], config["clip_value"], loss_scale,
        needs_flag=config["on_nonfinite"] == "skip" or not strategy.is_synchronous,
    )  # fmt: skip
    meter = Meter(blueprint.metrics)
    sampler = build_component(config, "sampler", batch_size=blueprint.batch_size)
    objective = Objective(
        model, compute, blueprint.loss, strategy=strategy, meter=meter, guard=guard,
        randomness=StepRandomness(config["seed"], device), loss_scale=loss_scale, dtype=blueprint.dtype,
        micro_batch=blueprint.micro_batch, observe=sampler.observe if sampler.listens else None,
        penalty=None if regularizer is None or regularizer.decoupled else regularizer,
        mask_gradients=None if pruning is None else pruning.mask_gradients,
    )  # fmt: skip
    augmentation = build_component(config, "augmentation")
    batches = make_batches(blueprint, splits.train, sampler, augmentation, preprocessing, channels_last=channels_last)
    if device.type == "cpu":  # use the layout that training reads, and free the original
        splits = replace(splits, train=replace(splits.train, images_NCHW=batches.images))
    if config["compile"]:
        compute.compile()
    progress = Progress()
    return Run(
        blueprint=blueprint, device=device, strategy=strategy, splits=splits, preprocessing=preprocessing,
        model=model, optimizer=optimizer, needs_closure=needs_closure(optimizer),
        converges=convergence_of(optimizer), averaging=averaging, pruning=pruning,
        freezing=make_freezing(blueprint, model, optimizer),
        base_lrs=[group["lr"] for group in optimizer.param_groups],
        loss_scale=loss_scale, guard=guard, meter=meter, objective=objective, regularizer=regularizer, batches=batches,
        diagnostics=build_component(config, "diagnostics"), channels_last=channels_last,
        replica=replica_of(config, splits, preprocessing, pruning),
        set_up=partial(set_up_torch, config, device), progress=progress, notices=notices,
        stateful=stateful_parts(
            blueprint, progress=progress, loss_scale=loss_scale, regularizer=regularizer, averaging=averaging,
            pruning=pruning,
        ),
    )  # fmt: skip


def replica_of(
    config: Config, splits: Splits, preprocessing: Preprocessing, pruning: Pruning | None
) -> Callable[[], Run]:
    """Return a function that builds the run as at its first step, on one device, with the same data and masks."""
    anywhere = with_absolute_paths(config)  # the current folder may change before the end

    def replica() -> Run:
        other = build_run(resolve(anywhere | {"parallelism": SINGLE}), splits, fit=False)
        other.preprocessing.load_state_dict(preprocessing.state_dict())
        if other.pruning is not None and pruning is not None:
            other.pruning.use(pruning.masks)
        return other

    return replica


def _samples(splits: Splits, preprocessing: Preprocessing) -> Callable[[int], torch.Tensor]:
    """Return a function that gives preprocessed training samples, on the CPU like new weights."""

    @torch.no_grad()
    def first(count: int) -> torch.Tensor:
        samples: torch.Tensor = preprocessing.cpu()(splits.train.images_NCHW[:count])
        return samples

    return first


def make_regularizer(config: Config, model: nn.Module) -> Regularizer | None:
    """Build the regularizer of the model's trainable weights."""
    regularizer: Regularizer | None = build_component(config, "regularizer")
    if regularizer is not None:
        weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        regularizer.attach(weights, excluded_names(model, config["no_weight_decay"]))
    return regularizer


def make_freezing(blueprint: Blueprint, model: nn.Module, optimizer: torch.optim.Optimizer) -> Freezing | None:
    """Freeze what the entries of `parameter_groups` say, if there is any."""
    entries = entries_of(blueprint.config)
    if not any(entry.frozen or entry.unfreeze_at for entry in entries):
        return None
    return Freezing(model, optimizer, entries, blueprint.step_at)


def make_averaging(blueprint: Blueprint, optimizer: torch.optim.Optimizer) -> Averaging | None:
    """Build the averaging of the weights that the optimizer steps."""
    averaging: Averaging | None = build_component(blueprint.config, "averaging", **blueprint.for_averaging)
    if averaging is not None:
        averaging.attach(parameter for group in optimizer.param_groups for parameter in group["params"])
    return averaging


def stateful_parts(blueprint: Blueprint, **parts: object) -> dict[str, Stateful]:
    """Return the objects with state, by name, that checkpoints contain besides weights, optimizer and data."""
    parts |= {
        "schedule": blueprint.schedule,
        "early_stopping": blueprint.early_stopping,
        "improvement": blueprint.best,
        **blueprint.others,
    }
    return {name: part for name, part in parts.items() if isinstance(part, Stateful)}
