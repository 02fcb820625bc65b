"""Reads what torch.save wrote, and tells a damaged file from one that is something else.

torch does not compare the checksums (CRC-32) of an archive with its content.
"""

import zipfile
from pathlib import Path

import torch

from trainer.base.errors import DataError, is_out_of_memory

_ARCHIVE = b"PK"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first bytes of files that torch wrote before version 1.6
_BLOCK = 1 << 20


def read_saved(path: Path, device: torch.device | str = "cpu") -> object:
    """Return the tensors and plain containers in a file. Raises DataError if it is damaged, ValueError for any other
    file."""
    start = _check_whole(path)
    try:
        found: object = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises almost anything for files that it has not written
        if is_out_of_memory(error):
            raise
        if start == _LEGACY and isinstance(error, EOFError | RuntimeError):
            raise DataError(f"{path} is damaged: it ends too early") from error
        raise ValueError(f"{path}: not written by torch.save, or more than tensors and plain containers") from error
    return found


def _check_whole(path: Path) -> bytes:
    """Return the first bytes of a file. Raises DataError if it cannot be read, is empty or is a damaged archive."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY))
        if not start:
            raise DataError(f"{path} is damaged: it is empty")
        if start.startswith(_ARCHIVE):
            with zipfile.ZipFile(path) as archive:
                # without checksums, torch writes zeros
                for record in [record for record in archive.infolist() if record.CRC]:
                    with archive.open(record) as content:  # compares the checksum at the end
                        while content.read(_BLOCK):
                            pass
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    return start
