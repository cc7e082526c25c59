"""SwAV against the paper (arXiv 2006.09882): its equations 1 and 2, its algorithm 1 in NumPy, queues as plain lists.

N images, V views, C dimensions, P prototypes, K the queues' length.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from penstock.engine.distributed import Team
from penstock.engine.method import Encoder
from penstock.engine.methods.heads import build_head
from penstock.engine.methods.swav import SwAV, sinkhorn
from penstock.engine.optimizer import parameter_groups
from tests.method_steps import oldest_first
from tests.ranks import on_ranks

N, C, P, K = 4, 5, 6, 10
T, EPSILON, ITERATIONS = 0.1, 0.05, 3
INDEX = torch.arange(N)


def small(*, norm: str = "hidden", prototypes: int = P, **settings: Any) -> SwAV:
    """BatchNorm in the backbone, too: whoever is encoded together shows."""
    torch.manual_seed(0)
    layers = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 7)]  # views of any size
    if norm == "hidden":
        layers.insert(0, nn.BatchNorm2d(3))
    encoder = Encoder(nn.Sequential(*layers), build_head(7, layers=2, hidden=8, dim=C, norm=norm))
    return SwAV(encoder, dim=C, prototypes=prototypes, temperature=T, epsilon=EPSILON, **settings)


def crops(step: int, small_views: int = 3) -> list[torch.Tensor]:
    """Two large views and some small ones, [V·N, 3, S, S] each."""
    generator = torch.Generator().manual_seed(step)
    large = torch.randn(2 * N, 3, 4, 4, generator=generator)
    return [large, torch.randn(small_views * N, 3, 2, 2, generator=generator)] if small_views else [large]


def algorithm_1(scores: np.ndarray, *, epsilon: float = EPSILON, iterations: int = ITERATIONS) -> np.ndarray:
    """The pseudo-code's `sinkhorn`, in float64: scores [B, P] -> codes [B, P]."""
    q = np.exp(scores.astype(np.float64) / epsilon).T
    q /= q.sum()
    prototypes, images = q.shape
    for _ in range(iterations):
        q *= (np.ones(prototypes) / prototypes / q.sum(axis=1))[:, None]
        q *= (np.ones(images) / images / q.sum(axis=0))[None, :]
    return (q / q.sum(axis=0, keepdims=True)).T


def swapped(z: list[np.ndarray], prototypes: np.ndarray, queues: list[list[np.ndarray]]) -> float:
    """Equations 1 and 2, extended to V views as in section 3.2: z are V embeddings [N, C], the first two large."""
    total = 0.0
    for view in range(2):
        rows = [*z[view], *queues[view]]
        q = algorithm_1(np.array([[row @ prototype for prototype in prototypes] for row in rows]))
        of_view = 0.0
        for other in range(len(z)):
            if other == view:
                continue
            for n in range(N):
                exponentials = [math.exp(z[other][n] @ prototype / T) for prototype in prototypes]
                for k in range(len(prototypes)):
                    of_view -= q[n, k] * math.log(exponentials[k] / sum(exponentials)) / N
        total += of_view / (len(z) - 1)
    return total / 2


def embeddings(encoder: Encoder, views: list[torch.Tensor]) -> list[np.ndarray]:
    """V times [N, C]: the backbone sees each resolution, the head all of them."""
    with torch.no_grad():
        z = encoder.head(torch.cat([encoder.backbone(group) for group in views]))
    unit = z.double() / z.double().norm(dim=1, keepdim=True)
    return [part.numpy() for part in unit.split(N)]


@pytest.mark.parametrize("small_views", [0, 1, 3])
def test_loss_equals_the_paper_s_equations(small_views: int) -> None:
    swav = small()
    views = crops(0, small_views)
    z = embeddings(copy.deepcopy(swav.encoder), views)
    expected = swapped(z, swav.prototypes.detach().double().numpy(), [[], []])
    loss, metrics = swav(views, INDEX)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert set(metrics) == {"std"} and 0.2 < float(metrics["std"]) < 1.2


