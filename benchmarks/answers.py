"""Processes that a benchmark starts and reads: they speak JSON on what was their standard output.

What libraries print goes to standard error, where it cannot be taken for an answer.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, NoReturn, TextIO

from penstock.errors import run_command

Task = dict[str, Any]


def run_worker(serve: Callable[[Task, TextIO], int]) -> NoReturn:
    """Run `serve` and leave.

    Args:
        serve: takes the task, the first argument on the command line, and the channel that its parent reads.
    """
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    run_command(partial(serve, json.loads(sys.argv[1]), channel))


def run_probe(probe: Callable[[Task], Any]) -> NoReturn:
    """Answer once, with the dataclass that `probe` makes of the task, and leave."""

    def answer(task: Task, channel: TextIO) -> int:
        print(json.dumps(asdict(probe(task))), file=channel, flush=True)
        return 0

    run_worker(answer)
