"""Activation checkpointing: a block keeps its inputs only, and is computed again for the backward pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model's blocks: the outermost modules that consist of several layers, to be computed again as a whole.

    A container of such modules is divided, and so is a module with more than half of the model's layers (the encoder of
    a vision transformer), as computing that again would need the memory of the whole model. A single layer is no block:
    recomputing it would save next to nothing.
    """
    yield from _blocks_in(model, _num_layers(model) / 2)


def _blocks_in(parent: nn.Module, limit: float) -> Iterator[nn.Module]:
    for child in parent.children():
        members = list(child.children())
        if not members:
            continue
        holds_blocks = any(True for member in members for _ in member.children())
        is_container = isinstance(child, nn.ModuleList | nn.ModuleDict) or (
            isinstance(child, nn.Sequential) and holds_blocks
        )
        if is_container or _num_layers(child) > limit:
            yield from _blocks_in(child, limit)
        else:
            yield child


def _num_layers(module: nn.Module) -> int:
    return sum(1 for layer in module.modules() if not any(True for _ in layer.children()))


def recompute_blocks(model: nn.Module) -> nn.Module:
    """Checkpoint the blocks in place, in training only, and return the model.

    Bit-identical. Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".

    The second pass has the random numbers and the buffers of the first one, and its changes to buffers are dropped, so
    that running statistics are updated once.
    """
    for block in blocks_of(model):
        _checkpoint(block)
    return model


def _checkpoint(block: nn.Module) -> None:
    compute = block.forward

    def contexts() -> _Contexts:
        before = [
            (module, {name: buffer.clone() for name, buffer in module.named_buffers(recurse=False)})
            for module in block.modules()
        ]
        return nullcontext(), _WithBuffers(before)

    def forward(*args: object, **kwargs: object) -> object:
        if not (block.training and torch.is_grad_enabled()):
            return compute(*args, **kwargs)
        return checkpoint(partial(compute, **kwargs), *args, use_reentrant=False, context_fn=contexts)

    block.forward = forward


class _WithBuffers(AbstractContextManager[None]):
    """Context manager in which modules have such buffers in place of their own.

    It is entered once for each backward pass through the same graph.
    """

    def __init__(self, buffers: list[tuple[nn.Module, dict[str, Tensor]]]) -> None:
        self._buffers = buffers
        self._own: list[tuple[nn.Module, dict[str, Tensor | None]]] = []

    def __enter__(self) -> None:
        self._own = [(module, dict(module._buffers)) for module, _ in self._buffers]
        for module, buffers in self._buffers:
            module._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})

    def __exit__(self, *raised: object) -> None:
        for module, buffers in self._own:
            module._buffers.update(buffers)
