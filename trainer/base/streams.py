"""Standard streams that do not end the program: closed ones, and those whose reader or terminal has gone.

Only the program `train` and its ranks use them; in other programs the streams belong to those.
"""

import codecs
import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from trainer.base.errors import DiskError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_REPLACE = "gearshift_replace"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Output(io.RawIOBase):
    """Writes to a descriptor. After an error, such as a closed pipe, everything is discarded."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.error: OSError | None = None

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        rest = memoryview(data).cast("B")
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another program has made a shared terminal or pipe non-blocking
                select.select((), (self._descriptor,), ())
            except OSError as error:
                self.error = error
                with suppress(OSError):
                    _open_nowhere(self._descriptor)
                break
        return memoryview(data).nbytes


def prepare() -> None:
    """Open closed standard streams as the null device, and make stdout and stderr robust.

    Must be called before any file is opened: a file that took the number of a closed stream would receive its output.
    Characters that the encoding of a stream lacks become question marks, except bytes of file names, which are kept.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_nowhere(descriptor)
    codecs.register_error(_REPLACE, _replace)
    sys.stdout, sys.stderr = _robust(sys.stdout, 1), _robust(sys.stderr, 2)


def check_written() -> None:
    """Write what is buffered for stdout. Raises DiskError if output was lost on a full disk."""
    sys.stdout.flush()
    raw = _raw(sys.stdout)
    if isinstance(raw, _Output) and raw.error is not None and raw.error.errno in _FULL:
        raise DiskError(f"stdout: {raw.error.strerror}; the output is incomplete")


def _robust(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return a robust stream in place of Python's own; any other, such as that of a test, is kept."""
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(_Output(descriptor)), encoding="utf-8", errors=_REPLACE)
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(_raw(stream), io.FileIO):
        return stream
    raw, is_direct = _Output(descriptor), stream.write_through  # direct: python -u
    buffer = cast("BinaryIO", raw if is_direct else io.BufferedWriter(raw))
    lines = stream.line_buffering
    return io.TextIOWrapper(buffer, stream.encoding, _REPLACE, line_buffering=lines, write_through=is_direct)


def _raw(stream: TextIO) -> object:
    buffer = stream.buffer if isinstance(stream, io.TextIOWrapper) else None
    return buffer.raw if isinstance(buffer, io.BufferedWriter) else buffer


def _open_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == descriptor:
        os.set_inheritable(nowhere, True)
    else:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Error handler of codecs: `surrogateescape` for bytes of file names, and `?` for other characters."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return b"".join(bytes([ord(c) - 0xDC00]) if "\udc80" <= c <= "\udcff" else b"?" for c in text), error.end
