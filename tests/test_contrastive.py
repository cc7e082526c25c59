"""What MoCo and SimCLR share, against the papers' equations written out one query at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from penstock.engine.method import Encoder
from penstock.engine.methods import contrastive
from penstock.engine.methods.contrastive import Contrastive, debiased_info_nce, mix_hardest
from penstock.engine.methods.embedding import embedding_std
from penstock.engine.methods.momentum import Follower, momentum_copy, scheduled_momentum
from penstock.errors import UserError

Q, M, C = 5, 40, 16


def contrast(**options: object) -> Contrastive:
    return Contrastive(Encoder(nn.Identity(), nn.Identity()), temperature=0.2, **options)


def problem(seed: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities of Q queries over the temperature, and where each has its positive."""
    generator = torch.Generator().manual_seed(seed)
    similarities = torch.rand(Q, M, generator=generator) * 2 - 1
    return similarities / temperature, torch.randint(M, (Q,), generator=generator)


def negatives_of(logits: torch.Tensor, right: torch.Tensor, query: int) -> list[float]:
    return [value for column, value in enumerate(logits[query].tolist()) if column != int(right[query])]


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_info_nce_is_the_papers(temperature: float) -> None:
    logits, right = problem(0, temperature)
    loss, accuracy = contrast().info_nce(torch.zeros(Q, C), logits, right, torch.zeros(M, C), negatives=M - 1)
    terms, hits = [], 0
    for query in range(Q):
        positive, others = logits[query, right[query]].item(), negatives_of(logits, right, query)
        terms.append(-math.log(math.exp(positive) / (math.exp(positive) + sum(map(math.exp, others)))))
        hits += positive > max(others)
    assert loss.item() == pytest.approx(sum(terms) / Q, rel=1e-5)
    assert accuracy.item() == pytest.approx(hits / Q)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.6])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_debiased_loss_is_the_papers(temperature: float, share: float) -> None:
    logits, right = problem(1, temperature)
    terms, floors = [], 0
    for query in range(Q):
        positive = math.exp(logits[query, right[query]].item())
        total = sum(map(math.exp, negatives_of(logits, right, query)))
        estimate = (total - share * (M - 1) * positive) / (1 - share)
        least = (M - 1) * math.exp(-1 / temperature)
        floors += least > estimate
        terms.append(-math.log(positive / (positive + max(estimate, least))))
    loss = debiased_info_nce(logits, right, negatives=M - 1, share=share, temperature=temperature)
    assert loss.item() == pytest.approx(sum(terms) / Q, rel=1e-4)
    assert floors == 0 or share > 0.01  # both branches of the maximum are met
    assert floors > 0 or share < 0.6


