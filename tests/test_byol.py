"""BYOL against the paper's equations 1 and 2 (arXiv 2006.07733), one image at a time.

N images, C dimensions, τ the momentum.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from penstock.engine.method import Encoder
from penstock.engine.methods.byol import BYOL
from penstock.engine.methods.heads import build_head
from tests.method_steps import run

N, C, TAU, STEPS = 4, 5, 0.9, 6
INDEX = torch.arange(N)


def small(**settings: object) -> BYOL:
    torch.manual_seed(0)
    head = build_head(7, layers=2, hidden=8, dim=C, norm="hidden")
    encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), head)
    predictor = build_head(C, layers=2, hidden=6, dim=C, norm="hidden")
    return BYOL(encoder, predictor, **{"momentum": TAU, **settings})


def images(step: int) -> torch.Tensor:
    return torch.randn(2 * N, 3, 2, 2, generator=torch.Generator().manual_seed(step))


def equation_2(q: torch.Tensor, z: torch.Tensor) -> float:
    """Squared distance of one image's normalised prediction and target projection; the mean over the images."""
    total = 0.0
    for guess, target in zip(q.tolist(), z.tolist(), strict=True):
        long, wide = math.sqrt(sum(a * a for a in guess)), math.sqrt(sum(a * a for a in target))
        total += sum((a / long - b / wide) ** 2 for a, b in zip(guess, target, strict=True))
    return total / len(q)


class Paper:
    """Online network, predictor and target, trained by plain SGD in the order of the paper's algorithm 1."""

    def __init__(self, byol: BYOL) -> None:
        self.online, self.predictor, self.target = (
            copy.deepcopy(module) for module in (byol.encoder, byol.predictor, byol.encoder)
        )
        self.sgd = torch.optim.SGD([*self.online.parameters(), *self.predictor.parameters()], lr=0.1)

    def step(self, x: torch.Tensor, tau: float) -> float:
        q1, q2 = self.predictor(self.online(x[:N])), self.predictor(self.online(x[N:]))
        z1, z2 = self.target(x[:N]).detach(), self.target(x[N:]).detach()
        normal = [value / value.norm(dim=1, keepdim=True) for value in (q1, q2, z1, z2)]
        loss = ((normal[0] - normal[3]) ** 2).sum() / N + ((normal[1] - normal[2]) ** 2).sum() / N
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()
        for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
            slow.data = tau * slow.data + (1 - tau) * fast.data
        return equation_2(q1, z2) + equation_2(q2, z1)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_losses_and_target_equal_the_paper_s_over_many_steps(schedule: str) -> None:
    """All networks normalise their batch: company other than the view's own, or borrowed statistics, would show."""
    byol = small(momentum_schedule=schedule)
    paper = Paper(byol)
    sgd = torch.optim.SGD(byol.parameters(), lr=0.1)
    for k in range(STEPS):
        cosine = 1 - (1 - TAU) * (math.cos(math.pi * k / STEPS) + 1) / 2  # section 3.2
        byol.progress = k / STEPS
        loss, metrics = byol([images(k)], INDEX)
        loss.backward()
        byol.before_step()
        sgd.step()
        sgd.zero_grad()
        byol.after_step()
        expected = paper.step(images(k), cosine if schedule == "cosine" else TAU)
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        assert set(metrics) == {"std"} and 0.2 < float(metrics["std"]) < 1.2
    for ours, theirs in zip(byol.target.state_dict().values(), paper.target.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # statistics, too


def test_loss_equals_lightly_s() -> None:
    """lightly adds up negative cosines; its users take half of that. 2 - 2 cos in both directions is 4 + 2 of it."""
    lightly = pytest.importorskip("lightly.loss")
    byol, x = small(), images(0)
    first, second = x.chunk(2)
    q1, q2 = byol.predictor(byol.encoder(first)), byol.predictor(byol.encoder(second))
    criterion = lightly.NegativeCosineSimilarity()
    expected = 4 + 2 * (criterion(q1, byol.target(second)) + criterion(q2, byol.target(first)))
    assert byol([x], INDEX)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_case_worked_by_hand() -> None:
    """All networks the identity: (3, 4, 0) and (1, 0, 0) have the cosine 0.6; (2 - 1.2) in either direction is 1.6."""
    byol = BYOL(Encoder(nn.Flatten(), nn.Identity()), nn.Identity())
    x = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 0.0]])[:, :, None, None]
    assert byol([x], INDEX[:1])[0].item() == pytest.approx(1.6)


def test_the_target_takes_no_gradient_and_moves_only_after_the_step() -> None:
    byol = small()
    before = copy.deepcopy(list(byol.target.parameters()))
    byol([images(0)], INDEX)[0].backward()
    trained = [*byol.encoder.named_parameters(), *byol.predictor.named_parameters()]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for _, parameter in trained)
    assert all(parameter.grad.any() for name, parameter in trained if name.endswith("weight"))
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in byol.target.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, byol.target.parameters(), strict=True))


def test_the_target_normalises_the_batch_it_sees() -> None:
    """In training mode, with statistics of its own: the online network's move under them."""
    byol = small()
    assert byol.target.training
    nn.init.constant_(byol.encoder.backbone[1].bias, 5.0)
    byol([images(0)], INDEX)
    online, target = byol.encoder.head[1], byol.target.head[1]
    assert target.num_batches_tracked == online.num_batches_tracked == 2  # one view, then the other
    assert not torch.allclose(target.running_mean, online.running_mean)


def test_collapsed_projections_have_no_spread() -> None:
    byol = small()
    for network in (byol.encoder, byol.target):
        nn.init.zeros_(network.head[-1].weight)
    loss, metrics = byol([images(0)], INDEX)
    assert float(metrics["std"]) == pytest.approx(0.0, abs=1e-6)
    assert loss.isfinite()


def test_the_loss_is_float32_under_autocast() -> None:
    byol = small()
    with torch.autocast("cpu", torch.bfloat16):
        assert byol([images(0)], INDEX)[0].dtype == torch.float32


def test_parts_of_a_step_and_a_resumed_run_give_the_same_losses() -> None:
    """Two parts a step; the state is saved and loaded in mid-run, target and all."""
    byol, other = small(), small()
    run(byol, images, steps=range(3), of=STEPS, parts=2)
    other.load_state_dict(byol.state_dict())
    assert run(byol, images, steps=range(3, STEPS), of=STEPS, parts=2) == run(
        other, images, steps=range(3, STEPS), of=STEPS, parts=2
    )
