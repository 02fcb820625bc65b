"""torch's meta device in place of a GPU: it computes nothing, refuses to mix with the CPU and cannot be read.

A run on it shows which tensors are on the wrong device, and where the processor waits for the device.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import optimizer as torch_optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import trainer
from trainer.configuration import resolve
from trainer.training.run import Run

META = torch.device("meta")
_SOURCE = str(Path(trainer.__file__).parent)
# the phase, by the outermost of these functions that is found on the stack; otherwise a step
_PHASES = {"build_run": "start", "end_epoch": "epoch", "handle": "due", "restore": "resume"}
_COPIES = ("_to_copy", "copy_")
# operations whose result depends on values: CUDA waits for them
_UNREADABLE = {
    "nonzero", "masked_select", "bincount", "_unique", "_unique2", "unique_dim", "unique_consecutive", "equal",
    "repeat_interleave.Tensor",
}  # fmt: skip


class Gpu(TorchDispatchMode):
    """Runs operations on the meta device as on a GPU: `waits` counts, by phase and place, what CUDA would wait for.

    A place is a file and function of ours; `now` overrides the phase. Values that are read are 0, or `answers[place]`.
    Raises AssertionError for an operation on tensors of both devices, or one that waits and is no plain read.
    """

    def __init__(self, answers: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.answers = answers or {}
        self.waits: dict[str, Counter[str]] = {}
        self.now: str | None = None
        self.run: Run | None = None
        self.begun = 0

    def begin(self, run: Run) -> None:
        """Watch a run that has just been built or restored."""
        self.run, self.begun = run, run.step

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if torch.is_inference_mode_enabled() and name != "item":  # composite operations arrive undivided
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if name in ("item", "_local_scalar_dense") and tensors[0].is_meta:
            return tensors[0].new_zeros((), device="cpu").fill_(self.wait()).item()
        if name in _COPIES:
            return self.copy(func, name, args, kwargs)
        self.check(func, name, tensors)
        if name.startswith("_fused_") and name.rstrip("_").endswith(("adam", "adamw", "sgd", "adagrad")):
            return None
        if name == "lift_fresh" and tensors[0].is_meta:
            self.wait()  # torch.tensor(value, device=...)
        return func(*args, **kwargs)

    def copy(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name == "copy_":
            source, target, asynchronous = args[1], args[0].device, kwargs.get("non_blocking") or args[2:3] == (True,)
        else:
            source, target, asynchronous = args[0], kwargs.get("device") or args[0].device, kwargs.get("non_blocking")
        if source.is_meta == (target == META):
            return func(*args, **kwargs)
        if not source.is_meta:
            if not asynchronous:
                self.wait()
            return func(*args, **kwargs)
        value = self.wait()
        if name == "copy_":
            return args[0].fill_(value)
        return torch.full(source.shape, value, dtype=kwargs.get("dtype") or source.dtype)

    def check(self, func: Any, name: str, tensors: list[Tensor]) -> None:
        devices = {tensor.device.type for tensor in tensors if tensor.dim() > 0 or tensor.is_meta}
        if "meta" not in devices:
            return
        assert devices == {"meta"}, f"{self.place()}: {func} mixes the device with the CPU"
        unreadable = name in _UNREADABLE or f"{name}.{func._overloadname}" in _UNREADABLE
        by_mask = name in ("index", "index_put_") and any(t.dtype is torch.bool for t in tensors[1:2])
        assert not unreadable and not by_mask, f"{self.place()}: {func} waits for the device"

    def wait(self) -> float:
        place = self.place()
        self.waits.setdefault(self.phase(), Counter())[place] += 1
        return self.answers.get(place, 0)

    def phase(self) -> str:
        if self.now is not None:
            return self.now
        found = [_PHASES[code.rpartition(".")[2]] for _, code in _frames() if code.rpartition(".")[2] in _PHASES]
        if found:
            return found[-1]
        return "first step" if self.run is None or self.run.step == self.begun else "step"

    def place(self) -> str:
        return next((f"{file}:{code}" for file, code in _frames()), "elsewhere")


def _frames() -> Iterator[tuple[str, str]]:
    """File and function of each frame of ours, from the innermost on."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_SOURCE):
            yield code.co_filename[len(_SOURCE) + 1 :], code.co_qualname.partition(".<locals>")[0]
        frame = frame.f_back  # type: ignore[assignment]


class Autocast(TorchFunctionMode):
    """torch's autocast, which the meta device does not have: layers compute in `dtype`, losses in float32."""

    _LOWER = (F.linear, F.conv1d, F.conv2d, torch.conv2d, torch.matmul, Tensor.matmul, torch.bmm, torch.addmm)
    _FULL = (F.cross_entropy, F.mse_loss, F.softmax, F.log_softmax, F.layer_norm, torch.cdist)

    def __init__(self, device_type: str, dtype: torch.dtype) -> None:
        assert device_type == "meta"
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wanted = self.dtype if func in self._LOWER else torch.float32 if func in self._FULL else None

        def cast(value: Any) -> Any:
            is_float = wanted is not None and isinstance(value, Tensor) and value.is_floating_point()
            return value.to(wanted) if is_float else value

        return func(*map(cast, args), **{key: cast(value) for key, value in (kwargs or {}).items()})


@contextmanager
def gpu(answers: Mapping[str, float] | None = None) -> Iterator[Gpu]:
    """Let runs that are resolved within take the meta device, with the kernels that torch has for CUDA."""
    with pytest.MonkeyPatch.context() as patch, Gpu(answers) as device:
        patch.setattr(resolve, "choose_device", lambda *_, **__: META)
        patch.setattr(torch, "autocast", Autocast)
        for kind in ("fused", "foreach"):
            name = f"_get_{kind}_kernels_supported_devices"
            known = vars(torch_optimizer)[name]()
            patch.setattr(torch_optimizer, name, lambda known=known: [*known, "meta"])
        yield device
