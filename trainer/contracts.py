"""What the trainer asks of the component of each group: a typed base class, optional capabilities with defaults.

`DataSet` is defined in `trainer.data.facts` and `Strategy` in `trainer.parallelism.strategy`, beside the types that
they use. A component need not subclass its contract: `adapt` accepts everything that has the required members. This
module alone looks up whether a component has something; all others read attributes that always exist.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from trainer.base.chunks import Change

Contract = TypeVar("Contract")
Metric = str | Callable[[Tensor, Tensor], Tensor]
Rows = dict[str, Tensor]  # drawn parameters by name, one row a sample; on the CPU


class Preprocessing(nn.Module, ABC):
    """From pixels 0..255 (or features) to what a model is fed, float32.

    The statistics come from `fit`, once, and are buffers, so that they travel with `state_dict`.
    """

    transform_: Callable[[Tensor], Tensor] | None = None
    """As `forward`, for float32 images, which it may overwrite and whose shape it keeps; None: there is no such way."""

    @abstractmethod
    def fit(self, images: Any) -> None:
        """Estimates the statistics from the training images: a tensor, or what gives one for every slice of itself."""

    @abstractmethod
    def forward(self, images_NCHW: Tensor) -> Tensor:
        """The result for images of any type, which are left alone."""

    def check(self, input_shape: tuple[int, int, int]) -> None:
        """Raises ValueError for samples (C, H, W) that it cannot treat."""

    def fit_roughly(self, images: Any) -> None:
        """Statistics that take as long to apply as those of `fit`, in little time: for an estimate of costs."""
        self.fit(images)


class Sampler(ABC):
    """Which sample of the training split comes when."""

    repeats: bool = False
    """Whether a sample may come more than once in an epoch."""
    needs_classes: bool = False
    """Whether targets must be class numbers."""

    @abstractmethod
    def order(self, targets_N: Tensor, generator: torch.Generator) -> Tensor:
        """The indices of one whole epoch, int64, on the CPU; asked again, it answers the same."""

    @property
    def listens(self) -> bool:
        """Whether it learns from the loss of each sample: it has an `observe` of its own."""
        return type(self).observe is not Sampler.observe

    def observe(self, indices_K: Tensor, losses_K: Tensor) -> None:
        """Take the losses of samples that this rank has seen in this epoch, without waiting for the device."""

    def gather(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Combine what the ranks have observed; all of them call it, before `state_dict` and `end_epoch`."""

    def end_epoch(self) -> None:
        """What was observed counts from the next epoch on."""

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The same on every rank."""


class Augmentation(ABC):
    """Tables of parameters, one row a sample, and what they do to images."""

    mixing: str | None = None
    """The name of the operation that mixes samples and their labels, if there is one."""

    @abstractmethod
    def draw(self, num_samples: int, input_shape: tuple[int, int, int], generator: torch.Generator) -> Rows:
        """The table of an epoch, on the CPU. Raises ValueError for images (C, H, W) that it cannot change."""

    @abstractmethod
    def __call__(self, images_NCHW: Tensor, rows: Rows, skip: int = 0) -> Tensor:
        """The changed images, whole numbers 0..255; `skip` operations are done already (only after `frames`)."""

    def begin(self, images_NCHW: Tensor, rows: Rows, skip: int = 0) -> tuple[Tensor, list[Change]]:
        """As a call, but changes that can be done to a few images at a time are returned beside the images."""
        return (self(images_NCHW, rows, skip) if skip else self(images_NCHW, rows)), []

    def frames(self, rows: Rows, sizes_N2: Tensor, output_hw: tuple[int, int]) -> Tensor | None:
        """What to cut out of stored photographs of these sizes, int64_N8; None: they are framed as for evaluation."""
        return None

    @property
    def framed(self) -> int:
        """How many of the first operations `frames` takes care of."""
        return 0

    def border(self, images_NCHW: Tensor, room: float) -> Any:
        """Another layout of a whole set that is read faster, in at most `room` bytes; None: there is none."""
        return None

    def border_bytes(self, shape: tuple[int, ...]) -> int | None:
        """Bytes of that layout for a set of this shape (N, C, H, W); None: there is none."""
        return None

    def mix(self, images_NCHW: Tensor, partners_NCHW: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Preprocessed images mixed with others, and the weight of each one's own label, float32_N."""
        raise AssertionError(f"{type(self).__name__} mixes no samples")


