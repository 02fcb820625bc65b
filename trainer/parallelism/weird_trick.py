"""One weird trick: data parallelism for convolutions, model parallelism for fully connected layers."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer import contracts
from trainer.base.checks import refuse
from trainer.base.config import Config
from trainer.parallelism import cost
from trainer.parallelism.ddp import DataParallel
from trainer.parallelism.exchange import Gather, Keep, gathered, own_group
from trainer.parallelism.sizes import Cost, Step
from trainer.parallelism.split_layers import Member
from trainer.parallelism.tensor import SplitModel

WITH_DENSE_LAYERS = (
    "linear, mlp, lenet, alexnet, alexnet_two_column, vgg, inception, locally_connected and block_diagonal"
)
# allowed kinds of the first fully connected layer: its input is whole already, so `cross` need not gather it
_AT_THE_BORDER = {"column": "column", "cross": "column", "gather": "gather"}


class WeirdTrick(SplitModel):
    """Data parallelism for convolutions, tensor parallelism for fully connected layers.

    Convolutions have few weights and most of the arithmetic: every rank computes all of them on its shard of the
    batch, and their gradients are summed. Fully connected layers have most weights and little arithmetic: they are
    split over the ranks, each of which computes the whole batch.

    At the border, the model's first fully connected layer, the shards of the batch are gathered; in the backward
    pass, the gradients of the features are summed over ranks, and each rank keeps its shard. Each rank also keeps
    the outputs of its own samples. Source: Optimization (Part 2), "One weird trick"; Krizhevsky 2014, section 4,
    scheme (a).

    `batch_norm` as in DataParallel, for the convolutional part. Raises ValueError for models whose fully connected
    layers have no tensor plan, and for numbers of ranks that do not divide them.
    """

    def __init__(
        self,
        devices: int | str = "auto",
        batch_norm: Literal["synchronized", "plain"] = "synchronized",
        max_restarts: int = 0,
        timeout: float = 300.0,
    ) -> None:
        super().__init__(devices, batch_norm, max_restarts, timeout)
        self._sizes: list[int] = []

    def tensor_plan(self, config: Config, model: nn.Module) -> Mapping[str, str]:
        super().tensor_plan(config, model)
        plan = dense_plan(model)
        if not plan:
            raise ValueError(
                f"parallelism=weird_trick: model={config['choices'].get('model', '')} ({type(model).__name__}) has no "
                f"fully connected layers that can be split; {WITH_DENSE_LAYERS} have some"
            )
        if contracts.auxiliary_weights(model):  # after the output, for this rank's shard of the batch
            refuse("parallelism", "weird_trick", "another strategy for a model with auxiliary classifiers, such as ddp")
        return plan

    def cost(self, step: Step, model: nn.Module) -> Cost | None:
        return cost.weird_trick(step, self.world_size, self.is_synchronized)

    def connect(self, device: torch.device) -> None:
        super().connect(device)
        # a separate group, so that features at the border do not queue behind gradients
        group = own_group(dist.new_group(timeout=timedelta(seconds=self.timeout)))
        self._member = Member(group, self.rank, self.world_size)

    def apply(self, model: nn.Module) -> nn.Module:
        self.split(model, dense_plan(model))
        dense = dense_children(model)
        self._gather_before(model.get_submodule(dense[0]))
        self._keep_after(model.get_submodule(dense[-1]))
        # DDP ignores fully connected layers: each rank has computed their gradients for the whole batch
        ours = [name for name, _ in model.named_parameters() if name.partition(".")[0] in dense]
        if len(ours) == len(list(model.parameters())):
            return model
        model._ddp_params_and_buffers_to_ignore = ours  # type: ignore[assignment]
        return DataParallel.apply(self, model)

    def use_global_batch(self, model: nn.Module, synchronize: bool = True) -> None:
        """Prepare only the convolutional part: dropout and batch norm after it see the whole batch anyway."""
        dense = dense_children(model)
        shared = nn.ModuleDict({name: child for name, child in model.named_children() if name not in dense})
        super().use_global_batch(shared, synchronize)
        for name, child in shared.items():
            setattr(model, name, child)

    def accumulating(self) -> AbstractContextManager[None]:
        return nullcontext() if self._wrapped is None else super().accumulating()

    def _gather_before(self, layer: nn.Module) -> None:
        inner: Callable[[Tensor], Tensor] = layer.forward

        def forward(x: Tensor) -> Tensor:
            self._sizes = self._shard_sizes(x.size(0))
            # not partial: the layer itself sums the gradients of its inputs
            return inner(Gather.apply(x, self._member.group, 0, self._sizes, False))

        layer.forward = forward

    def _keep_after(self, layer: nn.Module) -> None:
        inner: Callable[[Tensor], Tensor] = layer.forward

        def forward(x: Tensor) -> Tensor:
            outputs: Tensor = Keep.apply(inner(x), self._member.group, 0, self._sizes)
            return outputs

        layer.forward = forward

    def _shard_sizes(self, size: int) -> list[int]:
        """Return the number of samples on each rank, which no other information determines in an evaluation."""
        sizes: list[int] = gathered(torch.tensor([size]), self._control, 0, [1] * self.world_size).tolist()
        return sizes


def dense_children(model: nn.Module) -> list[str]:
    """Return the names of the model's children from its first fully connected layer on; empty if there is none."""
    names = [name for name, _ in model.named_children()]
    first = next((i for i, child in enumerate(model.children()) if isinstance(child, nn.Linear)), len(names))
    return names[first:]


def dense_plan(model: nn.Module) -> dict[str, str]:
    """Return the tensor plan of the fully connected part, whose input is whole; empty if it cannot be split."""
    dense = dense_children(model)
    plan = contracts.tensor_plan(model)
    if not dense or plan.get(dense[0]) not in _AT_THE_BORDER:
        return {}
    rest = {name: kind for name, kind in plan.items() if name.partition(".")[0] in dense}
    return rest | {dense[0]: _AT_THE_BORDER[plan[dense[0]]]}
