"""A shard's file as many threads read it at once.

By `pread`, and not through a mapping, wherever the bytes are copied anyway. A bad sector, or a file that was cut since
it was opened, is then an error; under a mapping it is a signal that ends the process (SIGBUS). And other threads have
the GIL while the disk is at work. RAW pixels and tables are mapped, since nothing copies them: `check` right before
they are used leaves the signal to a bad sector, and to a file that is cut in that very moment.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UserError

MOST_BYTES = 1 << 30  # of an image: what is larger is a damaged length, and would take the machine's memory


class ShardFile:
    """A file opened for reading.

    Attributes:
        path: the file.
        size: its bytes when it was opened.

    Raises:
        UserError: it cannot be opened, or is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path}: cannot be opened ({error.strerror}): is the path right?") from error
        self._close = weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        if not self.size or not stat.S_ISREG(status.st_mode):
            what = "it is empty" if stat.S_ISREG(status.st_mode) else "it is no file at all"
            raise UserError(f"{path}: not a whole {path.suffix} file ({what}): convert or copy it again")

    def read(self, start: int, length: int) -> bytes:
        """The bytes of an image. Raises OSError, and UserError where the file was cut."""
        if length > MOST_BYTES:
            raise OSError(errno.EFBIG, f"{length} bytes are more than an image takes")
        data = os.pread(self._descriptor, length, start)
        if len(data) < length:
            raise self._cut()
        return data

    def will_need(self, start: int, end: int) -> None:
        """Have the system read a part of the file, so that it is in memory when it is asked for."""
        os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_WILLNEED)

    def mapped(self) -> NDArray[np.uint8]:
        """All of the file, read-only; the mapping ends with the last view of it."""
        mapping = mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ)
        return np.frombuffer(mapping, np.uint8)

    def check(self) -> None:
        """Raises UserError where the file was cut since it was opened."""
        if os.fstat(self._descriptor).st_size < self.size:
            raise self._cut()

    def _cut(self) -> UserError:
        return UserError(f"{self.path}: was cut since it was opened, or is being overwritten: copy it again")

    def close(self) -> None:
        """Whoever closes it sees to it that no thread is reading."""
        self._close()
        self._descriptor = -1  # the system gives the old number to the next file that is opened