def test_the_debiased_loss_by_hand() -> None:
    """A positive of similarity 1, two negatives of similarity 0, T = 1: e⁺ = e, the negatives' sum is 2.

    τ⁺ = .1: Ng = (2 − .1·2·e) / .9 = 1.618, and −log(e / (e + 1.618)) = log(1 + 1.618/e) = .467.
    τ⁺ = .5: Ng = (2 − e) / .5 is below 0, so it is 2·exp(−1), and the loss log(1 + 2/e²) = .239.
    """
    logits, right = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0])
    for share, expected in ((0.1, math.log(1 + (2 - 0.2 * math.e) / 0.9 / math.e)), (0.5, math.log(1 + 2 / math.e**2))):
        loss = debiased_info_nce(logits, right, negatives=2, share=share, temperature=1.0)
        assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_debiased_loss_without_bias_is_info_nce_also_where_exponentials_overflow() -> None:
    for temperature in (0.5, 0.005):  # exp(200) is no float32
        logits, right = problem(2, temperature)
        logits.requires_grad_()
        loss = debiased_info_nce(logits, right, negatives=M - 1, share=0.0, temperature=temperature)
        expected = nn.functional.cross_entropy(logits, right)
        torch.testing.assert_close(loss, expected)
        (ours,), (theirs,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
        torch.testing.assert_close(ours, theirs)


def test_what_is_not_compared_neither_counts_nor_takes_a_gradient() -> None:
    """As SimCLR's similarity of an embedding with itself."""
    logits, right = torch.tensor([[1.0, 0.5, 0.2, -torch.inf]], requires_grad=True), torch.tensor([0])
    loss = debiased_info_nce(logits, right, negatives=2, share=0.1, temperature=1.0)
    without = debiased_info_nce(logits[:, :3], right, negatives=2, share=0.1, temperature=1.0)
    assert loss.item() == without.item()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all() and gradient[0, 3] == 0


def mixed(pairs: int, with_query: int, hardest: torch.Tensor) -> torch.Tensor:
    """Mixtures of orthogonal keys and a query orthogonal to all: each coordinate says what went in."""
    axes = torch.eye(C)
    generator = torch.Generator().manual_seed(0)
    queries = axes[-1].expand(len(hardest), C)
    return mix_hardest(queries, axes[:-1], hardest, pairs=pairs, with_query=with_query, generator=generator)


def test_a_mixture_of_two_is_of_two_different_ones_of_the_hardest() -> None:
    hardest = torch.tensor([[2, 5, 7], [1, 0, 3]])
    mixtures = mixed(500, 0, hardest)
    assert mixtures.shape == (2, 500, C)
    torch.testing.assert_close(mixtures.norm(dim=2), torch.ones(2, 500))
    for allowed, ours in zip(hardest.tolist(), mixtures, strict=True):
        members = ours > 0
        assert (members.sum(1) == 2).all() and (ours >= 0).all()
        assert set(members.nonzero()[:, 1].tolist()) == set(allowed)
        pairs = {tuple(row.nonzero().flatten().tolist()) for row in members}
        assert len(pairs) == 3  # any two of three
        first = torch.stack([row[row > 0][0] / row.sum() for row in ours])  # α or 1 − α, uniform in (0, 1)
        assert 0.45 < first.mean() < 0.55 and first.min() < 0.05 and first.max() > 0.95
    assert not torch.equal(mixtures[0][:, [2, 5, 7]], mixtures[1][:, [1, 0, 3]])  # each query has its own draws


def test_a_mixture_with_the_query_is_more_of_the_negative() -> None:
    hardest = torch.tensor([[2, 5, 7]])
    mixtures = mixed(0, 500, hardest)[0]
    torch.testing.assert_close(mixtures.norm(dim=1), torch.ones(500))
    assert ((mixtures > 0).sum(1) == 2).all()
    assert set(mixtures[:, :-1].nonzero()[:, 1].tolist()) == {2, 5, 7}
    beta = mixtures[:, -1] / mixtures.sum(1)  # uniform in (0, ½)
    assert beta.max() < 0.5 and beta.max() > 0.48 and beta.min() < 0.02 and 0.23 < beta.mean() < 0.27


def test_mixtures_are_harder_than_what_they_are_made_of() -> None:
    """Why the paper normalises: a mean of two unit vectors is shorter than its parts, so it points closer to both."""
    generator = torch.Generator().manual_seed(0)
    q, keys = (normalize(torch.randn(n, C, generator=generator)) for n in (Q, 200))
    similarities = q @ keys.T
    hardest = similarities.topk(8).indices
    of_two, of_query = mix_hardest(q, keys, hardest, pairs=300, with_query=300, generator=generator).split(300, 1)
    chosen = similarities.gather(1, hardest).mean(1)
    for mixtures in (of_two, of_query):
        assert (torch.einsum("qc,qsc->qs", q, mixtures).mean(1) > chosen).all()


def test_mochi_adds_negatives_to_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss and its gradient, written from the equation around the mixtures that were made."""
    made: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(q: torch.Tensor, keys: torch.Tensor, hardest: torch.Tensor, **rest: object) -> torch.Tensor:
        made.append((hardest, mix_hardest(q, keys, hardest, **rest)))
        return made[-1][1]

    monkeypatch.setattr(contrastive, "mix_hardest", spy)
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(Q, C, generator=generator, requires_grad=True)
    keys, own = (normalize(torch.randn(n, C, generator=generator)) for n in (M, Q))
    method = contrast(mochi=(6, 4, 3))
    method.progress = 1.0

    q = normalize(raw)
    logits = torch.cat([(q * own).sum(1, keepdim=True), q @ keys.T], 1) / 0.2
    loss, _ = method.info_nce(q, logits, torch.zeros(Q, dtype=torch.long), keys, negatives=M)
    (gradient,) = torch.autograd.grad(loss, raw)

    q, terms = normalize(raw), []
    hardest, mixtures = made[0]
    for query in range(Q):
        order = (q[query] @ keys.T).argsort(descending=True).tolist()
        assert sorted(hardest[query].tolist()) == sorted(order[:6])
        positive = torch.exp(q[query] @ own[query] / 0.2)
        negatives = [torch.exp(q[query] @ n / 0.2) for n in (*keys, *mixtures[query])]
        assert len(negatives) == M + 4 + 3
        terms.append(-torch.log(positive / (positive + sum(negatives))))
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, raw)[0])


def test_mixtures_wait_for_the_warm_up_and_are_others_each_time() -> None:
    generator = torch.Generator().manual_seed(0)
    q, keys = (normalize(torch.randn(n, C, generator=generator)) for n in (Q, M))
    logits, right = q @ keys.T / 0.2, torch.arange(Q)

    def loss(method: Contrastive) -> float:
        return method.info_nce(q, logits, right, keys, negatives=M - 1)[0].item()

    method, plain = contrast(mochi=(6, 4, 3)), nn.functional.cross_entropy(logits, right).item()
    assert loss(method) == plain  # progress is 0
    method.after_step()
    method.progress = 0.05
    losses = [loss(method), loss(method)]  # two parts of one step
    method.after_step()
    losses.append(loss(method))
    assert min(losses) > plain and len(set(losses)) == 3
    again = contrast(mochi=(6, 4, 3))
    again.load_state_dict({"_extra_state": {"steps": 1}})
    again.progress = 0.05
    assert [loss(again), loss(again)] == losses[:2]  # they follow from seed and step
    other = contrast(mochi=(6, 4, 3), seed=1)
    other.progress, other.steps = 0.05, 1
    assert loss(other) != losses[0]


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="leave one of them out"):
        contrast(debias=0.1, mochi=(6, 4, 3))
    for nothing in ((1, 4, 3), (6, 0, 0), (6, -1, 3)):
        with pytest.raises(UserError, match="at least 2 hard negatives to make at least 1 mixture"):
            contrast(mochi=nothing)
    method = contrast(mochi=(40, 4, 3))  # noticed at the first step, not when the warm-up is over
    logits, right = problem(0, 0.2)
    with pytest.raises(UserError, match="the 40 hardest of 39 negatives: use at most --mochi 39 4 3"):
        method.info_nce(torch.zeros(Q, C), logits, right, torch.zeros(M, C), negatives=M - 1)


@pytest.mark.parametrize("mochi", [(6, 4, 0), (6, 0, 3), (2, 1, 1), (39, 1, 1)])
def test_either_kind_of_mixture_can_be_had_alone(mochi: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, keys = (normalize(torch.randn(n, C, generator=generator)) for n in (Q, M))
    method = contrast(mochi=mochi)
    method.progress = 1.0
    loss, _ = method.info_nce(q, q @ keys.T / 0.2, torch.arange(Q), keys, negatives=M - 1)
    assert loss.item() > contrast().info_nce(q, q @ keys.T / 0.2, torch.arange(Q), keys, negatives=M - 1)[0].item()


def test_embedding_std_is_1_for_directions_at_random_and_0_for_one() -> None:
    z = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
    assert embedding_std(z).item() == pytest.approx(1, abs=0.02)
    assert embedding_std(z * torch.rand(4000, 1)).item() == pytest.approx(1, abs=0.02)  # lengths do not count
    assert embedding_std(z[:1].expand(64, 32)).item() == pytest.approx(0, abs=1e-6)
    # Two opposite directions along one axis: that axis has the standard deviation 1, the other 31 none.
    line = torch.zeros(64, 32)
    line[::2, 0], line[1::2, 0] = 3.0, -3.0
    assert embedding_std(line).item() == pytest.approx(32**0.5 / 32)
    assert not embedding_std(z.requires_grad_()).requires_grad


def test_the_momentum_rises_to_1_along_a_cosine() -> None:
    """BYOL's equation at the quarters: 1 − .004·(cos(πp) + 1)/2."""
    for progress, expected in ((0, 0.996), (0.25, 1 - 0.004 * (0.5**0.5 + 1) / 2), (0.5, 0.998), (1, 1.0)):
        assert scheduled_momentum(0.996, "cosine", progress) == pytest.approx(expected, abs=1e-12)
        assert scheduled_momentum(0.996, "constant", progress) == 0.996


def test_a_follower_moves_every_weight_by_its_share_and_nothing_else() -> None:
    torch.manual_seed(0)
    fast = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    slow = momentum_copy(fast)
    assert not any(weight.requires_grad for weight in slow.parameters())
    before = [weight.clone() for weight in slow.parameters()]
    for weight in fast.parameters():
        nn.init.normal_(weight)
    fast(torch.randn(8, 3))  # moves the statistics of one of them
    Follower(slow, fast).follow(0.9)
    for was, now, to in zip(before, slow.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * was + 0.1 * to)
    assert torch.equal(slow[1].running_mean, torch.zeros(2))