def test_loss_equals_lightly_s() -> None:
    lightly = pytest.importorskip("lightly.loss")
    swav, views = small(queue=K), crops(0)
    for queue in swav.queues:
        queue.pushed = K
    scores = swav.encode(views) @ swav.prototypes.T
    parts, old = list(scores.split(N)), [queue.keys @ swav.prototypes.T for queue in swav.queues]
    criterion = lightly.SwaVLoss(temperature=T, sinkhorn_iterations=ITERATIONS, sinkhorn_epsilon=EPSILON)
    expected = criterion(parts[:2], parts[2:], old)
    assert swav(views, INDEX)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_worked_by_hand() -> None:
    """A single image is shared evenly among two prototypes: its code is (½, ½) whatever its embedding.

    Both views are (1, 0), the prototypes (1, 0) and (0, 1), and T = 0.1: a prediction is softmax(10, 0). The loss is
    -½ log p₁ - ½ log p₂ = log(1 + e⁻¹⁰) + ½ · 10.
    """
    swav = SwAV(Encoder(nn.Flatten(), nn.Identity()), dim=2, prototypes=2, temperature=0.1)
    with torch.no_grad():
        swav.prototypes.copy_(torch.eye(2))
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[:, :, None, None]
    assert swav([x], INDEX[:1])[0].item() == pytest.approx(math.log(1 + math.exp(-10)) + 5)


def test_sinkhorn_worked_by_hand() -> None:
    """exp(scores / ε) is [[4, 1], [1, 1]], a row for an image.

    Once: columns add up to 5 and 2, so [[4/5, 1/2], [1/5, 1/2]]; rows to 13/10 and 7/10, so [[8/13, 5/13], [2/7, 5/7]].
    For ever: rows and columns of 1 with the ratio 4·1/(1·1) of the diagonals' products kept: x²/(1 - x)² = 4, x = 2/3.
    """
    scores = EPSILON * torch.tensor([[4.0, 1.0], [1.0, 1.0]]).log()
    once = sinkhorn(scores, epsilon=EPSILON, iterations=1, team=Team())
    torch.testing.assert_close(once, torch.tensor([[8 / 13, 5 / 13], [2 / 7, 5 / 7]]))
    for_ever = sinkhorn(scores, epsilon=EPSILON, iterations=50, team=Team())
    torch.testing.assert_close(for_ever, torch.tensor([[2 / 3, 1 / 3], [1 / 3, 2 / 3]]))


@pytest.mark.parametrize("epsilon", [0.5, 0.05, 0.005])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_sinkhorn_equals_algorithm_1(epsilon: float, iterations: int) -> None:
    scores = 2 * torch.rand(20, P, generator=torch.Generator().manual_seed(0)) - 1
    ours = sinkhorn(scores, epsilon=epsilon, iterations=iterations, team=Team())
    expected = torch.from_numpy(algorithm_1(scores.numpy(), epsilon=epsilon, iterations=iterations)).float()
    torch.testing.assert_close(ours, expected, rtol=2e-3 if epsilon < 0.05 else 1e-4, atol=1e-6)


def test_after_many_iterations_prototypes_share_the_images_evenly() -> None:
    scores = torch.randn(20, P, generator=torch.Generator().manual_seed(0)) / 4
    q = sinkhorn(scores, epsilon=EPSILON, iterations=200, team=Team())
    torch.testing.assert_close(q.sum(1), torch.ones(20))
    torch.testing.assert_close(q.sum(0), torch.full((P,), 20 / P), rtol=1e-4, atol=1e-4)


def test_sinkhorn_is_safe_where_float32_is_not() -> None:
    """exp(1 / 1e-3) overflows, and no image is anywhere near the last prototype: its column would add up to 0."""
    scores = torch.rand(8, P, generator=torch.Generator().manual_seed(0))
    scores[:, -1] = -1.0
    q = sinkhorn(scores, epsilon=1e-3, iterations=3, team=Team())
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(8))


