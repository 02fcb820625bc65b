"""From a checked configuration to a run, in one fixed order: the wiring diagram of the program."""

import json
import math
import os
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import nn

from trainer import checkpoint, run_folder
from trainer.batches import TrainingBatches
from trainer.blueprint import Blueprint, draw
from trainer.build import build
from trainer.checkpoint import CheckpointWriter
from trainer.closure import Closure
from trainer.config import SINGLE, Config
from trainer.errors import ConfigurationError, DataError, DiskError
from trainer.files import disk_errors, write_json
from trainer.finish import record_failure
from trainer.gradients import GradientGuard
from trainer.metrics import Meter
from trainer.parameter_groups import parameter_groups
from trainer.place import place
from trainer.precision import LossScale
from trainer.randomness import StepRandomness, seed_for
from trainer.report import Report
from trainer.reporting.logs import held
from trainer.reporting.pixels import as_levels
from trainer.reporting.terminal import Terminal
from trainer.run import Run
from trainer.run_folder import Lock
from trainer.state import FORMAT, is_planned, restore

_PIXELS_SHOWN = 2**20  # of the first batch: 64 images up to 128x128, 20 of 224x224


@held()  # what loading the data says comes into the log, too
def assemble(
    config: Config,
    folder: Path | None = None,
    *,
    resume: bool = False,
    is_trial: bool = False,
    lock: Lock | None = None,
    console: Console | None = None,
) -> Run:
    """Check a configuration, make everything it names and open its run folder.

    Without `folder` a new one is made under `outputs/`; `lock` is one that is held on it already. With `resume`
    the run continues where its last checkpoint was taken. Raises ConfigurationError, DataError, DiskError or RunInUse.
    """
    blueprint = draw(config)
    connect(blueprint)
    run: Run | None = None
    if not blueprint.strategy.is_main:
        assert folder is not None
        run = put_together(blueprint, fit=not resume)
        run.is_trial = is_trial
        join(run, folder, resume=resume)
        return run
    if folder is None:
        folder = run_folder.new(config)
    folder = run_folder.shown(folder)
    lock = lock or Lock(folder)
    has_begun = (folder / run_folder.ENVIRONMENT).is_file()
    try:
        run = put_together(blueprint, fit=not resume)
        run.is_trial, run.lock = is_trial, lock
        open_folder(run, folder, resume=resume, console=console)
    except BaseException as error:
        if run is not None and run.report is not None:
            run.report.close()
        if isinstance(error, Exception) and not has_begun:  # to go on with one that has is refused, no more
            with suppress(DiskError):  # what failed first is what the user hears of
                record_failure(folder, config, error)
        lock.release()
        raise
    return run


def connect(blueprint: Blueprint) -> None:
    """Take one's place among the ranks. Raises ConfigurationError where there are none."""
    try:
        blueprint.strategy.connect(blueprint.device)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def put_together(blueprint: Blueprint, splits: Any = None, *, fit: bool = True) -> Run:
    """Everything a run computes with, and no file: data, model, optimizer, and what lies between them.

    Without `fit` the statistics of the preprocessing are still to come, from a checkpoint.
    """
    config, device = blueprint.config, blueprint.device
    set_up_torch(config, device)
    strategy = blueprint.strategy
    splits = splits or load_data(blueprint)
    preprocessing = build(config["preprocessing"], "preprocessing")
    if fit:
        share_statistics(preprocessing, splits, strategy)
    preprocessing = preprocessing.to(device)
    model = make_model(blueprint)
    channels_last = use_channels_last(config["channels_last"], model, blueprint)
    layout = torch.channels_last if channels_last else torch.preserve_format
    model = model.to(device).to(memory_format=layout)
    num_parameters = sum(p.numel() for p in model.parameters())
    compute = strategy.apply(model)
    decay = config["optimizer"].get("weight_decay")
    optimizer = blueprint.build_optimizer(parameter_groups(model, decay, config["no_weight_decay"]))
    optimizer = strategy.wrap_optimizer(optimizer, model)
    loss_scale = LossScale(device) if blueprint.dtype is torch.float16 else None
    guard = GradientGuard(optimizer, strategy, config["clip_norm"], config["clip_value"], loss_scale)
    meter = Meter(blueprint.metrics)
    sampler = build(config["sampler"], "sampler", batch_size=blueprint.batch_size)
    closure = Closure(
        model, compute, blueprint.loss, strategy, meter, guard, StepRandomness(config["seed"], device),
        loss_scale, blueprint.dtype, blueprint.micro_batch, getattr(sampler, "observe", None),
    )  # fmt: skip
    augmentation = build(config["augmentation"], "augmentation")
    batches = make_batches(blueprint, splits.train, sampler, augmentation, preprocessing, channels_last=channels_last)
    if device.type == "cpu":  # the same images in the layout that training reads: the first one is let go
        splits = replace(splits, train=replace(splits.train, images_NCHW=batches.images))
    if config["compile"]:
        compute.compile()

    def replica() -> Run:
        other = put_together(draw(config | {"parallelism": SINGLE}), splits, fit=False)
        other.preprocessing.load_state_dict(preprocessing.state_dict())
        return other

    return Run(
        blueprint=blueprint, device=device, strategy=strategy, splits=splits, preprocessing=preprocessing,
        model=model, num_parameters=num_parameters, optimizer=optimizer,
        base_lrs=[group["lr"] for group in optimizer.param_groups],
        loss_scale=loss_scale, guard=guard, meter=meter, closure=closure, batches=batches,
        diagnostics=build(config["diagnostics"], "diagnostics"), channels_last=channels_last,
        replica=replica,
    )  # fmt: skip


