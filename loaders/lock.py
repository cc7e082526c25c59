"""Of several ranks or runs one makes what all need, and the others wait for it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penstock.errors import NotWritten


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock beside `path`, so that of several ranks or runs one makes it and the others wait.

    Raises:
        NotWritten: its folder cannot be.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".lock").open("w")
    except OSError as error:
        raise NotWritten(path.parent, error, "set PENSTOCK_CACHE=FOLDER to another place") from error
    with lock:
        with suppress(OSError):  # a file system without locks: as if no other process were there
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
