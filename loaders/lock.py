"""Of several ranks or runs one makes what all need, and the others wait for it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import UserError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock beside `path`, so that of several ranks or runs one makes it and the others wait.

    Raises:
        UserError: its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written ({error.strerror}): name another place, PENSTOCK_CACHE=FOLDER"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
