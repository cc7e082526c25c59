"""What a step is measured by, without making it wait: sums stay on the device until they are logged."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch


class Meter:
    """Running sums of the loss and a method's metrics on the device, read once for many steps."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = tuple(names)  # "loss" and the method's
        self.total = torch.zeros(len(self.names), device=device)
        self.steps = 0

    @torch.no_grad()
    def add(self, loss: torch.Tensor, metrics: dict[str, torch.Tensor]) -> None:
        known = {"loss": loss, **metrics}
        self.total += torch.stack([known[name].detach().float() for name in self.names])
        self.steps += 1

    def mean(self) -> torch.Tensor:
        """The mean over the steps since the last reset, on the device, in the order of `names`."""
        return self.total / max(1, self.steps)

    def reset(self) -> None:
        self.total.zero_()
        self.steps = 0


class WaitClock:
    """How long training took, and how much of that the device had nothing to do because the next batch was not there.

    On a GPU the host runs ahead, and its own waiting says little. There the gap is timed on the GPU itself, between an
    event behind the last step's kernels and one in front of the next step's. Read it when the device has caught up.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.start()

    def start(self) -> None:
        """Begin a new stretch of time."""
        self.began, self.waited = time.perf_counter(), 0.0
        self.gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def ask(self) -> None:
        """The last step is on its way, and the next batch is asked for."""
        self.asked = time.perf_counter()
        if self.on_gpu:
            self.step_ends = torch.cuda.Event(enable_timing=True)
            self.step_ends.record()

    def got(self) -> None:
        """The batch is there."""
        self.waited += time.perf_counter() - self.asked
        if self.on_gpu:
            step_begins = torch.cuda.Event(enable_timing=True)
            step_begins.record()
            self.gaps.append((self.step_ends, step_begins))

    def read(self) -> tuple[float, float]:
        """Seconds since `start`, and how many of them were spent waiting for data."""
        seconds = time.perf_counter() - self.began
        waited = sum(ends.elapsed_time(begins) for ends, begins in self.gaps) / 1e3 if self.on_gpu else self.waited
        return seconds, waited