class Initializer(Protocol):
    """Initial weights."""

    def __call__(self, model: nn.Module) -> None:
        """Change the freshly built model in place, with torch's default CPU generator."""
        ...


class Loss(ABC):
    """The sum of the loss over samples, which the caller divides by their number over all ranks."""

    tasks: ClassVar[Collection[str]]
    """The tasks that it serves: classification, regression."""
    metrics: ClassVar[Mapping[str, Sequence[Metric]]]
    """For each task the metrics beside the loss itself."""
    soft_targets: bool = False
    """Whether the target of a classification may be a probability of each class, (N, K)."""

    @abstractmethod
    def __call__(self, outputs_NK: Tensor, targets: Tensor) -> Tensor:
        """The sum over samples, a scalar."""

    @property
    def has_each(self) -> bool:
        """Whether `each` gives the loss of every sample."""
        return type(self).each is not Loss.each

    def each(self, outputs_NK: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample, (N,), for samplers that learn from it."""
        raise AssertionError(f"{type(self).__name__} has no loss of each sample")

    def initial_value(self, num_outputs: int) -> float | None:
        """The mean loss of an untrained model; None: unknown."""
        return None

    def of_probabilities(self, log_probabilities_NK: Tensor, targets: Tensor) -> Tensor | None:
        """The sum over samples, given log probabilities of the classes in place of outputs (an average over views or
        models has no outputs); None: it is a loss of outputs only."""
        return None


class Optimizer(Protocol):
    """torch's own interface. `needs_closure` and `is_elementwise` tell its capabilities."""

    param_groups: list[dict[str, Any]]

    def step(self, closure: Any = None) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...


class Schedule(ABC):
    """What each learning rate is multiplied by."""

    warmup: int = 0
    """Steps in which the rate rises, for `plan`."""
    monitor: str | None = None
    """The metric that it follows; None: a pure function of the step."""

    @abstractmethod
    def factor(self, step: int) -> float:
        """Of optimizer step 0, 1, ..."""

    @property
    def listens(self) -> bool:
        """Whether it follows evaluations: it has an `observe` of its own."""
        return type(self).observe is not Schedule.observe

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Called with the metrics of every evaluation."""

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class Diagnostics(ABC):
    """Numbers in, numbers out: it watches a run and cannot steer it."""

    @abstractmethod
    def at_log(self, grad_norm: float | None) -> dict[str, float]:
        """Metrics of a logged step; `grad_norm` is the last step's global L2 norm before clipping."""

    @abstractmethod
    def at_start(self, initial_loss: float, untrained_loss: float | None) -> tuple[dict[str, float], str | None]:
        """Metrics of the first training loss, and a sentence when it is suspicious."""


# --- capabilities of what is never wrapped: torch's optimizers, the user's models -----------------------------

# each number's update depends on its own gradients only, so a part of a weight can be stepped alone
ELEMENTWISE = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD")


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether `step` evaluates the objective itself: `needs_closure` where a class has it, otherwise true exactly if
    the `closure` parameter of `step` has no default, as in torch's L-BFGS."""
    declared: bool | None = getattr(optimizer, "needs_closure", None)
    if declared is not None:
        return bool(declared)
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def is_elementwise(optimizer: Optimizer) -> bool:
    """Whether a part of a weight can be stepped alone: `elementwise` where a class has it, or one of torch's."""
    kind = type(optimizer)
    is_torchs = kind.__module__.startswith("torch.optim.") and kind.__name__ in ELEMENTWISE
    return bool(getattr(optimizer, "elementwise", is_torchs))


def tensor_plan(model: nn.Module) -> Mapping[str, str]:
    """How each module may be split over ranks, by its name (see `parallelism/tensor.py`); empty: it names none."""
    plan: Any = getattr(model, "tensor_plan", None)
    return plan or {}


def pipeline_plan(model: nn.Module) -> Sequence[str] | None:
    """The children at which a pipeline stage may begin; None: the model names none."""
    plan: Any = getattr(model, "pipeline_plan", None)
    return None if plan is None else tuple(plan)


# --- components that do not subclass their contract -----------------------------------------------------------


def adapt(group: str, contract: type[Contract], component: Any) -> Contract:
    """The component with every optional capability of its contract, for what does not subclass it by delegation.

    A contract that is a Protocol has no optional capabilities: its components are returned as they are. Raises
    ValueError for a component that lacks required members.
    """
    missing = missing_members(contract, component)
    if missing:
        raise ValueError(f"is nothing for {group}, it has no {', '.join(missing)}")
    found: Any = component
    if _is_protocol(contract) or isinstance(component, contract):
        pass
    elif issubclass(contract, Preprocessing):
        if not isinstance(component, nn.Module):
            raise ValueError(f"is nothing for {group}, it is no torch.nn.Module")
        found = _ForeignPreprocessing(component)
    else:
        found = _adapter(contract, component)(component)
    adapted: Contract = found
    return adapted


def missing_members(contract: type, component: object) -> list[str]:
    """Names of the required members that a component lacks."""
    return [name for name in required_members(contract) if not hasattr(component, name)]


def required_members(contract: type) -> list[str]:
    """Names that a contract asks for: attributes without a value and abstract methods; of a Protocol everything."""
    own = vars(contract)
    attributes = [name for name in own.get("__annotations__", {}) if name not in own]
    methods = [name for name, item in own.items() if inspect.isfunction(item)]
    if _is_protocol(contract):
        return attributes + [name for name in methods if not name.startswith("_") or name == "__call__"]
    return attributes + [name for name, item in own.items() if getattr(item, "__isabstractmethod__", False)]


def _is_protocol(contract: type) -> bool:
    return bool(getattr(contract, "_is_protocol", False))


def _adapter(contract: type, component: Any) -> type:
    """A subclass of the contract that reads what the component has from it; the rest are the contract's defaults."""
    names = {name for kind in contract.__mro__[:-1] for name in (*vars(kind), *vars(kind).get("__annotations__", {}))}
    public = [name for name in names if not name.startswith("_") and hasattr(component, name)]
    body: dict[str, Any] = {name: _delegate(name) for name in public}
    if "__call__" in names:
        body["__call__"] = lambda self, *args, **kwargs: self.adapted(*args, **kwargs)
    body |= {
        "__init__": _remember,
        "__getattr__": _look_up,
        "__copy__": _copy,
        "__module__": type(component).__module__,
    }
    return type(type(component).__name__, (contract,), body)


def _delegate(name: str) -> property:
    return property(lambda self: getattr(self.adapted, name), lambda self, value: setattr(self.adapted, name, value))


def _remember(self: Any, component: Any) -> None:
    self.adapted = component


def _copy(self: Any) -> Any:
    """What is set in the copy is not set in the component."""
    return type(self)(copy(self.adapted))


def _look_up(self: Any, name: str) -> Any:
    """What is the component's own and no part of the contract."""
    if name == "adapted":  # a copy that is being made
        raise AttributeError(name)
    return getattr(self.adapted, name)


class _ForeignPreprocessing(Preprocessing):
    """A module that is no `Preprocessing`; its state keeps its names."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.adapted = module
        self.transform_ = getattr(module, "transform_", None)

    def fit(self, images: Any) -> None:
        self.adapted.fit(images)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        result: Tensor = self.adapted(images_NCHW)
        return result

    def check(self, input_shape: tuple[int, int, int]) -> None:
        getattr(self.adapted, "check", super().check)(input_shape)

    def fit_roughly(self, images: Any) -> None:
        getattr(self.adapted, "fit_roughly", self.adapted.fit)(images)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.adapted.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.adapted.load_state_dict(*args, **kwargs)
