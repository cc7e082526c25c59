"""Several ranks: who this one is, and the few collectives that training needs.

    torchrun --nproc-per-node 2 engine/train.py

nccl between GPUs, gloo between CPUs. On one rank every function here is the identity, so callers ask no questions.

Gradients: DistributedDataParallel averages them over the ranks. So a loss that each rank computes for the whole batch,
from what `gather_with_gradient` and `sum` brought together, moves the weights exactly as it would on one rank; and so
does the mean over a rank's own images, whatever they are compared with.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar, cast

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from penstock.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(hours=1)  # rank 0 may evaluate for long while the others wait for it
_RENAMED = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # in torch 2.15 or before
_LEAVE_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


@dataclass(frozen=True, kw_only=True)
class Team:
    """This rank's place among the ranks that train together."""

    rank: int = 0
    world: int = 1
    on_machine: int = 1  # of them, on this machine
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this is the rank that logs, evaluates and saves."""
        return self.rank == 0

    def wrap(self, method: torch.nn.Module) -> torch.nn.Module:
        """The method with its gradients averaged over the ranks. Statistics of normalisation stay each rank's own."""
        if self.world == 1:
            return method
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(method, device_ids=devices, gradient_as_bucket_view=True, **_LEAVE_BUFFERS)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Every rank's rows [n, …] one after the other, [world·n, …]; no gradient flows through it."""
        if self.world == 1:
            return rows.detach()
        channels_last = rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last)
        dense = rows.permute(0, 2, 3, 1) if channels_last else rows.contiguous()
        out = dense.new_empty((self.world * len(dense), *dense.shape[1:]))
        distributed.all_gather_into_tensor(out, dense.detach())
        return out.permute(0, 3, 1, 2) if channels_last else out

    def gather_with_gradient(self, rows: torch.Tensor) -> torch.Tensor:
        """As `gather`; what all ranks' losses ask of a rank's rows is added up and flows back to them."""
        return rows if self.world == 1 else cast(torch.Tensor, _Gather.apply(rows, self))

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, element by element; no gradient flows through it."""
        if self.world == 1:
            return values.detach()
        out = values.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(out)
        return out

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """As `total`; what all ranks' losses ask of the sum is added up and flows back to each."""
        return values if self.world == 1 else cast(torch.Tensor, _Sum.apply(values, self))

    def own(self, rows: torch.Tensor) -> torch.Tensor:
        """This rank's part of rows that all ranks hold, as `gather` orders them."""
        return rows.chunk(self.world)[self.rank]

    def any(self, flag: int) -> int:
        """The largest of the ranks' flags: what one of them has noticed, all know."""
        if self.world == 1:
            return flag
        largest = torch.tensor(flag, device=self.device)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the ranks, of values measured on each."""
        if self.world > 1:
            distributed.all_reduce(values)
            values /= self.world
        return values

    def follow_leader(self, tensors: list[torch.Tensor]) -> None:
        """Overwrite the tensors with rank 0's."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    def of_leader(self, value: T) -> T:
        """Rank 0's value, whatever it is."""
        if self.world == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def leave(self) -> None:
        if self.world > 1:
            distributed.destroy_process_group()


class _Gather(torch.autograd.Function):
    """Rows [n, …] of each rank -> [world·n, …] on all."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, team: Team) -> torch.Tensor:
        ctx.team = team
        return team.gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        team: Team = ctx.team
        return team.own(team.sum(gradient)), None


class _Sum(torch.autograd.Function):
    """Each rank's values -> their sum on all."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, team: Team) -> torch.Tensor:
        ctx.team = team
        return team.total(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        team: Team = ctx.team
        return team.sum(gradient), None


def join(device: str) -> Team:
    """Meet the other ranks that torchrun started, or stand alone.

    Args:
        device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`; with several ranks on GPUs each takes
            its own.

    Raises:
        UserError: no such device.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1:
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE, device_id=chosen if chosen.type == "cuda" else None)
    return Team(rank=rank, world=world, on_machine=int(os.environ.get("LOCAL_WORLD_SIZE", 1)), device=chosen)


def _device(device: str, local_rank: int) -> torch.device:
    gpus = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda"):
        raise UserError(f"--device {device!r} is not known: use auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    index = int(number) if number.isdigit() else local_rank
    if index >= gpus:
        raise UserError(f"--device {device}: torch sees {gpus} GPUs, so there is no GPU {index}: use --device cpu")
    return torch.device("cuda", index)
