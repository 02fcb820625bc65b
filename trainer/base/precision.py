"""Precision of the forward pass, and loss scaling for fp16."""

import torch
from torch import Tensor

from trainer.base.stateful import State

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def choose_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype, None for fp32; `auto`: bf16 on CUDA if native, else fp16; fp32 on the CPU."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


class LossScale:
    """Dynamic loss scaling on the device, without synchronization (Micikevicius et al. 2018).

    The scale starts at 2^16, doubles after `growth_interval` consecutive finite steps and halves after a step that
    is not finite, as in `torch.amp.GradScaler`.
    """

    def __init__(self, device: torch.device, initial: float = 65536.0, growth_interval: int = 2000) -> None:
        self.scale = torch.full((), initial, device=device)
        self._finite_steps = torch.zeros((), device=device)
        self._growth_interval = growth_interval

    def update(self, nonfinite: Tensor) -> None:
        """Update the scale; `nonfinite` is a float on the device, 1 if the step was not finite, else 0."""
        self._finite_steps = (self._finite_steps + 1) * (1 - nonfinite)
        grow = (self._finite_steps == self._growth_interval).float()
        self.scale = self.scale * (1 + grow) * (1 - 0.5 * nonfinite)
        self._finite_steps = self._finite_steps * (1 - grow)

    def state_dict(self) -> State:
        return {"scale": self.scale, "finite_steps": self._finite_steps}

    def load_state_dict(self, state: State) -> None:
        self.scale = state["scale"].to(self.scale.device)
        self._finite_steps = state["finite_steps"].to(self.scale.device)