def share_statistics(preprocessing: Any, splits: Any, strategy: Any, known: dict[str, Any] | None = None) -> None:
    """Give all ranks the statistics that are `known` to the main rank, or that it estimates from the training part."""

    def on_main() -> Any:
        if known is not None:
            return known
        preprocessing.fit(splits.train.images_NCHW)
        return preprocessing.state_dict()

    statistics = strategy.from_main(on_main)
    if not strategy.is_main:
        preprocessing.load_state_dict(statistics)


def make_batches(
    blueprint: Blueprint,
    train: Any,
    sampler: Any,
    augmentation: Any,
    preprocessing: nn.Module,
    *,
    channels_last: bool = False,
    room: float | None = None,
) -> TrainingBatches:
    """The training batches of a run, on its device; see `TrainingBatches`. `room` is what the data set leaves."""
    config, device, images = blueprint.config, blueprint.device, train.images_NCHW
    if room is None:
        room = blueprint.data.room() if device.type == "cpu" and hasattr(blueprint.data, "room") else math.inf
    return TrainingBatches(
        images.to(device) if isinstance(images, torch.Tensor) else images, train.targets_N.to(device),
        batch_size=blueprint.batch_size, micro_batch=blueprint.micro_batch, limit=config["limit_batches"],
        seed=config["seed"], sampler=sampler, augmentation=augmentation, preprocessing=preprocessing,
        strategy=blueprint.strategy, channels_last=channels_last, num_classes=blueprint.facts.num_outputs, room=room,
    )  # fmt: skip


def open_folder(run: Run, folder: Path, *, resume: bool = False, console: Console | None = None) -> None:
    """Open log, metrics, TensorBoard and checkpoints in `folder`; with `resume`, at the last checkpoint."""
    last = folder / run_folder.CHECKPOINTS / "last.pt"
    found = checkpoint.find_newest(last, lambda state: True) if resume else None
    state = None if found is None else found[1]
    if state is not None and state["format"] != FORMAT:
        raise DataError(f"{last} has format {state['format']}; this version reads format {FORMAT}")
    continue_from(run, state, folder, resume)
    if found is not None:
        keep_matching_best(run, last.with_name("best.pt"))
        if found[0] != last:
            found[0].replace(last)  # the next one to be kept must not be the damaged one
    blueprint, stopping = run.blueprint, run.blueprint.config["early_stopping"]
    terminal = Terminal(
        blueprint.total_steps, blueprint.steps_per_epoch, blueprint.monitor,
        "auto" if stopping is None else stopping["mode"], console,
    )  # fmt: skip
    offsets = state["offsets"] if state is not None else None
    try:
        run.report = Report(folder, terminal, offsets, run.step)
    except ValueError as error:
        raise DataError(str(error)) from error
    run.folder = folder
    record_environment(run, folder, resumed=state is not None)
    with disk_errors(folder):
        announce(run, resumed=state is not None)
    run.profiler = start_profiler(run, folder)
    run.checkpoints = checkpoint_writer(run, state)


def join(run: Run, folder: Path, *, resume: bool) -> None:
    """What a rank that is not the main one has to do with the run folder: its share of what is kept there."""
    run.folder = folder
    continue_from(run, None, folder, resume)
    run.checkpoints = checkpoint_writer(run, None)


def continue_from(run: Run, state: Any, folder: Path, resume: bool) -> None:
    """With `resume`: bring all ranks to the main rank's `state`, if there is one."""
    if not resume:
        return
    # without a checkpoint, when it was stopped before there was one, they are still to be estimated
    share_statistics(run.preprocessing, run.splits, run.strategy, None if state is None else state["preprocessing"])
    run.preprocessing.to(run.device)
    state = run.strategy.broadcast(state)
    if state is None:
        return
    compare_data(run, folder)
    restore(run, state)
    if run.step > run.blueprint.total_steps:
        config = run.blueprint.config
        raise ConfigurationError(
            f"epochs={config['epochs']}, steps={config['steps']}: is {run.blueprint.total_steps} steps; "
            f"the run has done {run.step} already"
        )


