"""Model parallelism: layers are split over the ranks of a group, which all see the same samples."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from trainer import contracts
from trainer.base.checks import check_whole
from trainer.base.config import Config
from trainer.base.snapshot import Copied
from trainer.base.stateful import State
from trainer.parallelism import cost
from trainer.parallelism.collect import put_together
from trainer.parallelism.ddp import DataParallel
from trainer.parallelism.exchange import Group, own_group
from trainer.parallelism.named_state import OwnPart, load_named_state, named_state
from trainer.parallelism.sizes import Cost, Step
from trainer.parallelism.split_layers import Member, check_split, part_of, split_layers

WITH_A_PLAN = (
    "linear, mlp, lenet, alexnet, alexnet_two_column, vgg, inception, resnet, wide_resnet, mobilenet_like, vit, "
    "locally_connected and block_diagonal have one"
)


class SplitModel(DataParallel):
    """Base of the strategies that split layers according to the model's `tensor_plan`.

    Parameters are plain tensors, this rank's shards. State dicts are gathered and split along the same axes, so that
    they can be loaded by any other strategy.
    """

    replicates = False
    preload: tuple[str, ...] = ()
    cuts_weights = True
    differentiates = False

    def __init__(
        self,
        devices: int | str = "auto",
        batch_norm: Literal["synchronized", "plain"] = "synchronized",
        max_restarts: int = 0,
        timeout: float = 300.0,
    ) -> None:
        super().__init__(devices, batch_norm, max_restarts=max_restarts, timeout=timeout)
        self._member = Member(None, 0, 1)
        self._axes: dict[str, int] = {}
        self._parts: list[nn.Parameter] = []

    @property
    def tensor_size(self) -> int:
        """Number of ranks over which a layer is split."""
        return self.world_size

    def tensor_plan(self, config: Config, model: nn.Module) -> Mapping[str, str]:
        """Return how to split each module, by name. Raises ValueError for models without a plan."""
        plan = contracts.tensor_plan(model)
        if not plan:
            name = config["choices"].get("model", "")
            raise ValueError(f"parallelism: model={name} ({type(model).__name__}) has no tensor plan; {WITH_A_PLAN}")
        return plan

    def validate(self, config: Config, model: nn.Module) -> None:
        super().validate(config, model)
        check_split(self.tensor_plan(config, model), model, self.tensor_size, self.asked())

    def cost(self, step: Step, model: nn.Module) -> Cost | None:
        return cost.hybrid(step, self.data_size, self.tensor_size, self.is_synchronized)

    def asked(self) -> str:
        """Return `key=value` that determines the number of ranks per layer, for error messages."""
        machines = self.world_size // int(self.devices)
        return f"parallelism.devices={self.devices}" + (f" on {machines} machines" if machines > 1 else "")

    def split(self, model: nn.Module, plan: Mapping[str, str]) -> None:
        """Replace the layers in the plan by this rank's shards."""
        self._axes = split_layers(model, plan, self._member)
        self._parts = [value for name, value in model.named_parameters() if name in self._axes]

    def grad_norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """Sum the squares of shards over the group; gradients that are whole on every rank count once."""
        split = {id(parameter.grad) for parameter in self._parts}
        parts: list[Tensor] = []
        wholes: list[Tensor] = []
        for gradient in gradients:
            (parts if id(gradient) in split else wholes).append(gradient)
        # every rank contributes 1/n of the whole gradients, so that all get a bit-identical result
        total = sum(_square(some) / count for some, count in ((parts, 1), (wholes, self._member.size)) if some)
        assert isinstance(total, Tensor)
        dist.all_reduce(total, group=self._member.group)
        return total.sqrt()

    def sum_over_weights(self, terms: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Count each shard once in each group, and weights that are whole on every rank once."""
        split = {id(weight) for weight in self._parts}
        own = sum(term.item() / (1 if id(weight) in split else self._member.size) for weight, term in terms)
        return sum(self.gather(own)) * self._member.size / self.world_size

    def state_dict(self, model: nn.Module) -> State:
        if self.rank >= self._member.size:  # has the same shards as a rank of the main one's group
            return {}
        state = {name: self._whole(name, value) for name, value in model.state_dict().items()}
        return Copied(state) if self.is_main else {}

    def load_state_dict(self, model: nn.Module, state: State) -> None:
        model.load_state_dict({name: self._local(name, value) for name, value in state.items()})

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> State:
        if self.rank >= self._member.size:
            return {}
        state = named_state(model, optimizer, self._whole, copies=self.is_main)
        return state if self.is_main else {}

    def load_optimizer_state(self, model: nn.Module, optimizer: Optimizer, state: State) -> None:
        load_named_state(model, optimizer, state, self._local)

    def _whole(self, name: str, part: Tensor) -> Tensor:
        if name not in self._axes:
            return part.detach().to("cpu", copy=True) if self.is_main else part
        axis = self._axes[name]
        return put_together(part, axis, [part.size(axis)] * self._member.size, self._control)

    def part_to_load(self, name: str, whole: Tensor, model: nn.Module) -> Tensor | OwnPart:
        return OwnPart(self._local(name, whole)) if name in self._axes else whole

    def _local(self, name: str, whole: Tensor | OwnPart) -> Tensor:
        if isinstance(whole, OwnPart):
            return whole.tensor
        return part_of(whole, self._axes[name], self._member) if name in self._axes else whole

    def close(self) -> None:
        self._member, self._parts = Member(None, 0, 1), []
        super().close()


def _square(gradients: list[Tensor]) -> Tensor:
    """Return the sum of the squares of all elements."""
    return torch.stack(torch._foreach_norm(gradients)).square().sum()


class HybridParallel(SplitModel):
    """Layers are split over groups of `tensor` neighbouring ranks; each group computes one shard of the batch.

    The ranks form a 2-D mesh with the axes "data" and "tensor". A layer with N filters (outputs) becomes N/t filters
    on each of t ranks, which all convolve the whole input; if the next layer takes the split result, its outputs are
    summed. Gradients are summed over the data axis. Source: CUHK ELEG 5491, "Model parallelism", "Hybrid data and
    model parallelism" (its figure: `devices` 4, `tensor` 2).

    `batch_norm` as in DataParallel, over the data axis. Raises ValueError unless `tensor` is at least 1 and
    divides `devices` and the layers of the model.
    """

    preload: tuple[str, ...] = DataParallel.preload

    default_devices = 4

    def __init__(
        self,
        tensor: int = 2,
        devices: int | str = "auto",
        batch_norm: Literal["synchronized", "plain"] = "synchronized",
        max_restarts: int = 0,
        timeout: float = 300.0,
    ) -> None:
        super().__init__(devices, batch_norm, max_restarts, timeout)
        check_whole("tensor", tensor, 1)
        self.tensor = tensor
        self._mesh: DeviceMesh | None = None

    @property
    def tensor_size(self) -> int:
        return self.tensor

    def data_shards(self) -> int:
        if self.world_size % self.tensor_size:
            raise ValueError(f"{self.asked()}: must divide {SplitModel.asked(self)}")
        return self.world_size // self.tensor_size

    def asked(self) -> str:
        return f"parallelism.tensor={self.tensor}"

    def connect(self, device: torch.device) -> None:
        super().connect(device)
        ranks = torch.arange(self.world_size).view(-1, self.tensor_size)
        # created individually to set the timeout, which is half an hour for groups of init_device_mesh
        groups = [
            own_group(dist.new_subgroups_by_enumeration(lists, timedelta(seconds=self.timeout))[0])
            for lists in (ranks.T.tolist(), ranks.tolist())
        ]
        self._mesh = DeviceMesh.from_group(groups, device.type, ranks, mesh_dim_names=("data", "tensor"))
        self.data_rank = self._mesh.get_local_rank("data")
        self._member = Member(self._mesh.get_group("tensor"), self._mesh.get_local_rank("tensor"), self.tensor_size)

    @property
    def data_group(self) -> Group:
        return None if self._mesh is None else self._mesh.get_group("data")

    def apply(self, model: nn.Module) -> nn.Module:
        self.split(model, contracts.tensor_plan(model))
        return model if self.data_size == 1 else super().apply(model)

    def accumulating(self) -> AbstractContextManager[None]:
        return nullcontext() if self.data_size == 1 else super().accumulating()

    def close(self) -> None:
        self._mesh = None
        super().close()


class TensorParallel(HybridParallel):
    """Layers are split over all ranks, which all see the whole batch (CUHK ELEG 5491, "Model parallelism")."""

    preload: tuple[str, ...] = ()

    default_devices = 2

    def __init__(self, devices: int | str = "auto", max_restarts: int = 0, timeout: float = 300.0) -> None:
        super().__init__(1, devices, max_restarts=max_restarts, timeout=timeout)

    @property
    def tensor_size(self) -> int:
        return self.world_size

    def asked(self) -> str:
        return SplitModel.asked(self)


class TwoColumn(HybridParallel):
    """Two ranks per model, each with one column of it; the columns exchange data where the model's plan says so (CUHK
    ELEG 5491, "Model parallelism"; Krizhevsky et al. 2012). Further ranks add data parallelism: 4 ranks split the
    batch in two.

    Raises ValueError for models without columns.
    """

    default_devices = 2

    def __init__(
        self,
        devices: int | str = "auto",
        batch_norm: Literal["synchronized", "plain"] = "synchronized",
        max_restarts: int = 0,
        timeout: float = 300.0,
    ) -> None:
        super().__init__(2, devices, batch_norm, max_restarts, timeout)

    def asked(self) -> str:
        return "parallelism=two_column (2 ranks a model)"

    def tensor_plan(self, config: Config, model: nn.Module) -> Mapping[str, str]:
        plan = contracts.tensor_plan(model)
        if "group" not in plan.values():
            name = config["choices"].get("model", "")
            raise ValueError(
                f"parallelism=two_column: model={name} ({type(model).__name__}) has no columns; alexnet_two_column has"
            )
        return plan
