"""Any classification model of torchvision, adapted to the data's channels, image size and classes."""

import inspect
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainer.base.checks import check_that
from trainer.base.config import Config, ConfigValue
from trainer.base.errors import DataError
from trainer.base.saved import read_saved
from trainer.base.text import did_you_mean

# constructor arguments that the data determine, by torchvision's names
_FROM_DATA = ("num_classes", "image_size", "input_size")
# no classification model of torchvision needs more pixels on a side
_LARGEST_NEED = 512


def from_torchvision(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    name: str = "resnet18",
    weights: str | None = None,
    arguments: Mapping[str, ConfigValue] | None = None,
) -> nn.Module:
    """Build the model `name` of `torchvision.models`, with `arguments` for its constructor.

    The data give the number of classes and, if the constructor takes it (vit, maxvit), the image size. If the data do
    not have 3 channels, the first convolution is replaced by a new one. Auxiliary classifiers (googlenet,
    inception_v3) are omitted. `weights` is the path to a state dict saved with torch.save, which must match the model
    entry by entry; it is read with weights_only=True.

    Raises ValueError for an unknown name or argument, weights that do not match, or images that are too small;
    DataError for damaged weights.
    """
    given = dict(arguments or {})
    build = _constructor(name, given, input_shape, num_outputs)
    shape = "x".join(map(str, input_shape))
    try:
        model = _build(build)
    except (TypeError, ValueError, AssertionError, ArithmeticError, RuntimeError) as error:
        with_arguments = f" with arguments {given}" if given else ""
        text = " ".join(str(error).split())
        raise ValueError(f"model {name} cannot be built for images of {shape}{with_arguments}: {text}") from error
    _take_channels(model, input_shape[0])
    _check_images(model, name, input_shape)
    if weights is not None:
        _load(model, name, weights, num_outputs)
    return model


def _constructor(
    name: str, arguments: Config, input_shape: tuple[int, int, int], num_outputs: int
) -> Callable[[], nn.Module]:
    """Check the name and arguments; return the call that builds the model."""
    from torchvision import models

    names = models.list_models(module=models)
    check_that(name in names, "name", name, f"a classification model of torchvision.models{did_you_mean(name, names)}")
    # builders take **kwargs; the class that they return has the full signature
    returned = inspect.signature(models.get_model_builder(name)).return_annotation
    parameters = inspect.signature(returned).parameters
    _check_arguments(name, arguments, [p.name for p in parameters.values() if p.kind is not p.VAR_KEYWORD])
    _, height, width = input_shape
    from_data = {"num_classes": num_outputs, "image_size": height, "input_size": (height, width)}
    # without auxiliary classifiers a model has one output; init_weights=None warns
    ours = {"aux_logits": False, "init_weights": True} | from_data
    chosen = {key: value for key, value in ours.items() if key in parameters} | arguments
    return lambda: models.get_model(name, weights=None, **chosen)


def _check_arguments(name: str, arguments: Mapping[str, ConfigValue], known: Iterable[str]) -> None:
    free = [key for key in known if key not in _FROM_DATA]
    for key, value in arguments.items():
        check_that(key not in _FROM_DATA, f"arguments.{key}", value, "omitted; the data determine it")
        if key not in free:
            hint = did_you_mean(key, free)
            raise ValueError(f"arguments.{key}={value}: must be one of {', '.join(free)} for model {name}{hint}")
    check_that(not arguments.get("aux_logits"), "arguments.aux_logits", True, "false; a model has one output here")


def _build(build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except NotImplementedError:  # on the meta device: regnet reads tensor values while it is built
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return build().to("meta")


def _take_channels(model: nn.Module, num_channels: int) -> None:
    """Replace the first convolution by one of `num_channels`, with torch's default initialization."""
    path, first = next((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels == num_channels:
        return
    parent, _, attribute = path.rpartition(".")
    new = nn.Conv2d(
        num_channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    setattr(model.get_submodule(parent), attribute, new)


def _check_images(model: nn.Module, name: str, input_shape: tuple[int, int, int]) -> None:
    """Run the model on the meta device, which computes shapes only; if that fails, find the required image size."""
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    state = {key: tensor.to("meta") for key, tensor in tensors}
    channels, height, width = input_shape

    def complaint(height: int, width: int) -> str:
        try:
            functional_call(model, state, torch.empty(2, channels, height, width, device="meta"))
        except (RuntimeError, ValueError, AssertionError) as error:
            return str(error) or type(error).__name__
        return ""

    with torch.no_grad():
        problem = complaint(height, width)
        if problem:
            sizes = range(1, _LARGEST_NEED + 1)
            smallest = bisect_left(sizes, True, key=lambda size: not complaint(size, size)) + 1
            if min(height, width) < smallest <= _LARGEST_NEED:
                problem = f"needs images of at least {smallest}x{smallest}; data gives {height}x{width}"
            else:
                problem = f"does not take images of {height}x{width}: {problem}"
            raise ValueError(f"model {name} {problem}")


def _load(model: nn.Module, name: str, path: str, num_outputs: int) -> None:
    """Copy a state dict from a file. Raises ValueError if the file or one of its entries does not match, DataError if
    it is damaged."""
    is_file = Path(path).expanduser().is_file()
    check_that(is_file, "weights", path, "null or a file of weights; there is no such file")
    device = next(model.parameters()).device
    try:
        state = read_saved(Path(path).expanduser(), device)
    except DataError as error:
        raise DataError(f"weights={path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"weights={path}: must be a state dict saved by torch.save, of tensors only") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights={path}: must be a state dict, tensors by name, and nothing else")
    if problem := _misfit(model, state, num_outputs):
        raise ValueError(f"weights={path}: must fit model {name}; {problem}")
    model.load_state_dict(state, strict=False)


def _misfit(model: nn.Module, state: Mapping[str, Tensor], num_outputs: int) -> str:
    """Describe the first mismatch between a state dict and the model; empty if there is none."""
    own = model.state_dict()
    for key, tensor in own.items():
        in_file = tuple(state[key].shape) if key in state else tuple(tensor.shape)
        in_model = tuple(tensor.shape)
        if in_model[1:] == in_file[1:] and in_model[:1] == (num_outputs,) != in_file[:1]:
            return f"its classifier {key} has {in_file[0]} outputs, the data needs {num_outputs}"
        if in_model != in_file:
            return f"{key} has the shape {in_file} in the file, {in_model} in the model"
    # files older than num_batches_tracked have no such entry; torch does not require it
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own]
    if missing:
        return f"{len(missing)} entries are not in the file, such as {missing[0]}"
    return f"{len(extra)} entries are not in the model, such as {extra[0]}" if extra else ""
