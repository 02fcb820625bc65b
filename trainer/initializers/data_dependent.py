"""An initializer that looks at the outputs of layers."""

from typing import Any

import torch
from torch import Tensor, nn

from trainer.base.checks import check_whole
from trainer.initializers.fixed import Orthogonal
from trainer.initializers.weights import Layer, OfLayers


class DataDependent(OfLayers):
    """Layer-sequential unit variance, LSUV (Mishkin & Matas 2016).

    Orthonormal weights; then each linear and convolutional layer, in the order of their calls, is divided by the
    standard deviation of its outputs for the first `samples` >= 2 training samples, preprocessed but not augmented.
    Biases are 0, so that one division makes the variance 1. Dropout is off meanwhile. Raises ValueError for other
    values.
    """

    def __init__(self, samples: int = 256) -> None:
        self.num_samples = check_whole("samples", samples, 2)
        self._images: Tensor | None = None

    def see(self, images: Tensor) -> None:
        self._images = images

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        Orthogonal(gain=1.0)(model)
        images, self._images = self._images, None
        if images is None:  # on the meta device, or for a run whose weights are loaded afterwards
            return
        buffers = [buffer.clone() for buffer in model.buffers()]
        modes = {module: module.training for module in model.modules()}
        model.train()
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        for layer in self._order(model, images):
            deviation = _output(model, layer, images).float().std().item()
            if deviation > 0:
                layer.weight.div_(deviation)
        for module, mode in modes.items():
            module.training = mode
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)

    def _order(self, model: nn.Module, images: Tensor) -> list[Any]:
        """The layers that are called, in the order of their first call."""
        called: dict[nn.Module, None] = {}
        layers = [module for module in model.modules() if isinstance(module, Layer)]
        hooks = [layer.register_forward_pre_hook(lambda module, _: called.setdefault(module)) for layer in layers]
        model(images[:2])
        for hook in hooks:
            hook.remove()
        return list(called)


class _Reached(Exception):
    """Ends a forward pass at the layer of interest."""


def _output(model: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """Return the layer's output in its first call, without running what follows."""
    found: list[Tensor] = []

    def stop(module: nn.Module, inputs: object, output: Tensor) -> None:
        found.append(output)
        raise _Reached

    hook = layer.register_forward_hook(stop)
    try:
        model(images)
    except _Reached:
        pass
    finally:
        hook.remove()
    return found[0]
