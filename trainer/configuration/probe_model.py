"""Probes of models and initializers: what a factory returns, lazily built layers, parameters that are never trained."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainer.base.errors import ConfigurationError, advice_of
from trainer.base.without_compiler import set_deterministic, zeros_for
from trainer.configuration.blueprint import Blueprint
from trainer.configuration.probe import calling, described, is_theirs, key_of, refuse
from trainer.contracts import Initializer, auxiliary_weights

# wrappers by name: importing them takes long
_WRAPPERS = {
    "DataParallel": "return the module itself; parallelism=ddp runs it on several devices",
    "DistributedDataParallel": "return the module itself; parallelism=ddp runs it on several devices",
    "FullyShardedDataParallel": "return the module itself; parallelism=fsdp shards it",
    "OptimizedModule": "return the module itself; compile=true compiles it",
}


def check_built(where: str, model: object) -> nn.Module:
    """Return what a model's factory returned if it is a module with parameters to train."""
    if inspect.isclass(model):
        refuse(where, f"returns the class {model.__name__}", "return an instance of it")
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"{where}: returns no torch.nn.Module, but {type(model).__name__}")
    if (kind := type(model).__name__) in _WRAPPERS and type(model).__module__.startswith("torch."):
        refuse(where, f"returns a {kind} around the model", _WRAPPERS[kind])
    lazy = [name for name, tensor in _tensors(model) if nn.parameter.is_lazy(tensor)]
    if lazy:
        refuse(where, f"'{lazy[0]}' is still uninitialized after a call", "use every lazily built layer in forward()")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        refuse(where, "has no parameter that requires a gradient", "have one, to be trained")
    for name, inner in _unregistered(model):
        refuse(where, f"keeps {described(inner)} in '{name}', a plain list or dict, where it is not trained",
               "keep modules in nn.ModuleList or nn.ModuleDict, and parameters in nn.ParameterList")  # fmt: skip
    return model


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _unregistered(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield trainable modules and parameters that are kept in plain containers only, with their attributes."""
    known = {id(item) for item in (*model.modules(), *model.parameters())}
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or not isinstance(value, list | tuple | dict):
                continue
            for item in value.values() if isinstance(value, dict) else value:
                trained = item.parameters() if isinstance(item, nn.Module) else [item]
                is_trainable = any(isinstance(p, nn.Parameter) and p.requires_grad for p in trained)
                if is_trainable and id(item) not in known:
                    yield f"{prefix}.{name}".lstrip("."), item


def check_shared(blueprint: Blueprint, model: nn.Module) -> None:
    """Refuse parameters that two layers share if ranks hold layers, or shards of them, by themselves."""
    strategy, names = blueprint.strategy, dict[int, str]()
    if not (strategy.cuts_weights or (strategy.is_synchronous and not strategy.steps_all_weights)):
        return
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(parameter), name)
        if first != name:
            raise ConfigurationError(
                f"model: '{first}' and '{name}' are one parameter, of which parallelism="
                f"{blueprint.config['choices'].get('parallelism')} would train two; parallelism=ddp keeps it"
            )


# --- calls ------------------------------------------------------------------------------------------------


def output_shape(model: nn.Module, count: int, blueprint: Blueprint) -> tuple[int, ...]:
    """Return the shape of the model's outputs in training, for so many samples."""
    heads = len(auxiliary_weights(model))
    return (count, 1 + heads, blueprint.num_outputs) if heads else (count, blueprint.num_outputs)


def run_real(blueprint: Blueprint) -> object:
    """Build the model on the CPU and return its outputs for two samples: it cannot be called on the meta device."""
    where = key_of(blueprint.config, "model")
    with calling(where, "forward()"), torch.no_grad(), _deterministic(blueprint):
        return blueprint.build_model()(torch.zeros(2, *blueprint.facts.input_shape))


def check_trained(model: nn.Module, blueprint: Blueprint) -> None:
    """Call a user's model, on the meta device or with zero weights, with gradients and in evaluation mode."""
    if not is_theirs(blueprint.config, "model", model):
        return
    where = key_of(blueprint.config, "model")
    call = _call_of(model, blueprint)
    outputs = _tried(call, where, blueprint)
    if isinstance(outputs, Tensor):
        _check_gradients(where, outputs, model, blueprint, call)
    model.eval()
    outputs = _tried(call, where, blueprint)
    model.train()
    wanted = (2, blueprint.num_outputs)
    if outputs is not None and not (isinstance(outputs, Tensor) and tuple(outputs.shape) == wanted):
        refuse(f"{where}: in evaluation mode", f"returns {described(outputs)} for a batch of 2", f"be {wanted}")


class _Call:
    """Calls a model with two samples, and knows its weights by name."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor], shape: tuple[int, ...], device: str) -> None:
        self._model, self._shape, self._device = model, shape, device
        self.weights = weights

    def __call__(self) -> object:
        samples = torch.zeros(2, *self._shape, device=self._device)
        with torch.device(self._device):
            return functional_call(self._model, self.weights, (samples,))


def _call_of(model: nn.Module, blueprint: Blueprint) -> _Call:
    shape = tuple(blueprint.facts.input_shape)
    zeros = zeros_for(model, shape)
    if zeros is None:
        return _Call(model, dict(_tensors(model)), shape, "meta")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return _Call(model, {name: v.requires_grad_(name in trained) for name, v in zeros.items()}, shape, "cpu")


def _tried(call: Callable[[], object], where: str, blueprint: Blueprint) -> object | None:
    """Return the outputs; None if they cannot be had in this way, which says nothing about a run."""
    try:
        with torch.random.fork_rng(devices=[]), _deterministic(blueprint):
            return call()
    except Exception as error:
        if advice_of(error) is not None:
            with calling(where, "forward()"):
                raise
        return None


@contextmanager
def _deterministic(blueprint: Blueprint) -> Iterator[None]:
    """Refuse operations without a deterministic kernel, as the run does on the CPU."""
    before = torch.get_deterministic_debug_mode()
    refuses = bool(blueprint.config["deterministic"]) and blueprint.device.type == "cpu"
    set_deterministic(refuses, warn_only=False, compiles=False)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _check_gradients(where: str, outputs: Tensor, model: nn.Module, blueprint: Blueprint, call: _Call) -> None:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients: tuple[Tensor | None, ...] = ()
    if outputs.requires_grad:
        with suppress(RuntimeError, NotImplementedError), _deterministic(blueprint):
            gradients = torch.autograd.grad(
                outputs.sum(), [call.weights[name] for name in names], allow_unused=True, materialize_grads=False
            )
        if not gradients:
            return
    unused = [name for name, gradient in zip(names, gradients or [None] * len(names), strict=True) if gradient is None]
    if len(unused) == len(names):
        refuse(where, "the outputs have no gradient with respect to any parameter",
               "compute them from the parameters, without detach() or no_grad()")  # fmt: skip
    if unused and blueprint.strategy.uses_all_parameters:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        raise ConfigurationError(
            f"{where}: parameter '{unused[0]}'{more} is not used by forward(), which "
            f"parallelism={blueprint.config['choices'].get('parallelism')} requires; set "
            "parallelism.unused_parameters=true"
        )


# --- initializer ------------------------------------------------------------------------------------------


def check_initializer_calls(blueprint: Blueprint, initializer: Initializer | None) -> None:
    """Initialize the model on the CPU if it is small."""
    if initializer is None or not is_theirs(blueprint.config, "initializer", initializer):
        return
    with torch.device("meta"):
        model = blueprint.build_model()
    if zeros_for(model, tuple(blueprint.facts.input_shape)) is None:
        return
    where = key_of(blueprint.config, "initializer")
    with calling(where, "it"):
        real = blueprint.build_model()
        before = {name: (tuple(p.shape), p.dtype) for name, p in real.named_parameters()}
        returned: object = initializer(real)
        after = {name: (tuple(p.shape), p.dtype) for name, p in real.named_parameters()}
    if isinstance(returned, nn.Module) and returned is not real:
        refuse(where, "returns another model", "initialize the given one in place")
    if before != after:
        name = next(name for name in before | after if before.get(name) != after.get(name))
        refuse(where, f"leaves '{name}' with another shape or dtype", "change values only")
    for name, parameter in real.named_parameters():
        if not bool(parameter.isfinite().all()):
            refuse(where, f"leaves '{name}' with values that are not finite", "set finite values")
