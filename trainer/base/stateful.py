"""What a checkpoint keeps of an object."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Stateful(Protocol):
    """An object whose state is part of a checkpoint: plain containers, numbers, text and tensors."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state; what it holds may change afterwards, so that whoever keeps it makes a copy."""
        ...

    def load_state_dict(self, state: Any) -> object:
        """The inverse."""
        ...
