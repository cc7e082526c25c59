"""SimCLR against equation 1 of arXiv 2002.05709, written out pair by pair, and against lightly's loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from penstock.engine.distributed import Team
from penstock.engine.method import Encoder
from penstock.engine.methods import contrastive
from penstock.engine.methods.contrastive import mix_hardest
from penstock.engine.methods.simclr import SimCLR
from tests.method_steps import run

N, C, T = 6, 8, 0.3


def simclr(**options: Any) -> SimCLR:
    """The embedding is the image itself: what goes in is compared."""
    return SimCLR(Encoder(nn.Flatten(), nn.Identity()), temperature=T, **options)


def batch(number: int) -> torch.Tensor:
    return images(seed=number)


def images(*, count: int = N, seed: int = 0) -> torch.Tensor:
    return torch.randn(2 * count, C, 1, 1, generator=torch.Generator().manual_seed(seed))


def similarity(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return u @ v / (u.norm() * v.norm())


def nt_xent(z: torch.Tensor) -> torch.Tensor:
    """Equation 1 for each ordered pair, and their mean; z [2N, C], first views, then second ones."""
    terms = []
    for i in range(len(z)):
        j = (i + len(z) // 2) % len(z)
        others = [torch.exp(similarity(z[i], z[k]) / T) for k in range(len(z)) if k != i]
        terms.append(-torch.log(torch.exp(similarity(z[i], z[j]) / T) / sum(others)))
    return torch.stack(terms).mean()


def test_the_loss_and_its_gradient_are_the_papers() -> None:
    x = images().requires_grad_()
    loss, metrics = simclr().loss([x], torch.arange(N))
    expected = nt_xent(x.flatten(1))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(expected, x))
    assert set(metrics) == set(SimCLR.metrics)


def test_the_loss_is_lightlys() -> None:
    lightly = pytest.importorskip("lightly.loss")
    x = images(count=16)
    first, second = x.flatten(1).chunk(2)
    expected = lightly.NTXentLoss(temperature=T)(first, second)
    torch.testing.assert_close(simclr().loss([x], torch.arange(16))[0], expected)


def test_two_orthogonal_pairs_by_hand() -> None:
    """Each of the four has one positive of similarity 1 and two negatives of similarity 0: log(1 + 2·exp(−1/T))."""
    x = torch.tensor([[3.0, 0.0], [0.0, 0.5], [1.0, 0.0], [0.0, 2.0]])[..., None, None]
    loss, metrics = simclr().loss([x], torch.arange(2))
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-1 / T)), rel=1e-6)
    assert metrics["accuracy"].item() == 1
    swapped, metrics = simclr().loss([x[[0, 1, 3, 2]]], torch.arange(2))  # each image's other view is the other axis
    assert swapped.item() == pytest.approx(math.log(2 + math.exp(1 / T)), rel=1e-6)
    assert metrics["accuracy"].item() == 0


def test_a_collapsed_network_scores_the_logarithm_of_the_choices() -> None:
    """All similarities are equal, so each embedding guesses among the 2N − 1 others."""
    loss, metrics = simclr().loss([torch.ones(2 * N, C, 1, 1)], torch.arange(N))
    assert loss.item() == pytest.approx(math.log(2 * N - 1), rel=1e-6)
    assert metrics["std"].item() == pytest.approx(0, abs=1e-6)


def test_both_views_are_normalised_together() -> None:
    """One batch of 2N: BatchNorm sees it once, whole."""
    encoder = Encoder(nn.Flatten(), nn.BatchNorm1d(C))
    x = images() + 2
    SimCLR(encoder).loss([x], torch.arange(N))
    assert int(encoder.head.num_batches_tracked) == 1
    torch.testing.assert_close(encoder.head.running_mean, 0.1 * x.flatten(1).mean(0))


@pytest.mark.parametrize("options", [{}, {"debias": 0.1}])
def test_ranks_average_to_one_rank_with_all_images(options: dict[str, Any]) -> None:
    """Each rank's mean over its own embeddings against everybody's; everybody's carry gradient, too."""
    x = images(count=2 * N).requires_grad_()
    whole, metrics = simclr(**options).loss([x], torch.arange(2 * N))
    first, second = x.chunk(2)
    shares = [torch.cat([first[part], second[part]]) for part in (slice(N), slice(N, 2 * N))]
    z = [normalize(share.flatten(1)) for share in shares]
    ranks = [
        simclr(**options, team=Team(rank=rank, world=2)).contrast(z[rank], torch.cat(z))  # what gather gives
        for rank in range(2)
    ]
    mean = sum(loss for loss, _ in ranks) / 2
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(torch.autograd.grad(mean, x), torch.autograd.grad(whole, x))
    assert sum(accuracy.item() for _, accuracy in ranks) / 2 == pytest.approx(metrics["accuracy"].item())


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_debiased_loss_counts_2n_minus_2_negatives(share: float) -> None:
    x = images()
    z = normalize(x.flatten(1))
    terms = []
    for i in range(2 * N):
        j = (i + N) % (2 * N)
        positive = math.exp(z[i] @ z[j] / T)
        total = sum(math.exp(z[i] @ z[k] / T) for k in range(2 * N) if k not in (i, j))
        count = 2 * N - 2
        g = max((total - share * count * positive) / (1 - share), count * math.exp(-1 / T))
        terms.append(-math.log(positive / (positive + g)))
    loss, _ = simclr(debias=share).loss([x], torch.arange(N))
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_mixtures_of_other_images_only_and_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all 2N − 2 negatives as the hardest, neither the query nor its positive is among them."""
    made: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(q: torch.Tensor, keys: torch.Tensor, hardest: torch.Tensor, **rest: Any) -> torch.Tensor:
        made.append((hardest, mix_hardest(q, keys, hardest, **rest)))
        return made[-1][1]

    monkeypatch.setattr(contrastive, "mix_hardest", spy)
    x = images().requires_grad_()
    method = simclr(mochi=(2 * N - 2, 5, 3))
    method.progress = 1.0
    loss, _ = method.loss([x], torch.arange(N))
    hardest, mixtures = made[0]
    terms, z = [], normalize(x.flatten(1))
    for i in range(2 * N):
        j = (i + N) % (2 * N)
        assert sorted(hardest[i].tolist()) == [k for k in range(2 * N) if k not in (i, j)]
        others = [torch.exp(z[i] @ z[k] / T) for k in range(2 * N) if k != i]
        others += [torch.exp(z[i] @ h / T) for h in mixtures[i]]
        terms.append(-torch.log(torch.exp(z[i] @ z[j] / T) / sum(others)))
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(expected, x))


def test_a_restored_run_goes_on_as_the_saved_one() -> None:
    def trained() -> SimCLR:
        torch.manual_seed(0)
        return SimCLR(Encoder(nn.Flatten(), nn.Linear(C, C)), temperature=T, mochi=(4, 3, 2))

    whole, stopped = trained(), trained()
    losses = run(whole, batch, steps=range(6), of=6)
    run(stopped, batch, steps=range(3), of=6)
    restored = trained()
    restored.load_state_dict(stopped.state_dict())
    assert run(restored, batch, steps=range(3, 6), of=6) == losses[3:]


def test_it_runs_in_half_precision_around_and_float32_within() -> None:
    encoder = Encoder(nn.Flatten(), nn.Linear(C, C))
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = SimCLR(encoder, temperature=0.05).loss([x], torch.arange(N))
        z = encoder(x)
    assert z.dtype == torch.bfloat16 and loss.dtype == torch.float32
    expected, _ = SimCLR(Encoder(nn.Identity(), nn.Identity()), temperature=0.05).loss([z.float()], torch.arange(N))
    torch.testing.assert_close(loss, expected)
    assert all(value.dtype == torch.float32 for value in metrics.values())
