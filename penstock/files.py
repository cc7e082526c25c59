"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from penstock.errors import UserError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written under a temporary name, of the same suffix, then put in place. Raises UserError."""
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")  # two processes may write one file
    try:
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); name another place") from error
    finally:
        partial.unlink(missing_ok=True)  # where it was not put in place
