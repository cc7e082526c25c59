"""Batch normalisation over two ranks is torch's BatchNorm over the whole batch, forwards and backwards.

G images in both ranks' batches, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from penstock.engine.backbones import build_backbone
from penstock.engine.distributed import Team
from penstock.engine.split_bn import split_batch_norm
from penstock.engine.sync_bn import SyncBatchNorm, synchronise_batch_norm
from penstock.errors import UserError
from tests.ranks import on_ranks

pytestmark = pytest.mark.timeout(300)  # a launch takes seconds, but of a machine that may be busy
G, C = 8, 6
TWO = Team(world=2)  # enough to convert a network; its ranks never meet


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer in front, whose gradients pass through the normalisation, the normalisation, and the batch."""

    front: Callable[[], nn.Module] = lambda: nn.Conv2d(C, C, 1, bias=False)
    norm: Callable[[], nn.Module] = lambda: nn.BatchNorm2d(C)
    shape: tuple[int, ...] = (G, C, 5, 3)
    memory_format: torch.memory_format = torch.contiguous_format
    mean: float = 0.0  # of the input
    dtype: torch.dtype = torch.float32


CASES = {
    "1d": Case(front=lambda: nn.Linear(C, C, bias=False), norm=lambda: nn.BatchNorm1d(C), shape=(G, C)),
    "1d, sequences": Case(
        front=lambda: nn.Conv1d(C, C, 1, bias=False), norm=lambda: nn.BatchNorm1d(C), shape=(G, C, 4)
    ),
    "2d": Case(),
    "2d, channels last": Case(memory_format=torch.channels_last),
    "2d, far from zero": Case(front=nn.Identity, mean=100.0),
    "eps and momentum": Case(norm=lambda: nn.BatchNorm2d(C, eps=0.1, momentum=0.7)),
    "cumulative": Case(norm=lambda: nn.BatchNorm2d(C, momentum=None)),
    "not affine": Case(norm=lambda: nn.BatchNorm2d(C, affine=False)),
    "not tracking": Case(norm=lambda: nn.BatchNorm2d(C, track_running_stats=False)),
    "half precision": Case(front=nn.Identity, dtype=torch.bfloat16, memory_format=torch.channels_last),
}


def normalise(team: Team, folder: Path) -> dict[str, Any]:
    """Of each case: three batches forwards and backwards, then one in evaluation."""
    return {name: _normalise(case, team) for name, case in CASES.items()}


def _normalise(case: Case, team: Team) -> dict[str, Any]:
    torch.manual_seed(0)
    network = nn.Sequential(case.front(), synchronise_batch_norm(_scaled(case.norm()), team))
    model = team.wrap(network)
    for _ in range(3):
        images = torch.randn(case.shape) * (0.5 + torch.rand(1, C, *[1] * (len(case.shape) - 2))) + case.mean
        x = team.own(images).to(case.dtype, memory_format=case.memory_format).requires_grad_()
        asked = team.own(torch.randn(case.shape))
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype != torch.float32):
            y = model(x)
        (y.float() * asked).sum().backward()  # the loss of all ranks is their losses' sum
    keeps = {"dtype": y.dtype, "stride": y.stride()[1:]}
    evaluated = network.eval()(images)
    gradients = {key: team.world * value.grad for key, value in network.named_parameters()}  # DDP took their mean
    return {"y": y.detach(), "x": x.grad, "evaluated": evaluated.detach(), "gradients": gradients,
            "state": network.state_dict(), "keeps": keeps}  # fmt: skip


def _scaled(norm: nn.Module) -> nn.Module:
    """Weights and biases that differ, as they do after training."""
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    return norm


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """torch's BatchNorm, on one rank with the whole batch."""
    return normalise(Team(), tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(normalise, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_normalise_as_one(name: str, ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    case, (first, second), one = CASES[name], [rank[name] for rank in ranks], alone[name]
    tolerance = {"rtol": 0.01, "atol": 0.01} if case.dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    for part in ("y", "x"):
        torch.testing.assert_close(torch.cat([first[part], second[part]]), one[part], **tolerance)
    for part in ("evaluated", "gradients", "state"):
        torch.testing.assert_close(first[part], one[part], **tolerance)
    assert list(first["state"]) == list(one["state"])
    assert first["keeps"] == one["keeps"]


@pytest.mark.parametrize("name", CASES)
def test_ranks_hold_the_same(name: str, ranks: list[dict[str, Any]]) -> None:
    for part in ("state", "gradients"):
        first, second = (rank[name][part] for rank in ranks)
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_network_keeps_its_parameters_and_its_names() -> None:
    network, _ = build_backbone("resnet18", width=8, stem="cifar")
    network.layer1.requires_grad_(False)
    names, parameters = list(network.state_dict()), list(network.parameters())
    assert synchronise_batch_norm(network, TWO) is network
    assert list(network.state_dict()) == names
    assert all(now is before for now, before in zip(network.parameters(), parameters, strict=True))
    assert not any(parameter.requires_grad for parameter in network.layer1.parameters())
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(SyncBatchNorm) == 20 and nn.BatchNorm2d not in kinds
    build_backbone("resnet18", width=8, stem="cifar")[0].load_state_dict(network.state_dict())


def test_converting_twice_and_copying_change_nothing() -> None:
    network = synchronise_batch_norm(nn.Sequential(nn.BatchNorm1d(C).eval()), TWO)
    layer = network[0]
    assert synchronise_batch_norm(network, TWO)[0] is layer and not layer.training
    assert copy.deepcopy(network)[0].team == TWO


def test_one_rank_keeps_its_layers() -> None:
    network = nn.Sequential(nn.BatchNorm2d(C))
    assert type(synchronise_batch_norm(network, Team())[0]) is nn.BatchNorm2d


def test_on_gpus_the_layer_is_torchs() -> None:
    network = nn.Sequential(nn.BatchNorm2d(C), nn.BatchNorm1d(C))
    synchronise_batch_norm(network, Team(world=2, device=torch.device("cuda")))
    assert [type(layer) for layer in network] == [nn.SyncBatchNorm] * 2


def test_split_batches_are_refused() -> None:
    network = split_batch_norm(nn.Sequential(nn.BatchNorm2d(C)), 2)
    with pytest.raises(UserError, match=r"--bn-splits 2 .* use --bn-splits 1"):
        synchronise_batch_norm(network, TWO)


def test_layers_that_do_more_than_normalise_are_refused() -> None:
    class BatchNormAct2d(nn.BatchNorm2d):
        """Such as timm's, which holds the activation, too."""

    with pytest.raises(UserError, match=r"uses BatchNormAct2d, .* choose another --arch"):
        synchronise_batch_norm(nn.Sequential(nn.Sequential(BatchNormAct2d(C))), TWO)
