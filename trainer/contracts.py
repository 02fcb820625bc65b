"""Contracts: one typed base class for each group of components, with defaults for optional capabilities.

`DataSet` is defined in `trainer.data.facts` and `Strategy` in `trainer.parallelism.strategy`, beside the types that
they use. A component need not subclass its contract: `adapt` accepts any object that has the required members. Only
this module and `base/capabilities.py` test whether a component has a member; all others read attributes that always
exist.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from trainer.base.capabilities import auxiliary_weights as auxiliary_weights
from trainer.base.capabilities import convergence_of as convergence_of
from trainer.base.capabilities import is_element_wise as is_element_wise
from trainer.base.capabilities import needs_closure as needs_closure
from trainer.base.capabilities import pipeline_plan as pipeline_plan
from trainer.base.capabilities import taken_weights as taken_weights
from trainer.base.capabilities import tensor_plan as tensor_plan
from trainer.base.chunks import Change
from trainer.base.config import Component
from trainer.base.members import misfits
from trainer.base.stateful import State

Contract = TypeVar("Contract")
Metric = str | Callable[[Tensor, Tensor], Tensor]
ParameterGroup = dict[str, Any]
"""A parameter group of an optimizer: its parameters and its settings, by name."""
Rows = dict[str, Tensor]  # augmentation parameters by name, one row per sample, on the CPU


class Images(Protocol):
    """A tensor (N, C, H, W), or an object whose slices are uint8 or float32 tensors."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Tensor: ...


class Layout(Protocol):
    """A set of images that is stored for an augmentation."""

    images_NCHW: Tensor
    """The images as they are without augmentation."""

    def begin(self, indices_N: Tensor, rows: Rows) -> tuple[Tensor, list[Change]]:
        """The samples at these indices; see `Augmentation.begin`."""
        ...


class Preprocessing(nn.Module, ABC):
    """Maps pixels 0..255 (or features) to the model's float32 input.

    `fit` estimates the statistics once. They are buffers, so `state_dict` contains them.
    """

    transform_: Callable[[Tensor], Tensor] | None = None
    """In-place variant of `forward`: takes float32 images, may overwrite them and keeps their shape. `None` if there
    is none."""

    @abstractmethod
    def fit(self, images: Images) -> None:
        """Estimate the statistics from the training images."""

    @abstractmethod
    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the preprocessed images; the input may have any dtype and is not modified."""

    def check(self, input_shape: tuple[int, int, int]) -> None:
        """Raise ValueError if samples of shape (C, H, W) are not supported."""

    def fit_roughly(self, images: Images) -> None:
        """Set approximate statistics quickly, for cost estimates; applying them takes as long as those of `fit`."""
        self.fit(images)


class Sampler(ABC):
    """Order of the training samples in an epoch."""

    repeats: bool = False
    """Whether a sample may occur more than once in an epoch."""
    needs_classes: bool = False
    """Whether targets must be class numbers."""
    draws_batches: bool = False
    """Whether the order consists of batches of `batch_size` samples, so that the batch cannot grow."""

    @abstractmethod
    def order(self, targets_N: Tensor, generator: torch.Generator) -> Tensor:
        """Return the sample indices of one epoch: int64, on the CPU, the same for every call with equal arguments."""

    @property
    def listens(self) -> bool:
        """Whether it uses the loss of each sample, that is, overrides `observe`."""
        return type(self).observe is not Sampler.observe

    def observe(self, indices_K: Tensor, losses_K: Tensor) -> None:
        """Record the losses of samples of this rank, without synchronizing with the device."""

    def gather(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Combine the observations of all ranks. A collective call, made before `state_dict` and `end_epoch`."""

    def end_epoch(self) -> None:
        """Apply the observations; they affect the order from the next epoch on."""

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restore the state, which is the same on every rank."""


class Augmentation(ABC):
    """Draws a table of parameters, one row per sample, and applies it to batches of images."""

    mixing: str | None = None
    """Name of the operation that mixes samples and their labels, if any."""

    @abstractmethod
    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        """Draw the parameters of an epoch, on the CPU. Raises ValueError if images (C, H, W) are not supported."""

    @abstractmethod
    def __call__(self, images_NCHW: Tensor, rows: Rows, skip: int = 0) -> Tensor:
        """Return the augmented images, integers 0..255, leaving out the first `skip` operations (see `frames`)."""

    def begin(self, images_NCHW: Tensor, rows: Rows, skip: int = 0) -> tuple[Tensor, list[Change]]:
        """Like a call, but return the operations that can run chunk by chunk instead of applying them."""
        return (self(images_NCHW, rows, skip) if skip else self(images_NCHW, rows)), []

    def frames(self, rows: Rows, sizes_N2: Tensor, output_hw: tuple[int, int]) -> Tensor | None:
        """Return the regions to read from stored photographs of these sizes, int64_N8, or None to frame them as for
        evaluation."""
        return None

    @property
    def framed(self) -> int:
        """Number of leading operations that `frames` replaces."""
        return 0

    def notices(self, input_shape: tuple[int, int, int], class_names: Sequence[str]) -> list[str]:
        """Return a line, with the setting that helps, for each operation that does not suit such images."""
        return []

    def border(self, images_NCHW: Tensor, room: float) -> Layout | None:
        """Return the whole set in a layout that is faster to read, in at most `room` bytes, or None."""
        return None

    def border_bytes(self, shape: tuple[int, ...]) -> int | None:
        """Bytes of that layout for a set of shape (N, C, H, W), or None if there is none."""
        return None

    def mix(self, images_NCHW: Tensor, partners_NCHW: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Mix preprocessed images with their partners; also return the weight of each sample's own label, float32_N."""
        raise AssertionError(f"{type(self).__name__} does not mix samples")


