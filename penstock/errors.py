"""The one kind of error a user is meant to read: what was got, why it cannot work, and what to type instead."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class UserError(Exception):
    """A wrong input. Commands print it as one line and leave with `exit_code`; a library caller catches it."""

    exit_code = 2


class MissingExtra(UserError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} is not installed: `make install`, or pip install -e '.[{extra}]' in a clone, brings it"
        )
        self.extra = extra


class BrokenImage(UserError):
    """An image that cannot be decoded; the message names the file or the sample."""

    def __init__(self, location: str, reason: str) -> None:
        super().__init__(f"{location}: cannot decode this image ({reason}); replace or remove it")
        self.location, self.reason = location, reason


class NotWritten(UserError):
    """A file or folder that could not be written: no fault of what was typed, as a rule."""

    exit_code = 1

    def __init__(self, path: Path, error: OSError, remedy: str = "name another place") -> None:
        super().__init__(f"{path}: cannot be written ({error.strerror or error}); {remedy}")


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's `main` and leave: 0 or its return value, an error's code with one line, 130 after Ctrl-C.

    A full disk is met in many places, some of them in other packages, and is one line too.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"penstock: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("penstock: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `... | head`: point stdout elsewhere, so that the interpreter's own flush does not raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"penstock: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)