def checkpoint_writer(run: Run, state: Any) -> CheckpointWriter:
    """The writer of the main rank, or what takes another rank's share of each snapshot."""
    assert run.folder is not None
    return CheckpointWriter(
        run.folder / run_folder.CHECKPOINTS,
        run.report.sync if run.report is not None else lambda: None,
        keep_previous=state is not None and not is_planned(run, state),
        decide=run.strategy.broadcast,
        is_main=run.strategy.is_main,
    )


def start_profiler(run: Run, folder: Path) -> torch.profiler.profile | None:
    """With `profile=N`: trace N steps, after ten to get warm, into `trace.json`."""
    steps = run.blueprint.config["profile"]
    if steps is None:
        return None
    profiler = torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=5, warmup=5, active=steps, repeat=1),
        on_trace_ready=lambda traced: traced.export_chrome_trace(str(folder / "trace.json")),
        record_shapes=True,
        acc_events=True,  # there is one cycle only; torch 2.11 warns without it
    )
    profiler.start()
    return profiler


def compare_data(run: Run, folder: Path) -> None:
    """Raises DataError when the data are not those that the run began with."""
    path = folder / run_folder.ENVIRONMENT
    if path.is_file() and json.loads(path.read_text())["data_sha256"] != run.splits.checksum():
        raise DataError(other_data(run.blueprint.config))


def other_data(config: Config) -> str:
    """What is said of data that have changed since the run began: `data=mnist data.root=data: not the data ...`."""
    root = config["data"].get("root")
    chosen = f"data={config['choices']['data']}" + ("" if root is None else f" data.root={root}")
    return f"{chosen}: not the data that the run began with (another checksum)"


def record_environment(run: Run, folder: Path, resumed: bool) -> None:
    """Write `environment.json`, or say where the present one is another that may change the last bits."""
    now = run_folder.describe_environment(
        str(run.device), torch.get_num_threads(), run.strategy.world_size, run.splits.checksum()
    )
    path = folder / run_folder.ENVIRONMENT
    if not resumed or not path.is_file():
        write_json(path, now)
        return
    before = json.loads(path.read_text())
    for key in ("packages", "device", "threads", "world_size", "platform"):
        if before[key] != now[key] and run.report is not None:
            run.report.message(f"{key} differ from when the run began; the last bits may, too: {now[key]}")


