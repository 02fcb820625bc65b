"""Classes as users plug them in, each with one mistake, and what its message contains.

Attributes are written as users write them: plain dicts.
"""

# ruff: noqa: RUF012

import functools
import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.augmentation.operation import Operation
from trainer.averaging.averaging import Averaging
from trainer.contracts import Sampler, Schedule
from trainer.data.facts import DataFacts, Part, Splits
from trainer.regularizers.regularizer import Regularizer

WRONG: list[tuple[str, Any, tuple[str, ...]]] = []


def wrong(group: str, *words: str) -> Any:
    """Register a class or function under its group, with words of its message."""

    def keep(item: Any) -> Any:
        WRONG.append((group, item, words))
        return item

    return keep


# --- losses -----------------------------------------------------------------------------------------------


class GoodLoss:
    """Subclasses change one thing."""

    tasks = frozenset({"classification"})
    metrics: Any = {"classification": ("accuracy",)}

    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        return F.cross_entropy(outputs, targets, reduction="sum")


@wrong("loss", "the loss returns the same for every sample twice", "must return the sum over the samples")
class Mean(GoodLoss):
    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        return F.cross_entropy(outputs, targets)


@wrong("loss", "the loss returns a float32 tensor of shape (4,); must return a scalar tensor")
class Vector(GoodLoss):
    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        return F.cross_entropy(outputs, targets, reduction="none")


@wrong("loss", "the loss returns the float", "must return a scalar tensor")
class Number(GoodLoss):
    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        return float(super().__call__(outputs, targets))


@wrong("loss", "the loss returns None")
class NoLoss(GoodLoss):
    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        super().__call__(outputs, targets)


@wrong("loss", "the loss returns a tuple")
class LossTuple(GoodLoss):
    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        return super().__call__(outputs, targets), {}


@wrong("loss", "without a gradient")
class Detached(GoodLoss):
    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        return super().__call__(outputs.detach(), targets)


@wrong("loss", "the loss changes its arguments; must leave them as they are")
class InPlace(GoodLoss):
    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        return super().__call__(outputs.mul_(2), targets)


@wrong("loss", "the loss fails with KeyError: 'weight' (", "wrong_classes.py:")
class Raising(GoodLoss):
    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        return {}["weight"]


@wrong("loss", "fails with IndexError", "wrong_classes.py:")
class WrongTargets(GoodLoss):
    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        return -outputs.log_softmax(1)[targets[:, 0]].sum()


@wrong("loss", "it is called with (outputs_NK, targets), but too many positional arguments")
class OneArgument(GoodLoss):
    def __call__(self, outputs: Tensor) -> Any:  # type: ignore[override]
        return outputs.sum()


@wrong("loss", "initial_value is called with (num_outputs), but too many positional arguments")
class InitialWithout(GoodLoss):
    def initial_value(self) -> float:
        return 1.0


@wrong("loss", "initial_value() returns a float32 tensor of shape (); must be a finite number")
class InitialTensor(GoodLoss):
    def initial_value(self, num_outputs: int) -> Any:
        return torch.tensor(2.3)


@wrong("loss", "tasks is the str classification; must be a set of names")
class TasksText(GoodLoss):
    tasks = "classification"  # type: ignore[assignment]


@wrong("loss", "metrics is a list; must be a dict")
class MetricsList(GoodLoss):
    metrics = ["accuracy"]


@wrong("loss", "metrics['classification'] is the str accuracy; must be a list")
class MetricsText(GoodLoss):
    metrics = {"classification": "accuracy"}


@wrong("loss", "metric 'f1' does not exist")
class MetricUnknown(GoodLoss):
    metrics = {"classification": ("f1",)}


@wrong("loss", "metric '<lambda>': has no name", "define it with def, or set its __name__")
class MetricLambda(GoodLoss):
    metrics = {"classification": (lambda outputs, targets: outputs.sum(),)}


def top(outputs: Tensor, targets: Tensor, k: int = 2) -> Tensor:
    return (outputs.topk(k, 1).indices == targets[:, None]).sum()


@wrong("loss", "metric 'top': another metric is reported under this name")
class MetricTwice(GoodLoss):
    metrics = {"classification": (functools.partial(top, k=1), functools.partial(top, k=2))}


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.sum()


