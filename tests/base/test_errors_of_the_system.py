"""Errors of the operating system and of libraries, and the exit code that each kind ends with."""

import errno

import pytest

from trainer.base.errors import GearshiftError, understood

LIBRARY = "libtorch_cpu.so: failed to map segment from shared object"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 73),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 73),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), 73),
        (RuntimeError("can't start new thread"), 73),
        (ImportError(LIBRARY), 73),  # under ulimit -v
        (ImportError(f"{LIBRARY}: Cannot allocate memory"), 73),
        (ImportError(f"{LIBRARY}: Operation not permitted"), None),  # a file system mounted with noexec
        (ModuleNotFoundError("No module named 'timm'"), None),
        (OSError(errno.ENOSPC, "No space left on device"), 74),
        (OSError(errno.EROFS, "Read-only file system"), 74),
        (OSError(errno.EMFILE, "Too many open files"), 74),
        (ImportError("libtorch_cpu.so: cannot open shared object file: Too many open files"), 74),
        (KeyError("x"), None),
    ],
)
def test_an_error_of_the_system_has_its_exit_code(error: Exception, code: int | None) -> None:
    found = understood(error)
    assert (found.exit_code if isinstance(found, GearshiftError) else None) == code
