"""Fully sharded data parallelism: each rank keeps a shard of every weight, its gradient and its optimizer state."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from trainer.base.checks import check_one_of, check_that, check_whole
from trainer.base.config import Config
from trainer.base.snapshot import Copied, snapshot
from trainer.base.stateful import State
from trainer.parallelism import cost
from trainer.parallelism.collect import put_together
from trainer.parallelism.exchange import Group
from trainer.parallelism.named_state import OwnPart, load_named_state, named_state
from trainer.parallelism.ranks import Ranks
from trainer.parallelism.sizes import Cost, Step
from trainer.parallelism.strategy import Evaluated, Forward, Loss, MicroBatch

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # None: that of the weights
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class FullySharded(Ranks):
    """Data parallelism in which a rank keeps 1 / ranks of the weights, gradients and optimizer state.

    A layer's weights are gathered just before it is computed and freed afterwards. Its gradient, g = sum over all
    samples of dl/dw / N, is reduce-scattered, and every rank steps its own shard. Batch norm is synchronized.
    Supports element-wise optimizers: torch's, and classes with `element_wise = True`. Raises ValueError for others.
    Weights are gathered in `param_dtype`, which must be fp32 or that of `precision`; those of norm layers always in
    fp32. Gradients are summed over ranks in `reduce_dtype`. A rank keeps both in fp32. Raises ValueError for other
    values.
    With `shard_size`, that many consecutive ranks hold one copy of the model, and gradients are also summed over the
    copies (HSDP): within a machine weights are gathered, between machines gradients are exchanged once a step.
    Sources: CUHK ELEG 5491, "Data Parallelism"; Rajbhandari et al. 2020 (ZeRO, stage 3).
    """

    preload: tuple[str, ...] = ("torch._dynamo",)  # by fully_shard
    cuts_weights = True

    def __init__(
        self,
        devices: int | str = "auto",
        param_dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
        reduce_dtype: Literal["fp32", "bf16"] = "fp32",
        shard_size: int | None = None,
        max_restarts: int = 0,
        timeout: float = 300.0,
    ) -> None:
        super().__init__(devices, max_restarts, timeout)
        check_one_of("param_dtype", param_dtype, ("fp32", "bf16", "fp16"))
        check_one_of("reduce_dtype", reduce_dtype, ("fp32", "bf16"))
        if shard_size is not None:
            check_whole("shard_size", shard_size, 1)
        self.param_dtype, self.reduce_dtype = param_dtype, reduce_dtype
        self.shard_size = shard_size
        self._model: nn.Module | None = None
        self._shards: Group = None  # the ranks that hold one copy of the model together
        self._parts: dict[str, nn.Parameter] = {}  # a rank's part of each parameter, as a plain tensor

    def data_shards(self) -> int:
        must = f"a divisor of {self.world_size}, the number of ranks"
        check_that(self.world_size % self._per_copy == 0, "parallelism.shard_size", self.shard_size, must)
        return super().data_shards()

    @property
    def _per_copy(self) -> int:
        """Number of consecutive ranks that hold one copy of the model together."""
        return self.world_size if self.shard_size is None else self.shard_size

    def _mesh(self, device_type: str) -> DeviceMesh:
        if self._per_copy == self.world_size:
            return init_device_mesh(device_type, (self.world_size,), mesh_dim_names=("shard",))
        sizes = self.world_size // self._per_copy, self._per_copy
        return init_device_mesh(device_type, sizes, mesh_dim_names=("replicate", "shard"))

    def validate(self, config: Config, model: nn.Module) -> None:
        super().validate(config, model)
        precision = config["precision"]
        must = f"fp32, or as precision={precision}, in which layers compute"
        check_that(self.param_dtype in ("fp32", precision), "parallelism.param_dtype", self.param_dtype, must)

    def notices(self, model: nn.Module) -> list[str]:
        if self.reduce_dtype == "fp32" or self.world_size == 1:
            return []
        return ["reduce_dtype=bf16: gradients are rounded to 8 bits and summed in bf16, not as on one device"]

    def cost(self, step: Step, model: nn.Module) -> Cost | None:
        return cost.fully_sharded(
            step,
            self.world_size,
            self._per_copy,
            param_bytes=_bytes_in(self.param_dtype, step.value_bytes),
            reduce_bytes=_bytes_in(self.reduce_dtype, step.value_bytes),
        )

    def apply(self, model: nn.Module) -> nn.Module:
        self.use_global_batch(model)
        mesh = self._mesh(next(model.parameters()).device.type)
        self._shards = mesh.get_group("shard")
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()  # sharded by rows, so weights cannot be channels-last
        param_dtype, reduce_dtype = _DTYPES[self.param_dtype], _DTYPES[self.reduce_dtype]
        # torch's default for `reduce_dtype` is `param_dtype`; autocast converts the inputs of layers
        low = MixedPrecisionPolicy(
            param_dtype, reduce_dtype or (param_dtype and torch.float32), cast_forward_inputs=False
        )
        norms = MixedPrecisionPolicy(None, reduce_dtype, cast_forward_inputs=False)
        units: list[nn.Module] = [] if param_dtype is None else [m for m in model.modules() if isinstance(m, _NORMS)]
        for unit in [*units, *(unit for unit in _units(model) if unit not in units), model]:
            policy = norms if unit in units else low
            sharded = fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
            # sum instead of torch's mean; without the second line torch uses a scaled sum, which gloo does not have
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)
        self._model = model
        return model

    def wrap_optimizer(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        """Make it step this rank's shards as plain tensors, which fused kernels and `found_inf` require."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for group in optimizer.param_groups:
            for index, parameter in enumerate(group["params"]):
                part = nn.Parameter(_local(parameter))
                self._parts[names[id(parameter)]] = group["params"][index] = part
        return optimizer

    def backward(self, forward: Forward, loss: Loss, batch: MicroBatch, weight: Tensor) -> Evaluated:
        seen = super().backward(forward, loss, batch, weight)
        assert self._model is not None
        for name, parameter in self._model.named_parameters():
            if name in self._parts:
                self._parts[name].grad = None if parameter.grad is None else _local(parameter.grad)
        return seen

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        assert isinstance(self._model, FSDPModule)
        self._model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._model.set_requires_gradient_sync(True)

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        # buffers for gathered weights are reused: training cannot use any that were created in inference mode
        with torch.inference_mode(False), torch.no_grad():
            yield

    def grad_norm(self, gradients: Iterable[Tensor]) -> Tensor:
        squares = super().grad_norm(gradients).square()
        if self._per_copy > 1:
            dist.all_reduce(squares, group=self._shards)  # not over copies, which have the same gradient
        return squares.sqrt()

    def sum_over_weights(self, terms: Iterable[tuple[Tensor, Tensor]]) -> float:
        return sum(self.gather(super().sum_over_weights(terms))[: self._per_copy])

    def state_dict(self, model: nn.Module) -> State:
        state = {
            name: self._whole(value, _local(value)) if isinstance(value, DTensor) else snapshot(value)
            for name, value in model.state_dict().items()
        }
        return Copied(state) if self.is_main else {}

    def load_state_dict(self, model: nn.Module, state: State) -> None:
        now = model.state_dict()
        model.load_state_dict({name: _laid_out_as(now.get(name), value) for name, value in state.items()})

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> State:
        parameters = dict(model.named_parameters())

        def whole(name: str, part: Tensor) -> Tensor:
            return self._whole(parameters[name], part)

        state = named_state(_Named(self._parts), optimizer, whole, copies=self.is_main)
        return state if self.is_main else {}

    def _whole(self, like: Tensor, part: Tensor) -> Tensor:
        """Put together the parts of a tensor that is sharded like `like`, by rows, on the main rank.

        They are those of the first copy of the model.
        """
        length = -(-like.size(0) // self._per_copy)  # rows are divided as by `torch.chunk`
        sizes = [max(0, min(length, like.size(0) - rank * length)) for rank in range(self._per_copy)]
        return put_together(part, 0, sizes, self._control)

    def load_optimizer_state(self, model: nn.Module, optimizer: Optimizer, state: State) -> None:
        parameters = dict(model.named_parameters())

        def local(name: str, value: Tensor | OwnPart) -> Tensor:
            part = _local(_laid_out_as(parameters[name], value))
            return part if isinstance(value, OwnPart) else part.clone()  # a view would keep the whole

        load_named_state(_Named(self._parts), optimizer, state, local)

    def part_to_load(self, name: str, whole: Tensor, model: nn.Module) -> Tensor | OwnPart:
        like = model.state_dict().get(name)
        if not isinstance(like, DTensor) or like.shape != whole.shape:
            return whole
        return OwnPart(_local(_laid_out_as(like, whole)).clone())

    def close(self) -> None:
        self._model, self._parts, self._shards = None, {}, None
        super().close()


class _Named(nn.Module):
    """The parts under the names of the parameters that they are of."""

    def __init__(self, parts: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._parts = parts

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self._parts.items())


def _units(model: nn.Module) -> Iterator[nn.Module]:
    """Units to gather at once: top-level layers with parameters, none of them shared with another layer."""
    owners = Counter(id(p) for child in model.children() for p in set(child.parameters()))
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):  # containers are never called
            yield from _units(child)
        elif all(owners[id(p)] == 1 for p in child.parameters()) and any(True for _ in child.parameters()):
            yield child


def _bytes_in(dtype: str, value_bytes: int) -> int:
    found = _DTYPES[dtype]
    return value_bytes if found is None else found.itemsize


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's shard, sharing memory."""
    assert isinstance(tensor, DTensor)
    with torch.no_grad():
        part: Tensor = tensor.to_local()
    return part


def _laid_out_as(like: Tensor | None, full: Tensor | OwnPart) -> Tensor:
    """`full` in parts where `like` is, else as it is; every rank has the whole or its part, nothing is sent."""
    if isinstance(full, OwnPart):
        assert isinstance(like, DTensor)
        part = full.tensor.to(like.device)
        return DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    if not isinstance(like, DTensor):
        return full
    full = full.to(like.device).contiguous()
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