class Initializer(ABC):
    """Initial weights."""

    num_samples: int = 0
    """Number of preprocessed training samples that `see` wants before the call."""

    @abstractmethod
    def __call__(self, model: nn.Module) -> None:
        """Initialize a newly constructed model in place, using torch's default CPU generator."""

    def see(self, images: Tensor) -> None:
        """Receive the first `num_samples` training samples, preprocessed and not augmented."""

    def check(self, model: nn.Module) -> None:
        """Raise ValueError if it does not suit the model, which may be on the meta device."""


class Loss(ABC):
    """Sum of the loss over samples, which the caller divides by the number of samples on all ranks."""

    tasks: ClassVar[Collection[str]]
    """Supported tasks: classification, regression."""
    metrics: ClassVar[Mapping[str, Sequence[Metric]]]
    """Metrics reported with the loss, for each task."""
    directions: Mapping[str, str] = MappingProxyType({})
    """Whether lower ("min") or higher ("max") values of a metric are better, by its name, for `mode: auto`."""
    needs_centroids: bool = False
    """Whether outputs must be those of a model with `centroids`."""
    soft_targets: bool = False
    """Whether targets of a classification may be class probabilities, (N, K)."""

    @abstractmethod
    def __call__(self, outputs_NK: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over samples, a scalar."""

    def num_outputs(self, num_outputs: int) -> int:
        """Return the number of outputs that the model needs, given the number of classes or values of the data.

        Raises ValueError if it does not support that number. A classifier with one output predicts class 1 if it is
        positive and class 0 otherwise.
        """
        return num_outputs

    @property
    def has_each(self) -> bool:
        """Whether `each` is implemented."""
        return type(self).each is not Loss.each

    def each(self, outputs_NK: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, (N,), for samplers that use it."""
        raise AssertionError(f"{type(self).__name__} has no per-sample loss")

    def initial_value(self, num_outputs: int) -> float | None:
        """Expected mean loss of an untrained model, or None if unknown."""
        return None

    def of_probabilities(self, log_probabilities_NK: Tensor, targets: Tensor) -> Tensor | None:
        """Return the sum over samples, computed from log probabilities in place of outputs, or None if the loss is
        defined on outputs only. Used for probabilities averaged over views or models."""
        return None


class Optimizer(Protocol):
    """Interface of `torch.optim.Optimizer`. `traits` reports its capabilities (see `base/capabilities.py`)."""

    param_groups: list[ParameterGroup]

    def step(self, closure: None = None) -> float | None: ...

    def state_dict(self) -> State: ...


class Schedule(ABC):
    """Factor that multiplies every base learning rate."""

    warmup: int = 0
    """Number of warm-up steps, shown by `plan`."""
    monitor: str | None = None
    """Metric that it depends on; None for a pure function of the step."""
    tail: float | None = None
    """Exponent p if the factor falls as t^-p for ever: 0 if it does not fall to 0, math.inf if it falls faster than
    every power. None if the schedule ends with the run, or follows evaluations."""
    drop_moments: Sequence[int] | None = None
    """Moments within its length before which the factor falls, if it is constant in between; None for other schedules.
    The batch can grow at these moments instead (`schedule.max_batch`)."""
    batch_sizes: Sequence[tuple[int, int]] = ()
    """Moments from which on a batch has another number of samples, with that number."""

    def notices(self, total_steps: int) -> Iterable[str]:
        """Remarks on a schedule of this length, such as a drop that is not reached. Shown before the run."""
        return ()

    def cycle_ends(self, total_steps: int) -> tuple[int, ...]:
        """Numbers of steps, up to `total_steps`, after which a cycle ends; empty without cycles. As those of `factor`,
        they are steps of the first batch size if the batch grows."""
        return ()

    @abstractmethod
    def factor(self, step: int) -> float:
        """Return the factor for optimizer step 0, 1, ..."""

    @property
    def listens(self) -> bool:
        """Whether it uses evaluation metrics, that is, overrides `observe`."""
        return type(self).observe is not Schedule.observe

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Receive the metrics of every evaluation."""

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


class Diagnostics(ABC):
    """Computes metrics of a run; it cannot influence training."""

    @abstractmethod
    def at_log(self, grad_norm: float | None) -> dict[str, float]:
        """Return metrics of a logged step; `grad_norm` is the last step's global L2 norm before clipping."""

    @abstractmethod
    def at_start(self, initial_loss: float, untrained_loss: float | None) -> tuple[dict[str, float], str | None]:
        """Return metrics of the first training loss, and a warning if it is suspicious."""


# --- components that do not subclass their contract -----------------------------------------------------------


def adapt(group: str, contract: type[Contract], component: Component) -> Contract:
    """Return the component with all optional members of its contract; wrap it if it does not subclass the contract.

    A contract that is a Protocol has no optional members, so its components are returned unchanged. Raises
    ValueError if a required member is missing, or if a member is something else than in the contract.
    """
    if inspect.isclass(component):
        raise ValueError(f"cannot be used as {group}: it returns the class {component.__name__}, not an instance of it")
    missing = missing_members(contract, component)
    if missing:
        raise ValueError(f"cannot be used as {group}: it has no {', '.join(missing)}")
    if not type(component).__module__.startswith("trainer.") and (misfit := misfits(contract, component)):
        raise ValueError(f"cannot be used as {group}: {misfit[0]}")
    found = component
    if _is_protocol(contract) or isinstance(component, contract):
        pass
    elif issubclass(contract, Preprocessing):
        if not isinstance(component, nn.Module):
            raise ValueError(f"cannot be used as {group}: it is not a torch.nn.Module")
        found = _ForeignPreprocessing(component)
    else:
        found = _adapter(contract, component)(component)
    adapted: Contract = found
    return adapted


def missing_members(contract: type, component: object) -> list[str]:
    """Names of required members that the component does not have."""
    return [name for name in required_members(contract) if not hasattr(component, name)]


def required_members(contract: type) -> list[str]:
    """Names of a contract's attributes without a value and abstract methods; for a Protocol, of all its members."""
    own = vars(contract)
    attributes = [name for name in own.get("__annotations__", {}) if name not in own]
    methods = [name for name, item in own.items() if inspect.isfunction(item)]
    if _is_protocol(contract):
        return attributes + [name for name in methods if not name.startswith("_") or name == "__call__"]
    return attributes + [name for name, item in own.items() if getattr(item, "__isabstractmethod__", False)]


def _is_protocol(contract: type) -> bool:
    return bool(getattr(contract, "_is_protocol", False))


class _Adapter:
    """Looks up in a component what the contract does not have."""

    def __init__(self, component: Component) -> None:
        self.adapted = component

    def __getattr__(self, name: str) -> Component:
        if name == "adapted":  # not yet set, while a copy is being made
            raise AttributeError(name)
        return getattr(self.adapted, name)

    def __copy__(self) -> Self:
        """Copy the component, too, so that assignments to the copy do not reach the original."""
        return type(self)(copy(self.adapted))


class _CallableAdapter(_Adapter):
    def __call__(self, *args: object, **kwargs: object) -> Component:
        return self.adapted(*args, **kwargs)


def _adapter(contract: type[Contract], component: Component) -> Callable[[Component], Contract]:
    """Create a subclass of the contract that delegates to the component and falls back to the contract's defaults."""
    names = {name for kind in contract.__mro__[:-1] for name in (*vars(kind), *vars(kind).get("__annotations__", {}))}
    public = [name for name in names if not name.startswith("_") and hasattr(component, name)]
    body = {name: _delegate(name) for name in public}
    base = _CallableAdapter if "__call__" in names else _Adapter
    kind = type(component)
    return type(kind.__name__, (base, contract), {**body, "__module__": kind.__module__})


def _delegate(name: str) -> property:
    return property(lambda self: getattr(self.adapted, name), lambda self, value: setattr(self.adapted, name, value))


class _ForeignPreprocessing(Preprocessing):
    """Wraps a module that does not subclass `Preprocessing`; the keys of its state dict do not change."""

    def __init__(self, module: Component) -> None:
        super().__init__()
        self.adapted = module
        self.transform_ = getattr(module, "transform_", None)

    def fit(self, images: Images) -> None:
        self.adapted.fit(images)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        result: Tensor = self.adapted(images_NCHW)
        return result

    def check(self, input_shape: tuple[int, int, int]) -> None:
        getattr(self.adapted, "check", super().check)(input_shape)

    def fit_roughly(self, images: Images) -> None:
        getattr(self.adapted, "fit_roughly", self.adapted.fit)(images)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.adapted.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.adapted.load_state_dict(*args, **kwargs)
