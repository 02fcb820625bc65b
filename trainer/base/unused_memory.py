"""Giving memory that the allocator keeps back to the system."""

import ctypes


def return_unused_memory() -> None:
    """Return freed memory, of which glibc keeps much after large tensors have been freed; no effect elsewhere."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return
