"""Where files are kept that can be made again, and files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from penstock.errors import NotWritten, UserError


def cache_folder() -> Path:
    """`$PENSTOCK_CACHE` or `~/.cache/penstock`, which need not exist yet; read anew at each call."""
    return Path(os.environ.get("PENSTOCK_CACHE") or "~/.cache/penstock").expanduser()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written under a temporary name, of the same suffix, then put in place. Raises UserError."""
    if os.path.isdir(path):  # Path's own raises where a folder above cannot be entered
        raise UserError(f"{path}: is a folder; name a file")
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")  # two processes may write one file
    try:
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise NotWritten(path, error) from error
    finally:
        with suppress(OSError):  # where it was put in place
            partial.unlink()