def announce(run: Run, resumed: bool) -> None:
    """The header on the terminal, and the same facts for TensorBoard."""
    assert run.report is not None
    plan, config = run.blueprint, run.blueprint.config
    choices, facts = config["choices"], plan.facts
    length = f"{plan.total_steps:,} steps of {plan.batch_size} samples"
    precision = "fp32" if plan.dtype is None else str(plan.dtype).removeprefix("torch.")
    ranks = run.strategy.world_size
    spread = {} if ranks == 1 else {"parallelism": f"{choices['parallelism']}, {ranks} ranks"}
    run.report.header(
        {
            "run": f"{run.folder}" + (f" (resumed at step {run.step})" if resumed else ""),
            "model": f"{choices['model']}, {run.num_parameters:,} parameters",
            "data": f"{choices['data']}: {facts.num_train:,} train, {facts.num_val:,} val, {facts.num_test:,} test",
            "training": f"{choices['optimizer']}, {choices['schedule']}, {length}",
            "device": f"{run.device}, {torch.get_num_threads()} threads, {precision}",
            **spread,
        }
    )
    for notice in run.strategy.notices(run.model):
        run.report.message(notice)
    if resumed:
        return
    board = run.report.tensorboard
    board.text("config", f"```yaml\n{yaml.safe_dump(config, sort_keys=False)}```")
    board.start_hparams(hyper_parameters(config))
    if facts.kind == "images":
        # as the preprocessing is given them: in their own colours, where whitened ones would be none
        images = next(run.batches.before_preprocessing().epoch(0)).images
        count = max(1, min(64, _PIXELS_SHOWN // (images.shape[2] * images.shape[3])))
        board.images("train/first_batch", as_levels(images[:count], run.batches.images), 0)


def hyper_parameters(config: Config) -> dict[str, Any]:
    """One flat row: the option of each group, and every number, word and switch that changes the outcome."""
    row: dict[str, Any] = dict(config["choices"])
    aside = ("choices", "every", "name", "profile", "threads")
    for key, value in config.items():
        if key in aside:
            continue
        row |= _flattened(key, value)
    return row


def _flattened(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        inner = {name: item for name, item in value.items() if name not in ("_target_", "root", "download", "epochs")}
        return {k: v for name, item in inner.items() for k, v in _flattened(f"{key}.{name}", item).items()}
    return {} if value is None else {key: value}


def keep_matching_best(run: Run, path: Path) -> None:
    """Make `best.pt` the one that the restored state speaks of: a kill may have left a later one."""
    if run.best is None:
        return
    wanted = run.best.step
    found = checkpoint.find_newest(path, lambda state: bool(state["step"] == wanted))
    if found is None:
        raise DataError(f"{path}: the best weights of step {wanted} are lost")
    if found[0] != path:
        found[0].replace(path)


def load_data(blueprint: Blueprint) -> Any:
    """The splits, on the CPU. Raises ConfigurationError for data that is missing, DataError for damage."""
    try:
        splits = blueprint.data.load()
    except ValueError as error:
        raise DataError(f"data: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"data: {error}") from error
    facts = blueprint.facts
    for name, count in (("train", facts.num_train), ("val", facts.num_val), ("test", facts.num_test)):
        part = getattr(splits, name)
        shape = tuple(part.images_NCHW.shape)
        if shape != (count, *facts.input_shape) or len(part.targets_N) != count:
            raise DataError(f"data: the {name} part has images {shape}; its facts say {(count, *facts.input_shape)}")
        wanted = torch.float32 if facts.kind == "features" else torch.uint8
        if isinstance(part.images_NCHW, torch.Tensor) and part.images_NCHW.dtype != wanted:
            raise DataError(f"data: the {name} part has {part.images_NCHW.dtype}; {facts.kind} are {wanted}")
        if facts.task == "classification" and not 0 <= part.targets_N.min() <= part.targets_N.max() < facts.num_outputs:
            raise DataError(f"data: the {name} part has classes outside 0..{facts.num_outputs - 1}")
    return splits


def make_model(blueprint: Blueprint) -> nn.Module:
    """The model with its first weights, a function of the seed alone; built on the CPU for every device."""
    config = blueprint.config
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_for(config["seed"], "weights"))
        model = blueprint.build_model()
        initializer = build(config["initializer"], "initializer")
        if initializer is not None:
            initializer(model)
    if config["init_from"] is not None:
        model.load_state_dict(read_weights(Path(config["init_from"]), model))
    return model


def read_weights(start: Path, model: nn.Module) -> dict[str, Any]:
    """Weights of a run folder (its best) or of a .pt file, checked against the model. Raises DataError."""
    path = start / run_folder.CHECKPOINTS / "best.pt" if start.is_dir() else start
    try:
        found = checkpoint.load(path)
    except DataError:
        if start.is_dir():
            raise
        found = _plain_weights(path)
    state: dict[str, Any] = found.get("model", found)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != given:
        different = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise DataError(f"init_from={start}: does not fit the model at {', '.join(different[:3])} ...")
    return state


def _plain_weights(path: Path) -> dict[str, Any]:
    """A state_dict that was saved elsewhere. Raises DataError for anything else."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # other bytes let torch raise almost anything
        raise DataError(f"init_from={path}: is neither a checkpoint nor a state dict of tensors") from error
    tensors = found.get("model", found) if isinstance(found, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise DataError(f"init_from={path}: must hold a state dict, tensors by name")
    whole: dict[str, Any] = found
    return whole


def set_up_torch(config: Config, device: torch.device) -> None:
    """Threads and determinism; they hold for the whole process."""
    torchs_own_threads()
    here = place()
    sharing = here.local_size if here is not None and device.type == "cpu" else 1
    torch.set_num_threads(config["threads"] or max(1, torchs_own_threads() // sharing))
    if config["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config["deterministic"], warn_only=device.type != "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # torch.cuda.manual_seed means the current one
    torch.backends.cudnn.benchmark = not config["deterministic"]
    # new memory need not be filled: nothing here reads what it has not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@cache
def torchs_own_threads() -> int:
    """How many threads torch chose for itself: what `threads=null` means, also after a run that had another number."""
    return torch.get_num_threads()


def use_channels_last(wanted: bool | str, model: nn.Module, blueprint: Blueprint) -> bool:
    """Whether images are laid out NHWC: where it was measured to help, convolutions on CUDA or in bf16."""
    if wanted != "auto":
        return bool(wanted)
    helps = blueprint.device.type == "cuda" or blueprint.dtype is torch.bfloat16
    return helps and any(isinstance(module, nn.Conv2d) for module in model.modules())
