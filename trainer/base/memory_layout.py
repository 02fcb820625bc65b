"""The order of a tensor's elements in memory."""

from torch import Tensor, nn


def dense(tensor: Tensor) -> Tensor:
    """Return the tensor itself if its elements fill a piece of memory in some order, else a contiguous copy."""
    strides = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    filled = 1
    for stride, size in strides:
        if stride != filled:
            return tensor.contiguous()
        filled *= size
    return tensor


def make_dense(model: nn.Module) -> None:
    """Copy each parameter whose elements do not fill a piece of memory, such as a slice of columns.

    autograd gives such a parameter a contiguous gradient, whose elements a fused kernel on the CPU would add to others.
    """
    for parameter in model.parameters():
        parameter.data = dense(parameter.data)
