"""SimSiam against the paper's equations 1 and 2 (arXiv 2011.10566), one image at a time.

N images, C dimensions.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from penstock.engine.method import Encoder
from penstock.engine.methods.heads import build_head
from penstock.engine.methods.simsiam import SimSiam, mean_cosine
from tests.method_steps import run

N, C = 4, 5
INDEX = torch.arange(N)


def small() -> SimSiam:
    torch.manual_seed(0)
    head = build_head(7, layers=2, hidden=8, dim=C, norm="all")
    encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), head)
    return SimSiam(encoder, build_head(C, layers=2, hidden=3, dim=C, norm="hidden"))


def images(step: int) -> torch.Tensor:
    return torch.randn(2 * N, 3, 2, 2, generator=torch.Generator().manual_seed(step))


def distance(p: list[float], z: list[float]) -> float:
    """Equation 1, negative cosine similarity, of one image."""
    dot = sum(a * b for a, b in zip(p, z, strict=True))
    return -dot / (math.sqrt(sum(a * a for a in p)) * math.sqrt(sum(b * b for b in z)))


def test_loss_equals_the_paper_s_equations_view_by_view() -> None:
    """Encoder and predictor normalise their batch, so another company than the view's own would show."""
    simsiam = small()
    twin, x = copy.deepcopy(simsiam), images(0)
    loss, metrics = simsiam([x], INDEX)
    z1, z2 = twin.encoder(x[:N]), twin.encoder(x[N:])
    p1, p2 = twin.predictor(z1).tolist(), twin.predictor(z2).tolist()
    z1, z2 = z1.tolist(), z2.tolist()
    expected = sum(distance(p1[n], z2[n]) / 2 + distance(p2[n], z1[n]) / 2 for n in range(N)) / N
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert set(metrics) == {"std"} and 0.3 < float(metrics["std"]) < 1.2


def test_loss_equals_lightly_s() -> None:
    lightly = pytest.importorskip("lightly.loss")
    simsiam, x = small(), images(0)
    z1, z2 = simsiam.encoder(x[:N]), simsiam.encoder(x[N:])
    p1, p2 = simsiam.predictor(z1), simsiam.predictor(z2)
    criterion = lightly.NegativeCosineSimilarity()
    expected = 0.5 * (criterion(p1, z2.detach()) + criterion(p2, z1.detach()))
    assert simsiam([x], INDEX)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_case_worked_by_hand() -> None:
    """Both networks the identity: z₁ = (3, 4, 0) and z₂ = (1, 0, 0) have the cosine 3/5, so the loss is -0.6."""
    simsiam = SimSiam(Encoder(nn.Flatten(), nn.Identity()), nn.Identity())
    x = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 0.0]])[:, :, None, None]
    assert simsiam([x], INDEX[:1])[0].item() == pytest.approx(-0.6)


def test_the_side_that_is_guessed_takes_no_gradient() -> None:
    """Gradients are those of a loss in which the projections that are guessed are mere numbers."""
    simsiam, x = small(), images(0)
    twin = copy.deepcopy(simsiam)
    simsiam([x], INDEX)[0].backward()
    with torch.no_grad():
        frozen = copy.deepcopy(twin.encoder)
        numbers1, numbers2 = frozen(x[:N]), frozen(x[N:])
    p1, p2 = twin.predictor(twin.encoder(x[:N])), twin.predictor(twin.encoder(x[N:]))
    (-mean_cosine(p1, numbers2) / 2 - mean_cosine(p2, numbers1) / 2).backward()
    for (name, ours), theirs in zip(simsiam.named_parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None and ours.grad.any(), name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


def test_the_predictor_keeps_its_learning_rate() -> None:
    simsiam = small()
    assert simsiam.unscheduled == ("predictor",)
    assert simsiam.get_submodule("predictor") is simsiam.predictor


def test_collapsed_projections_have_no_spread() -> None:
    """Every image has the head's bias for a projection; a BatchNorm behind it would not let that pass."""
    torch.manual_seed(0)
    encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), nn.Linear(7, C))
    nn.init.zeros_(encoder.head.weight)
    loss, metrics = SimSiam(encoder, nn.Identity())([images(0)], INDEX)
    assert loss.item() == pytest.approx(-1.0)  # the trivial solution: that is why std is watched
    assert float(metrics["std"]) == pytest.approx(0.0, abs=1e-6)


def test_cosines_are_taken_in_float32() -> None:
    p, z = torch.randn(N, C).bfloat16(), torch.randn(N, C).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mean_cosine(p, z), mean_cosine(p.float(), z.float()))


def test_parts_of_a_step_and_a_resumed_run_give_the_same_losses() -> None:
    """Two parts a step; the state is saved and loaded in mid-run."""
    simsiam, other = small(), small()
    run(simsiam, images, steps=range(3), of=6, parts=2)
    other.load_state_dict(simsiam.state_dict())
    assert run(simsiam, images, steps=range(3, 6), of=6, parts=2) == run(
        other, images, steps=range(3, 6), of=6, parts=2
    )
