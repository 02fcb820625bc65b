"""What the models of libraries have in common: errors in one sentence, the size of images, weights from a file."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainer.base.checks import check_that
from trainer.base.config import ConfigValue
from trainer.base.errors import DataError
from trainer.base.saved import read_saved
from trainer.models.parts import check_dropout, check_stochastic_depth

# no classification model of torchvision needs more pixels on a side
_LARGEST_NEED = 512
_EXPECTED = (TypeError, ValueError, AssertionError, ArithmeticError, RuntimeError)


def check_rates(drop_prob: float | None, stochastic_depth: float | None) -> None:
    """Raise ValueError unless both are in [0, 1) or null, the model's own default."""
    if drop_prob is not None:
        check_dropout(drop_prob, "drop_prob")
    if stochastic_depth is not None:
        check_stochastic_depth(stochastic_depth)


def built(
    build: Callable[[], nn.Module], name: str, arguments: Mapping[str, ConfigValue], input_shape: tuple[int, int, int]
) -> nn.Module:
    """Build a model. Raises ValueError, with the library's own words, if it cannot be built."""
    try:
        return _on_any_device(build)
    except _EXPECTED as error:
        shape = "x".join(map(str, input_shape))
        with_arguments = f" with arguments {dict(arguments)}" if arguments else ""
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"model {name} cannot be built for images of {shape}{with_arguments}: {text}") from error


def _on_any_device(build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except NotImplementedError:  # on the meta device: regnet reads tensor values while it is built
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return build().to("meta")


def check_images(model: nn.Module, name: str, input_shape: tuple[int, int, int]) -> None:
    """Run the model on the meta device, which computes shapes only; if that fails, find the required image size."""
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    state = {key: tensor.to("meta") for key, tensor in tensors}
    channels, height, width = input_shape

    def complaint(height: int, width: int) -> str:
        try:
            functional_call(model, state, torch.empty(2, channels, height, width, device="meta"))
        except (RuntimeError, ValueError, AssertionError) as error:
            return " ".join(str(error).split()) or type(error).__name__
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


def load(model: nn.Module, name: str, path: str, num_outputs: int) -> None:
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