@wrong("loss", "metric 'loss': the loss itself is reported under this name")
class MetricLoss(GoodLoss):
    metrics = {"classification": (loss,)}


def mean_right(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


@wrong("loss", "loss: metric 'mean_right': it returns the same for every sample twice")
class MetricMean(GoodLoss):
    metrics = {"classification": (mean_right,)}


class Right:
    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        return (outputs.argmax(1) == targets).sum().item()


@wrong("loss", "loss: metric 'Right': it returns the int 2; must return a scalar tensor")
class MetricNumber(GoodLoss):
    metrics = {"classification": (Right(),)}


@wrong("loss", "loss._target_=", "returns the class GoodLoss, not an instance")
def loss_class() -> Any:
    return GoodLoss


@wrong("loss", "returns None")
def no_loss() -> Any:
    GoodLoss()


@wrong("loss", "LookupError: no table (", "wrong_classes.py:")
class LossInit(GoodLoss):
    def __init__(self) -> None:
        raise LookupError("no table")


@wrong("loss", "SystemExit: 3 (", "wrong_classes.py:")
class LossExits(GoodLoss):
    def __init__(self) -> None:
        raise SystemExit(3)


# --- models -----------------------------------------------------------------------------------------------


class GoodModel(nn.Module):
    def __init__(self, input_shape: tuple[int, int, int], num_outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], num_outputs)

    def forward(self, images: Tensor) -> Any:
        return self.layer(images.flatten(1))


@wrong("model", "returns tuple, a tensor is needed")
class ModelTuple(GoodModel):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images), None


@wrong("model", "returns outputs of shape (2, 9) for a batch of 2; must be (2, 10)")
class NineClasses(GoodModel):
    def __init__(self, input_shape: tuple[int, int, int], num_outputs: int) -> None:
        super().__init__(input_shape, num_outputs - 1)


@wrong("model", "cannot take images", "operand type(s) for +", "wrong_classes.py:")
class ModelRaises(GoodModel):
    def forward(self, images: Tensor) -> Any:
        return None + self.layer(images.flatten(1))  # type: ignore[operator]


@wrong("model", "AttributeError", "wrong_classes.py:")
class ModelInit(GoodModel):
    def __init__(self, input_shape: tuple[int, int, int], num_outputs: int) -> None:
        self.layers.append(1)  # type: ignore[operator]


@wrong("model", "in evaluation mode", "returns a tuple")
class TupleInEvaluation(GoodModel):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images) if self.training else (super().forward(images),)


@wrong("model", "has no parameter that requires a gradient")
class Frozen(GoodModel):
    def __init__(self, input_shape: tuple[int, int, int], num_outputs: int) -> None:
        super().__init__(input_shape, num_outputs)
        self.requires_grad_(False)


@wrong("model", "has no parameter that requires a gradient")
class NoParameters(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs

    def forward(self, images: Tensor) -> Any:
        return images.flatten(1)[:, : self.num_outputs]


@wrong("model", "keeps a Linear in 'layers', a plain list or dict", "nn.ModuleList")
class PlainList(GoodModel):
    def __init__(self, input_shape: tuple[int, int, int], num_outputs: int) -> None:
        super().__init__(input_shape, num_outputs)
        self.layers = [nn.Linear(num_outputs, num_outputs)]

    def forward(self, images: Tensor) -> Any:
        return self.layers[0](super().forward(images))


@wrong("model", "the outputs have no gradient with respect to any parameter")
class NoGradient(GoodModel):
    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        return super().forward(images)


@wrong("model", "returns a DataParallel around the model", "parallelism=ddp")
def wrapped(input_shape: tuple[int, int, int], num_outputs: int) -> Any:
    return nn.DataParallel(GoodModel(input_shape, num_outputs))


@wrong("model", "returns no torch.nn.Module, but tuple")
def with_transforms(input_shape: tuple[int, int, int], num_outputs: int) -> Any:
    return GoodModel(input_shape, num_outputs), None


@wrong("model", "returns the class GoodModel; must return an instance")
def model_class() -> Any:
    return GoodModel


@wrong("model", "returns an int64 tensor", "must be floating-point")
class Classes(GoodModel):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images).long()


@wrong("model", "max_unpooling2d", "deterministic=false allows it")
class Unpooled(GoodModel):
    def forward(self, images: Tensor) -> Any:
        pooled, indices = F.max_pool2d(images, 2, return_indices=True)
        return super().forward(F.max_unpool2d(pooled, indices, 2))


