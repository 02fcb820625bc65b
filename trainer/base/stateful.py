"""The protocol of objects with state in a checkpoint."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

StateValue = Any
"""What a checkpoint can hold: nested containers of numbers, text and tensors."""
State = Mapping[str, StateValue]
"""What a checkpoint keeps of something, by name."""


@runtime_checkable
class Stateful(Protocol):
    """An object whose state is part of a checkpoint: plain containers, numbers, text and tensors."""

    def state_dict(self) -> State:
        """Return the state, which may share memory with the object: copy it to keep it."""
        ...

    def load_state_dict(self, state: State) -> object:
        """Load the result of `state_dict`."""
        ...
