"""Barlow Twins against the paper's equations 1 and 2 (arXiv 2103.03230), written out in loops.

N images, C dimensions.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from penstock.engine.distributed import Team
from penstock.engine.method import Encoder
from penstock.engine.methods.barlow_twins import BarlowTwins
from penstock.engine.methods.heads import build_head
from tests.method_steps import run
from tests.ranks import on_ranks

N, C, LAMBDA = 6, 5, 0.05
INDEX = torch.arange(N)


def small_encoder(norm: str = "hidden") -> Encoder:
    torch.manual_seed(0)
    return Encoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), build_head(7, layers=2, hidden=8, dim=C, norm=norm))


def images(step: int) -> torch.Tensor:
    return torch.randn(2 * N, 3, 2, 2, generator=torch.Generator().manual_seed(step))


def equations_1_and_2(z_a: torch.Tensor, z_b: torch.Tensor, redundancy: float = LAMBDA) -> torch.Tensor:
    """Of projections [N, C] with gradient, one correlation at a time."""
    a, b = z_a.double(), z_b.double()
    a, b = a - a.mean(0), b - b.mean(0)  # "assumed to be mean-centered along the batch dimension"
    loss = torch.zeros((), dtype=torch.double)
    for i in range(C):
        for j in range(C):
            c_ij = (a[:, i] * b[:, j]).sum() / (a[:, i].square().sum().sqrt() * b[:, j].square().sum().sqrt())
            loss = loss + ((1 - c_ij) ** 2 if i == j else redundancy * c_ij**2)
    return loss


def projections(scale: float = 10.0) -> list[torch.Tensor]:
    """So far apart that the 1e-5 which BatchNorm adds to a variance is not seen."""
    torch.manual_seed(1)
    return [(scale * torch.randn(N, C) + 3).requires_grad_() for _ in range(2)]


def test_loss_and_gradient_equal_the_paper_s_equations() -> None:
    ours, theirs = projections(), projections()
    barlow = BarlowTwins(small_encoder(), dim=C, redundancy=LAMBDA)
    loss, expected = barlow.redundancy_reduction(*ours), equations_1_and_2(*theirs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for z, same in zip(ours, theirs, strict=True):
        torch.testing.assert_close(z.grad, same.grad, rtol=1e-4, atol=1e-6)


def test_loss_and_gradient_equal_lightly_s() -> None:
    lightly = pytest.importorskip("lightly.loss")
    ours, theirs = projections(scale=1.0), projections(scale=1.0)
    loss = BarlowTwins(small_encoder(), dim=C, redundancy=LAMBDA).redundancy_reduction(*ours)
    expected = lightly.BarlowTwinsLoss(lambda_param=LAMBDA)(*theirs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for z, same in zip(ours, theirs, strict=True):
        torch.testing.assert_close(z.grad, same.grad, rtol=1e-4, atol=1e-6)


def test_a_case_worked_by_hand() -> None:
    """Two images, two dimensions. Standardised, z_a is (1, 1), (-1, -1), and z_b is (1, -1), (-1, 1).

    c = [[1, -1], [1, -1]]: the diagonal costs (1 - 1)² + (1 + 1)² = 4, the rest λ·(1 + 1) = 1 for λ = 0.5.
    """
    z_a = torch.tensor([[30.0, 5.0], [10.0, 1.0]])
    z_b = torch.tensor([[8.0, 20.0], [2.0, 60.0]])
    barlow = BarlowTwins(small_encoder(), dim=2, redundancy=0.5)
    assert barlow.redundancy_reduction(z_a, z_b).item() == pytest.approx(5.0, rel=1e-4)


def test_equal_views_with_independent_dimensions_cost_nothing() -> None:
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert BarlowTwins(small_encoder(), dim=2).redundancy_reduction(z, z).item() == pytest.approx(0.0, abs=1e-8)


def test_each_view_is_encoded_by_itself() -> None:
    """The encoder normalises its batch, so a view's projections would be others in the company of the other view."""
    barlow = BarlowTwins(small_encoder(), dim=C, redundancy=LAMBDA)
    twin, x = copy.deepcopy(barlow.encoder), images(0)
    loss, metrics = barlow([x], INDEX)
    first, second = twin(10 * x[:N]), twin(10 * x[N:])  # the head's BatchNorm takes the 10 away
    assert loss.item() == pytest.approx(equations_1_and_2(first, second).item(), rel=1e-3)
    assert set(metrics) == {"std"} and 0.3 < float(metrics["std"]) < 1.2
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in barlow.parameters())


def test_constant_projections_have_no_spread_and_no_correlation() -> None:
    """Every c_ij is 0, so the diagonal costs 1 for each dimension; gradients stay finite."""
    barlow = BarlowTwins(small_encoder(), dim=C)
    for parameter in barlow.encoder.head[-1].parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(barlow.encoder.head[-1].bias)
    loss, metrics = barlow([images(0)], INDEX)
    loss.backward()
    assert loss.item() == pytest.approx(C)
    assert float(metrics["std"]) == pytest.approx(0.0, abs=1e-6)
    assert all(parameter.grad.isfinite().all() for parameter in barlow.encoder.parameters())


def test_correlations_are_taken_in_float32() -> None:
    barlow = BarlowTwins(small_encoder(), dim=C)
    z_a, z_b = (z.detach().bfloat16() for z in projections())
    with torch.autocast("cpu", torch.bfloat16):
        loss = barlow.redundancy_reduction(z_a, z_b)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, barlow.redundancy_reduction(z_a.float(), z_b.float()))


def test_parts_of_a_step_and_a_resumed_run_give_the_same_losses() -> None:
    """Nothing but the weights is carried from one call to the next: two parts a step, saved and loaded in mid-run."""
    barlow, other = (BarlowTwins(small_encoder(), dim=C) for _ in range(2))
    assert set(barlow.state_dict()) == {f"encoder.{name}" for name in barlow.encoder.state_dict()}
    run(barlow, images, steps=range(3), of=6, parts=2)
    other.load_state_dict(barlow.state_dict())
    assert run(barlow, images, steps=range(3, 6), of=6, parts=2) == run(other, images, steps=range(3, 6), of=6, parts=2)


def whole_batch(team: Team, folder: Path) -> dict[str, Any]:
    """Loss and gradients; each rank has its part of both views."""
    barlow = BarlowTwins(small_encoder(norm="none"), dim=C, redundancy=LAMBDA, team=team)
    first, second = images(0).chunk(2)
    model = team.wrap(barlow)
    loss, _ = model([torch.cat([team.own(first), team.own(second)])], team.own(INDEX))
    loss.backward()
    return {"loss": loss.detach(), **{name: value.grad for name, value in barlow.named_parameters()}}


def test_two_ranks_give_one_rank_s_loss_and_gradients(tmp_path: Path) -> None:
    expected = whole_batch(Team(), tmp_path)
    for rank in on_ranks(whole_batch, tmp_path):
        for name, value in expected.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-3, atol=1e-4)  # most are larger than 1
