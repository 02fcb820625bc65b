"""Parameters that are frozen for the first steps or for the whole run."""

from collections.abc import Callable, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from trainer.optimizers.parameter_groups import Entry, entry_of


class Freezing:
    """Gradual unfreezing: until its moment, the parameters of an entry have no gradient, so that the optimizer neither
    changes them nor keeps a state for them. The gradients are computed, which every strategy then does in the same way.

    Batch norm whose parameters are all frozen is in evaluation mode: it uses and keeps its statistics. `step_at`
    converts a duration. What is frozen depends on the step alone.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, entries: Sequence[Entry], step_at: Callable[[str], int]
    ) -> None:
        self._thaws = {entry.name: step_at(entry.unfreeze_at) for entry in entries if entry.unfreeze_at is not None}
        self._parameters: dict[str, list[nn.Parameter]] = {name: [] for name in self._thaws}
        for name, parameter in model.named_parameters():
            entry = entry_of(name, entries)
            if entry is not None and entry.name in self._parameters:
                self._parameters[entry.name].append(parameter)
        for group in optimizer.param_groups:  # under fsdp, other objects than those of the model
            name = group["name"].removesuffix("/no_decay")
            if name in self._parameters:
                self._parameters[name] += group["params"]
        self._norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self.changes = {0, *self._thaws.values()}
        """The steps before which something is frozen or unfrozen."""

    def frozen(self, step: int) -> list[nn.Parameter]:
        """Return the parameters that have no gradient in this step; set the mode of batch norm."""
        held = [p for name, thaw in self._thaws.items() if step < thaw for p in self._parameters[name]]
        fixed = {id(parameter) for parameter in held}
        for norm in self._norms:
            own = list(norm.parameters(recurse=False))
            _hold(norm, bool(own) and all(id(p) in fixed or not p.requires_grad for p in own))
        return held


def _hold(norm: nn.Module, is_frozen: bool) -> None:
    """Keep a module in evaluation mode, whatever mode its model is set to, or let it follow again."""
    if is_frozen:
        norm.eval()
        norm.train = lambda mode=True: norm  # type: ignore[method-assign]
    elif "train" in vars(norm):
        del norm.train
        norm.train()
