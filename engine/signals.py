"""Ctrl-C and SIGTERM: asked, training ends after the step in hand and saves; by a second Ctrl-C it leaves at once.

Only a second Ctrl-C leaves unsaved, for only people type it. Machines send SIGTERM, and may send it twice (Slurm, at a
pre-emption, and whoever started the training), or beside a Ctrl-C: once training was asked to end, SIGTERM changes
nothing. The first Ctrl-C after a SIGTERM changes nothing either, but says that a second one leaves at once.

SIGUSR2, by which submitit has Slurm announce a job's end to all its processes, kills those that do not expect it, so it
is ignored: it is for whoever started the training, who then sends it SIGTERM (slurm.py). SIGUSR1 is left to others, as
NCCL and faulthandler handle it in C, which Python can neither see nor put back.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType

REQUESTS = (signal.SIGINT, signal.SIGTERM)
NOTICE = signal.SIGUSR2


class Interrupts:
    """While entered, remembers the first request in `received` (0: none) instead of stopping the process."""

    def __init__(self, *, alone: bool = True, speaks: bool = True) -> None:
        """`alone`: not one of several ranks, to which torchrun passes on a Ctrl-C that they have already had."""
        self.alone, self.speaks = alone, speaks
        self.received = 0
        self.seen: set[int] = set()

    def __enter__(self) -> Interrupts:
        self.process = os.getpid()
        self.before = {number: signal.signal(number, self._handle) for number in REQUESTS}
        if signal.getsignal(NOTICE) == signal.SIG_DFL:  # else a caller has a handler: submitit's own process, say
            self.before[NOTICE] = signal.signal(NOTICE, signal.SIG_IGN)  # which processes started here inherit
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a forked worker of a loader; its parent decides when it ends
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        ctrl_c, again = number == signal.SIGINT, number in self.seen
        if ctrl_c and again and self.alone:
            os.write(sys.stderr.fileno(), b"penstock: left without saving\n")
            os._exit(128 + number)
        if self.speaks and not again and (ctrl_c or not self.seen):
            how = b"; Ctrl-C again: leave at once" if ctrl_c and self.alone else b""
            os.write(sys.stderr.fileno(), b"\npenstock: stopping after this step, to save" + how + b"\n")
        self.seen.add(number)
        self.received = self.received or number
