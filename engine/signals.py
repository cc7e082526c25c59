"""Ctrl-C and SIGTERM: asked once, training ends after the step in hand and saves; asked twice, it leaves at once."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While entered, remembers the first signal in `received` (0: none) instead of stopping the process."""

    def __init__(self, *, alone: bool = True, speaks: bool = True) -> None:
        """`alone`: not one of several ranks, to which torchrun passes on a Ctrl-C that they have already had."""
        self.alone, self.speaks = alone, speaks
        self.received = 0

    def __enter__(self) -> Interrupts:
        self.process = os.getpid()
        self.before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a forked worker of a loader; its parent decides when it ends
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.received and self.alone:
            os.write(sys.stderr.fileno(), b"penstock: left without saving\n")
            os._exit(128 + number)
        if self.speaks and not self.received:
            os.write(sys.stderr.fileno(), b"\npenstock: stopping after this step, to save; again: leave at once\n")
        self.received = self.received or number