@wrong("model", "'second.weight' is still uninitialized after a call")
class LazyUnused(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.LazyLinear(num_outputs), nn.LazyLinear(3)

    def forward(self, images: Tensor) -> Any:
        return self.first(images.flatten(1))


@wrong("model", "forward() fails with not centred (", "wrong_classes.py:")
class ReadsValues(GoodModel):
    def forward(self, images: Tensor) -> Any:
        if float(images.sum()) >= 0:
            raise ValueError("not centred")
        return super().forward(images)


@wrong("initializer", "leaves 'output.weight' with values that are not finite")
class NanWeights:
    def __call__(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            nn.init.constant_(parameter, float("nan"))


@wrong("initializer", "returns another model")
class OtherModel:
    def __call__(self, model: nn.Module) -> Any:
        return nn.Linear(1, 1)


@wrong("initializer", "ZeroDivisionError", "wrong_classes.py:")
class InitializerRaises:
    def __call__(self, model: nn.Module) -> None:
        1 / 0  # noqa: B018


@wrong("initializer", "it is called with (model), but missing a required argument: 'layer'")
class InitializerOfTwo:
    def __call__(self, model: nn.Module, layer: nn.Module) -> None:
        pass


# --- optimizers -------------------------------------------------------------------------------------------


@wrong("optimizer", "step() fails with RuntimeError", "wrong_classes.py:")
class OptimizerRaises(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["params"][0] += 1


@wrong("optimizer", "there is no 'lr' in its parameter groups")
class WithoutRate(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {"rate": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


@wrong("optimizer", "after load_state_dict(), step() does something else")
class HiddenState(torch.optim.SGD):
    count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(parameter.grad * self.count)


@wrong("optimizer", "state_dict() returns what a checkpoint cannot hold (an object of random.Random)")
class ObjectsInState(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["generator"] = random.Random(0)


@wrong("optimizer", "load_state_dict() fails with", "wrong_classes.py:")
class NotLoadable(torch.optim.SGD):
    def state_dict(self) -> Any:  # type: ignore[override]
        return {"mine": 1}

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict(state["theirs"])


@wrong("optimizer", "AttributeError: 'dict' object", "wrong_classes.py:")
class OwnOptimizer:
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        self.params, self.lr = [parameter.requires_grad_() for parameter in params], lr
        self.param_groups = [{"params": self.params, "lr": lr}]

    def step(self, closure: Any = None) -> None:
        pass

    def state_dict(self) -> Any:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


# --- schedules --------------------------------------------------------------------------------------------


@wrong("schedule", "factor(0) returns a float32 tensor of shape (); must be a finite number >= 0")
class TensorFactor:
    def factor(self, step: int) -> Any:
        return torch.tensor(0.5)


@wrong("schedule", "factor(0) returns None")
class NoFactor:
    def factor(self, step: int) -> Any:
        pass


@wrong("schedule", "returns the float -0.", "must be a finite number >= 0")
class Negative(Schedule):
    def factor(self, step: int) -> float:
        return 1 - step / 100


@wrong("schedule", "returns another number if it is asked again")
class Counting(Schedule):
    calls = 0

    def factor(self, step: int) -> float:
        self.calls += 1
        return 1 / self.calls


@wrong("schedule", "factor() fails with ZeroDivisionError", "wrong_classes.py:")
class FactorRaises:
    def factor(self, step: int) -> float:
        return 1 / step


@wrong("schedule", "observe() fails with KeyError: 'val/f1'", "wrong_classes.py:")
class ObservesOther(Schedule):
    def factor(self, step: int) -> float:
        return 1.0

    def observe(self, metrics: Any) -> None:
        metrics["val/f1"]


@wrong("schedule", "after load_state_dict(), factor() differs")
class Forgetful(Schedule):
    seen = 0

    def factor(self, step: int) -> float:
        return 0.5**self.seen

    def observe(self, metrics: Any) -> None:
        self.seen += 1


@wrong("schedule", "its attribute warmup is str; must be a whole number, or have another name")
class WarmupText:
    warmup = "5ep"

    def factor(self, step: int) -> float:
        return 1.0


@wrong("schedule", "factor is called with (step), but missing a required argument: 'optimizer'")
class TwoArguments:
    def factor(self, step: int, optimizer: Any) -> float:
        return 1.0


# --- data and samplers ------------------------------------------------------------------------------------


class GoodData:
    given: dict[str, Any] = {}

    def facts(self) -> Any:
        words = {"task": "classification", "input_shape": (1, 8, 8), "num_outputs": 10}
        return DataFacts(**(words | {"num_train": 64, "num_val": 8, "num_test": 8} | self.given))

    def load(self) -> Any:
        return Splits(*(self.part(count) for count in (64, 8, 8)))

    def part(self, count: int) -> Any:
        return Part(torch.zeros(count, 1, 8, 8, dtype=torch.uint8), torch.arange(count) % 10)


@wrong("data", "facts() returns a dict; must return a DataFacts")
class FactsDict(GoodData):
    def facts(self) -> Any:
        return {"num_outputs": 10}


@wrong("data", "facts() says task=classify; must be classification or regression")
class OtherTask(GoodData):
    given = {"task": "classify"}


@wrong("data", "facts() says input_shape=(8, 8); must be three whole numbers")
class TwoSizes(GoodData):
    given = {"input_shape": (8, 8)}


@wrong("data", "facts() says num_train=64.0; must be a whole number")
class HalfSamples(GoodData):
    given = {"num_train": 64.0}


@wrong("data", "facts() gives 2 class_names for 10 outputs")
class TwoNames(GoodData):
    given = {"class_names": ("a", "b")}


@wrong("data", "facts() fails with KeyError: 'root'", "wrong_classes.py:")
class FactsRaise(GoodData):
    def facts(self) -> Any:
        return {}["root"]


@wrong("data", "its attribute storage is str; must be a method, or have another name")
class OwnStorage(GoodData):
    storage = "/data"


@wrong("data", "it has no facts, load")
def loader() -> Any:
    return torch.utils.data.DataLoader([1])  # type: ignore[arg-type, unused-ignore]


@wrong("sampler", "order() returns indices from 1 to 8; must return 8 indices from 0 to 7")
class FromOne(Sampler):
    def order(self, targets_N: Tensor, generator: torch.Generator) -> Any:
        return torch.arange(1, len(targets_N) + 1)


@wrong("sampler", "order() returns a list")
class OrderList(Sampler):
    def order(self, targets_N: Tensor, generator: torch.Generator) -> Any:
        return list(range(len(targets_N)))


@wrong("sampler", "order() returns an int32 tensor")
class Int32(Sampler):
    def order(self, targets_N: Tensor, generator: torch.Generator) -> Any:
        return torch.arange(len(targets_N), dtype=torch.int32)


@wrong("sampler", "order() returns 4 indices for 8 samples")
class Half(Sampler):
    def order(self, targets_N: Tensor, generator: torch.Generator) -> Any:
        return torch.arange(len(targets_N) // 2)


@wrong("sampler", "order() repeats samples; must use each sample once, or set repeats = True")
class Repeating(Sampler):
    def order(self, targets_N: Tensor, generator: torch.Generator) -> Any:
        return torch.zeros(len(targets_N), dtype=torch.int64)


@wrong("sampler", "order() returns another order for the same generator")
class GlobalRandom(Sampler):
    def order(self, targets_N: Tensor, generator: torch.Generator) -> Any:
        return torch.randperm(len(targets_N))


@wrong("sampler", "order() fails with AttributeError", "wrong_classes.py:")
class OrderRaises(Sampler):
    def order(self, targets_N: Tensor, generator: torch.Generator) -> Any:
        return targets_N.permutation()  # type: ignore[operator]


# --- preprocessing and augmentation -----------------------------------------------------------------------


class GoodPreprocessing(nn.Module):
    def fit(self, images: Any) -> None:
        pass

    def forward(self, images: Tensor) -> Any:
        return images.float() / 255


@wrong("preprocessing", "forward() returns a float64 tensor", "must return a float32 tensor")
class Double(GoodPreprocessing):
    def forward(self, images: Tensor) -> Any:
        return images.double()


@wrong("preprocessing", "forward() returns a float32 tensor of shape (4, 64)")
class Flat(GoodPreprocessing):
    def forward(self, images: Tensor) -> Any:
        return images.float().flatten(1)


@wrong("preprocessing", "after load_state_dict(), forward() returns other values")
class NoBuffer(GoodPreprocessing):
    mean: Any = 0.0

    def fit(self, images: Any) -> None:
        self.mean = images[:].float().mean()

    def forward(self, images: Tensor) -> Any:
        return images.float() - self.mean


@wrong("preprocessing", "forward() fails with RuntimeError", "wrong_classes.py:")
class ThreeChannels(GoodPreprocessing):
    def forward(self, images: Tensor) -> Any:
        return images.float().view(len(images), 3, 8, 8)


@wrong("augmentation", "it returns a float32 tensor of shape (4, 1, 8, 4); must return images of shape (4, 1, 8, 8)")
class Narrow:
    def draw(self, num_samples: int, input_shape: Any, generator: torch.Generator) -> Any:
        return {"by": torch.rand(num_samples, generator=generator)}

    def __call__(self, images: Tensor, rows: Any) -> Any:
        return images[..., ::2]


@wrong("augmentation", "augmentation.mine: it returns a float64 tensor")
class DoublePixels(Narrow):
    def __call__(self, images: Tensor, rows: Any) -> Any:
        return images.double()


@wrong("augmentation", "it returns values such as 0.", "must return whole numbers from 0 to 255")
class Scaled(Narrow):
    def __call__(self, images: Tensor, rows: Any) -> Any:
        return images / 255


@wrong("augmentation", "draw()['by'] differs for the same generator")
class DrawsElsewhere(Narrow):
    def draw(self, num_samples: int, input_shape: Any, generator: torch.Generator) -> Any:
        return {"by": torch.rand(num_samples)}


@wrong("augmentation", "draw()['by'] is a float32 tensor of shape () for 4 samples", "one row per sample")
class OneRow(Narrow):
    def draw(self, num_samples: int, input_shape: Any, generator: torch.Generator) -> Any:
        return {"by": torch.rand((), generator=generator)}


@wrong("augmentation", "it fails with RuntimeError", "wrong_classes.py:")
class OperationRaises(Operation):
    def draw(self, num_samples: int, input_shape: Any, generator: torch.Generator) -> Any:
        return {"by": torch.rand(num_samples, generator=generator)}

    def __call__(self, images_NCHW: Tensor, rows: Any) -> Any:
        return images_NCHW + rows["by"]


# --- regularizers -----------------------------------------------------------------------------------------


class GoodRegularizer(Regularizer):
    def coefficients_of(self, names: Any, excluded: Any) -> dict[str, float]:
        return dict.fromkeys(names, 0.1)

    def attach(self, weights: Any, excluded: Any) -> None:
        self.weights = list(weights.values())

    def terms(self) -> Any:
        return [(weight, 0.1 * weight.square().sum()) for weight in self.weights]

    def add_gradient(self, scale: Tensor | None) -> None:
        for weight in self.weights:
            weight.grad += 0.2 * weight.detach()


@wrong("regularizer", "value() returns a float32 tensor of shape (2,); must return a scalar tensor")
class VectorPenalty(GoodRegularizer):
    def value(self) -> Any:
        return torch.stack([term for _, term in self.terms()])


@wrong(
    "regularizer", "add_gradient() adds another gradient to 'weight' than that of value(); must be the same function"
)
class OtherGradient(GoodRegularizer):
    def add_gradient(self, scale: Tensor | None) -> None:
        pass


# --- averaging --------------------------------------------------------------------------------------------


class GoodAveraging(Averaging):
    """The mean of every other step."""

    def share(self, step: int, count: int) -> Any:
        return 1 / (count + 1) if step % 2 == 0 else None


@wrong("averaging", "share(1, 0) returns the int 2; must return a number from 0 to 1, or None")
class LargeShare(GoodAveraging):
    def share(self, step: int, count: int) -> Any:
        return 2


@wrong("averaging", "share(1, 0) returns", "tensor", "must return a number from 0 to 1, or None")
class TensorShare(GoodAveraging):
    def share(self, step: int, count: int) -> Any:
        return torch.tensor(0.5)


@wrong("averaging", "evaluation_weights() yields", "must yield each parameter with its average")
class FlatAverages(GoodAveraging):
    def evaluation_weights(self) -> Any:
        return ((parameter, average.flatten()) for parameter, average in super().evaluation_weights())


@wrong("averaging", "after load_state_dict(), share() differs; must keep all its state in state_dict()")
class ForgetfulAveraging(GoodAveraging):
    seen = 0

    def stepped(self, moments: Any) -> None:
        super().stepped(moments)
        self.seen += 1

    def share(self, step: int, count: int) -> Any:
        return 1 / (self.seen + 1)


@wrong("averaging", "stepped() fails with ZeroDivisionError", "wrong_classes.py")
class DividesByZero(GoodAveraging):
    def stepped(self, moments: Any) -> None:
        1 / 0  # noqa: B018


# --- what shows only during a run -------------------------------------------------------------------------

LATE: list[tuple[str, Any, tuple[str, ...]]] = []


def late(group: str, *words: str) -> Any:
    """Like `wrong`, for mistakes that no call before the run can show."""

    def keep(item: Any) -> Any:
        LATE.append((group, item, words))
        return item

    return keep


@late("sampler", "sampler: in epoch 1: order() returns indices from 1 to 1437")
class SecondEpoch(Sampler):
    epochs = 0

    def order(self, targets_N: Tensor, generator: torch.Generator) -> Any:
        self.epochs += len(targets_N) > 1000
        return torch.randperm(len(targets_N), generator=generator) + max(0, self.epochs - 1)


@late("schedule", "factor(27) returns the float nan; must be a finite number >= 0")
class LaterNan(Schedule):
    def factor(self, step: int) -> Any:
        return float("nan") if step == 27 else 1.0


@late("preprocessing", "preprocessing: forward() returns a float32 tensor of shape", "must return a float32 tensor")
class LargeBatches(GoodPreprocessing):
    def forward(self, images: Tensor) -> Any:
        return images.float() if len(images) < 10 else images.float().flatten(2)


@late("augmentation", "augmentation: it returns a uint8 tensor of shape (1437, 1, 8, 4)")
class LargeNarrow(Narrow):
    def __call__(self, images: Tensor, rows: Any) -> Any:
        return images if len(images) < 10 else images[..., ::2].to(torch.uint8)


@late("diagnostics", "diagnostics: at_log() returns 'lr', which is a metric of Gearshift's")
class LaterName:
    calls = 0

    def at_log(self, grad_norm: float | None) -> Any:
        self.calls += 1
        return {"lr": 0.0} if self.calls > 3 else {}

    def at_start(self, initial_loss: float, untrained_loss: float | None) -> Any:
        return {}, None


class Item7000:
    classes = ("a", "b")

    def __len__(self) -> int:
        return 7002

    def __getitem__(self, index: int) -> Any:
        return np.zeros((4, 4), dtype=np.uint8), [index % 2][index // 7000]


# --- diagnostics ------------------------------------------------------------------------------------------


class GoodDiagnostics:
    def at_log(self, grad_norm: float | None) -> Any:
        return {}

    def at_start(self, initial_loss: float, untrained_loss: float | None) -> Any:
        return {}, None


@wrong("diagnostics", "at_log() fails with TypeError", "wrong_classes.py:")
class NormIsNone(GoodDiagnostics):
    def at_log(self, grad_norm: float | None) -> Any:
        return {"diagnostics/square": grad_norm**2}  # type: ignore[operator]


@wrong("diagnostics", "at_log() returns 'train/loss', which is a metric of Gearshift's")
class OurName(GoodDiagnostics):
    def at_log(self, grad_norm: float | None) -> Any:
        return {"train/loss": 0.0}


@wrong("diagnostics", "at_log()['diagnostics/norm'] is a float32 tensor of shape (); must be a number")
class TensorMetric(GoodDiagnostics):
    def at_log(self, grad_norm: float | None) -> Any:
        return {"diagnostics/norm": torch.tensor(1.0)}


@wrong("diagnostics", "at_start() returns a dict; must return (metrics, a warning or None)")
class NoWarning(GoodDiagnostics):
    def at_start(self, initial_loss: float, untrained_loss: float | None) -> Any:
        return {}


@wrong("diagnostics", "at_start is called with (initial_loss, untrained_loss), but too many positional arguments")
class AtStartOne(GoodDiagnostics):
    def at_start(self, initial_loss: float) -> Any:  # type: ignore[override]
        return {}, None