def test_codes_carry_no_gradient() -> None:
    """Gradients are those of a loss in which the codes are mere numbers; queues take none."""
    swav, views = small(queue=K), crops(0)
    for queue in swav.queues:
        queue.pushed = K
    twin = copy.deepcopy(swav)
    swav(views, INDEX)[0].backward()
    z = normalize(twin.encoder.head(torch.cat([twin.encoder.backbone(group) for group in views])))
    scores, loss = (z @ twin.prototypes.T).split(N), torch.zeros(())
    for view in range(2):
        rows = torch.cat([scores[view], twin.queues[view].keys @ twin.prototypes.T]).detach()
        q = torch.from_numpy(algorithm_1(rows.numpy())[:N]).float()
        for other in set(range(5)) - {view}:
            loss = loss - (q * (scores[other] / T).softmax(1).log()).sum() / N / 4 / 2
    loss.backward()
    for (name, ours), theirs in zip(swav.named_parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    assert swav.prototypes.grad.any() and swav.encoder.backbone[0].weight.grad.any()
    assert not any(queue.keys.requires_grad for queue in swav.queues)


def train(
    swav: SwAV, *, steps: range, of: int, parts: int = 1, sgd: torch.optim.Optimizer | None = None
) -> list[float]:
    """As the loop does it; with momentum and weight decay, which move whatever has a gradient."""
    sgd = sgd or torch.optim.SGD(swav.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    losses = []
    for step in steps:
        swav.progress = step / of
        for part in range(parts):
            loss, _ = swav(crops(10 * step + part), INDEX)
            (loss / parts).backward()
            losses.append(loss.item())
        swav.before_step()
        sgd.step()
        sgd.zero_grad()
        swav.after_step()
    return losses


@pytest.mark.parametrize("start", [0, 2, 5])
def test_queues_equal_plain_lists_of_the_last_embeddings(start: int) -> None:
    """K = 10 is no multiple of N = 4: full after the third step, used from the fourth, or later if told to start so."""
    swav = small(queue=K, queue_start=start / 8)
    for queue in swav.queues:
        queue.keys.fill_(torch.nan)  # what queues begin with must never be used
    lists: list[list[np.ndarray]] = [[], []]
    sgd = torch.optim.SGD(swav.parameters(), lr=0.1)
    for step in range(8):
        z = embeddings(copy.deepcopy(swav.encoder), crops(10 * step))
        uses = step >= max(start, 3)
        assert uses == (step >= start and len(lists[0]) == K)
        expected = swapped(z, swav.prototypes.detach().double().numpy(), lists if uses else [[], []])
        assert train(swav, steps=range(step, step + 1), of=8, sgd=sgd) == [pytest.approx(expected, rel=1e-4)]
        lists = [(lists[view] + list(z[view]))[-K:] for view in range(2)]
    for queue, rows in zip(swav.queues, lists, strict=True):
        assert queue.pushed == 8 * N
        torch.testing.assert_close(oldest_first(queue).double(), torch.from_numpy(np.array(rows)), rtol=1e-5, atol=1e-6)


def test_the_parts_of_a_step_enter_the_queues_when_it_is_over() -> None:
    swav = small(queue=2 * N)
    first = embeddings(copy.deepcopy(swav.encoder), crops(0))
    swav(crops(0), INDEX)[0].backward()
    second = embeddings(copy.deepcopy(swav.encoder), crops(1))
    swav(crops(1), INDEX)[0].backward()
    assert [queue.pushed for queue in swav.queues] == [0, 0]
    swav.after_step()
    for view, queue in enumerate(swav.queues):
        expected = torch.from_numpy(np.concatenate([first[view], second[view]])).float()
        torch.testing.assert_close(oldest_first(queue), expected)


def test_prototypes_are_of_unit_length_at_every_forward_pass() -> None:
    swav = small()
    for step in range(3):
        torch.testing.assert_close(swav.prototypes.norm(dim=1), torch.ones(P))
        before = swav.prototypes.detach().clone()
        train(swav, steps=range(step, step + 1), of=3)
        assert not torch.allclose(swav.prototypes, before, atol=1e-4)


def test_frozen_prototypes_do_not_move() -> None:
    """For the first half of the run, bit for bit, whatever momentum and weight decay would do."""
    swav = small(frozen=0.5)
    sgd = torch.optim.SGD(swav.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    before = swav.prototypes.detach().clone()
    train(swav, steps=range(3), of=6, sgd=sgd)
    assert torch.equal(swav.prototypes, before)
    train(swav, steps=range(3, 4), of=6, sgd=sgd)
    assert not torch.allclose(swav.prototypes, before, atol=1e-4)


def test_the_fused_optimizer_takes_prototypes_that_join_late() -> None:
    """torch's fused SGD fails where some of a group's parameters have a momentum and some have none yet."""
    swav = small(frozen=0.5)
    groups = [{"params": group["params"]} for group in parameter_groups(swav, apart=False)]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=True)
    before = swav.prototypes.detach().clone()
    train(swav, steps=range(6), of=6, sgd=sgd)
    assert not torch.allclose(swav.prototypes, before, atol=1e-4)


def test_prototypes_follow_from_the_seed() -> None:
    assert torch.equal(small(seed=1).prototypes, small(seed=1).prototypes)
    assert not torch.equal(small(seed=1).prototypes, small(seed=2).prototypes)


def test_a_resumed_run_gives_the_same_losses() -> None:
    """Saved and loaded in mid-run, two parts a step, while the queues are in use and prototypes move."""
    swav, other = (small(queue=K, frozen=0.2) for _ in range(2))
    train(swav, steps=range(4), of=8, parts=2)
    other.load_state_dict(swav.state_dict())
    assert train(swav, steps=range(4, 8), of=8, parts=2) == train(other, steps=range(4, 8), of=8, parts=2)


def test_scores_and_loss_are_float32_under_autocast() -> None:
    swav, views = small(), crops(0)
    z = torch.randn(5 * N, C)
    swav.encode = lambda views: normalize(z)
    expected = swav(views, INDEX)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(swav(views, INDEX)[0], expected)


def test_collapsed_embeddings_have_no_spread() -> None:
    """The same embedding for all: every prototype gets its share of every image, and the loss is finite."""
    swav = small()
    nn.init.zeros_(swav.encoder.head[-1].weight)
    loss, metrics = swav(crops(0), INDEX)
    loss.backward()
    assert float(metrics["std"]) == pytest.approx(0.0, abs=1e-6)
    assert loss.isfinite() and all(value.grad.isfinite().all() for value in swav.parameters())


def whole_batch(team: Team, folder: Path) -> dict[str, Any]:
    """Three steps, the last with queues, on each rank's part of every view; losses are the mean over the ranks."""
    swav = small(norm="none", queue=2 * N, team=team)
    model, sgd, losses = team.wrap(swav), torch.optim.SGD(swav.parameters(), lr=0.1), []
    for step in range(3):
        views = [torch.cat([team.own(view) for view in group.split(N)]) for group in crops(step)]
        loss, _ = model(views, team.own(INDEX))
        loss.backward()
        sgd.step()
        sgd.zero_grad()
        swav.after_step()
        losses.append(team.mean(loss.detach()))
    return {"losses": torch.stack(losses), "state": swav.state_dict()}


def test_two_ranks_give_one_rank_s_losses_weights_and_queues(tmp_path: Path) -> None:
    expected = whole_batch(Team(), tmp_path)
    ranks = on_ranks(whole_batch, tmp_path)
    for rank in ranks:
        torch.testing.assert_close(rank["losses"], expected["losses"], rtol=1e-4, atol=1e-5)
        for name, value in expected["state"].items():
            torch.testing.assert_close(rank["state"][name], value, rtol=1e-3, atol=1e-4)
    for name in ("queues.0.keys", "queues.1.keys"):
        assert torch.equal(ranks[0]["state"][name], ranks[1]["state"][name])
