"""What the models of libraries have in common: errors in one sentence, the size of images, weights from a file."""

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainer.base.checks import check_that, refuse
from trainer.base.config import ConfigValue
from trainer.base.errors import DataError, is_out_of_memory
from trainer.base.saved import read_saved
from trainer.base.taken_weights import different, shape_of, table
from trainer.base.text import written
from trainer.models.parts import check_dropout, check_stochastic_depth

# no classification model of torchvision needs more pixels on a side
_LARGEST_NEED = 512
_EXPECTED = (TypeError, ValueError, AssertionError, ArithmeticError, RuntimeError)


def check_rates(drop_prob: float | None, stochastic_depth: float | None) -> None:
    """Raise ValueError unless both are in [0, 1) or null, the model's own default."""
    if drop_prob is not None:
        check_dropout(drop_prob)
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


Recipe = Callable[[int, int], nn.Module]
"""Builds a model for numbers of channels and classes."""


def take_pretrained(
    model: nn.Module, library: Callable[[bool], nn.Module], recipe: Recipe, name: str, pretrained: bool | str
) -> None:
    """Take the weights of the library's own model, which may be downloaded; see `take`.

    `library` builds it, with its weights unless its argument is false: on the meta device only shapes are compared.
    Raises ValueError if the weights cannot be had.
    """
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            state = library(device.type != "meta").state_dict()
    except Exception as error:  # libraries raise almost anything without a network
        if is_out_of_memory(error):
            raise
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        must = "false unless the weights are cached or can be downloaded; weights=FILE reads them from a file"
        refuse("pretrained", pretrained, f"{must} ({text})")
    take(model, state, recipe, name, f"pretrained={written(pretrained)}")


def read(model: nn.Module, path: str) -> Mapping[str, Tensor]:
    """Read a state dict from a file. Raises ValueError if the file is none, DataError if it is damaged."""
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
    return state


def take(model: nn.Module, state: Mapping[str, Tensor], recipe: Recipe, name: str, where: str) -> None:
    """Copy a state dict into a model, and declare on it what was taken, left out and is new (`taken_weights`).

    Entries whose shapes the data determine, the classifier and the first convolution, may differ: they stay new, but a
    convolution of colours is summed for grey images, which are colours of equal values. Raises ValueError if any other
    entry does not match; `where` is the key that names the state.
    """
    own = model.state_dict()
    # files older than num_batches_tracked have no such entry; torch does not require it
    state = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")} | dict(state)
    with torch.device("meta"):
        shapes = [recipe(channels, classes).state_dict() for channels, classes in ((2, 2), (5, 5))]
    from_data = different(*shapes)
    if problem := _misfit(own, state, from_data):
        raise ValueError(f"{where}: must fit model {name}; {problem}")
    others = different(own, state)
    summed = {key: state[key].sum(1, keepdim=True) for key in others & from_data if _is_grey(own[key], state[key])}
    model.load_state_dict(own | {key: value for key, value in state.items() if key not in others} | summed)
    vars(model)["taken_weights"] = table(where, own, state, summed)


def _is_grey(own: Tensor, other: Tensor) -> bool:
    """Whether one is the kernel of a convolution of grey images, and the other that of the same one of colours."""
    return own.dim() == 4 and other.shape == (len(own), 3, *own.shape[2:]) and own.size(1) == 1


def _misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], from_data: Collection[str]) -> str:
    """Describe the first mismatch between a model's state and another one; empty if there is none."""
    for key, tensor in own.items():
        in_file, in_model = shape_of(state, key), tuple(tensor.shape)
        if in_file not in (None, in_model) and key not in from_data:
            return f"{key} has the shape {in_file} in the file, {in_model} in the model"
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    if missing:
        return f"{len(missing)} entries are not in the file, such as {missing[0]}"
    return f"{len(extra)} entries are not in the model, such as {extra[0]}" if extra else ""
