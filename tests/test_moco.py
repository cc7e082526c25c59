"""MoCo against the paper: loss, queue and momentum equal a few lines written from algorithm 1 of arXiv 1911.05722."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from penstock.engine.method import Encoder
from penstock.engine.methods import contrastive
from penstock.engine.methods.contrastive import mix_hardest
from penstock.engine.methods.moco import MoCo
from penstock.engine.split_bn import SplitBatchNorm2d, split_batch_norm
from tests.method_steps import oldest_first, run

N, C, K, M, T = 4, 5, 12, 0.9, 0.2
V2_PLUS = {"symmetric": True, "queues": 2}


def small_encoder() -> Encoder:
    """No normalisation, so that shuffling cannot change a key."""
    torch.manual_seed(0)
    return Encoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh()), nn.Linear(7, C))


def small_moco(**options: Any) -> MoCo:
    return MoCo(small_encoder(), **{"dim": C, "queue": K, "momentum": M, "temperature": T} | options)


def views(step: int, images: int = N) -> torch.Tensor:
    return torch.randn(2 * images, 3, 2, 2, generator=torch.Generator().manual_seed(step))


class Algorithm1:
    """The paper's pseudo-code, line for line, each queue as a plain list of keys, oldest first.

    Several pairs make a symmetric loss: with one queue the sum over the pairs; with a queue for each, as solo-learn's
    MoCo v2+ has it (arXiv 2106.01775), the mean.
    """

    def __init__(self, encoder: nn.Module, queues: list[torch.Tensor]) -> None:
        self.f_q, self.f_k, self.queues = encoder, copy.deepcopy(encoder), [list(queue) for queue in queues]
        self.sgd = torch.optim.SGD(self.f_q.parameters(), lr=0.5)

    def step(self, pairs: list[tuple[torch.Tensor, torch.Tensor]], m: float = M) -> float:
        loss, new = torch.zeros(()), [[] for _ in self.queues]
        for number, (x_q, x_k) in enumerate(pairs):
            queue, n = number % len(self.queues), len(x_q)
            q = normalize(self.f_q(x_q), dim=1)
            k = normalize(self.f_k(x_k), dim=1).detach()
            l_pos = torch.bmm(q.view(n, 1, C), k.view(n, C, 1)).view(n, 1)
            l_neg = torch.mm(q, torch.stack(self.queues[queue]).T)
            loss = loss + cross_entropy(torch.cat([l_pos, l_neg], dim=1) / T, torch.zeros(n, dtype=torch.long))
            new[queue] += list(k)
        loss = loss / len(self.queues)
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()
        for slow, fast in zip(self.f_k.parameters(), self.f_q.parameters(), strict=True):
            slow.data = m * slow.data + (1 - m) * fast.data
        self.queues = [(old + keys)[-K:] for old, keys in zip(self.queues, new, strict=True)]
        return loss.item()


def both(x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    first, second = x.chunk(2)
    return [(first, second), (second, first)]


def assert_same_state(moco: MoCo, oracle: Algorithm1) -> None:
    for number, queue in enumerate(oracle.queues):
        torch.testing.assert_close(oldest_first(moco.queue_of(number)), torch.stack(queue), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(moco.key_encoder.parameters(), oracle.f_k.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, V2_PLUS])
def test_loss_queues_and_key_encoder_equal_algorithm_1(options: dict[str, Any]) -> None:
    moco = small_moco(**options)
    oracle = Algorithm1(small_encoder(), [oldest_first(queue) for queue in moco.queues])
    assert len(oracle.queues) == options.get("queues", 1)
    sgd = torch.optim.SGD(moco.encoder.parameters(), lr=0.5)
    for step, images in enumerate((4, 4, 4, 4, 5, 3, 5, 4)):  # later batches do not divide the queue
        x = views(step, images)
        loss, _ = moco([x], torch.arange(images))
        loss.backward()
        sgd.step()
        sgd.zero_grad()
        moco.after_step()
        assert loss.item() == pytest.approx(oracle.step(both(x) if options else both(x)[:1]), rel=1e-5)
        assert_same_state(moco, oracle)


def test_each_queue_of_v2_plus_holds_one_view_s_keys() -> None:
    """Queries of first views are told from keys of second views, of this batch and earlier ones."""
    moco = small_moco(**V2_PLUS)
    x = views(0)
    first, second = normalize(moco.key_encoder(x).detach()).chunk(2)
    moco([x], torch.arange(N))
    moco.after_step()
    torch.testing.assert_close(oldest_first(moco.queue_of(0))[-N:], second)
    torch.testing.assert_close(oldest_first(moco.queue_of(1))[-N:], first)
    assert not torch.equal(
        oldest_first(moco.queue_of(0))[:-N], oldest_first(moco.queue_of(1))[:-N]
    )  # where they started


def test_the_loss_is_lightlys_with_a_memory_bank() -> None:
    lightly = pytest.importorskip("lightly.loss")
    moco = small_moco()
    loss = lightly.NTXentLoss(temperature=T, memory_bank_size=(K, C))
    loss.memory_bank.bank.copy_(moco.queue_of(0).keys)
    for step in range(5):  # each keeps its own queue
        x = views(step)
        expected = loss(moco.encoder(x[:N]), moco.key_encoder(x[N:]).detach())
        torch.testing.assert_close(moco([x], torch.arange(N))[0], expected)
        moco.after_step()
        torch.testing.assert_close(moco.queue_of(0).keys, loss.memory_bank.bank)


def test_a_query_with_two_keys_in_the_queue_by_hand() -> None:
    """Query (1, 0), key (1, 0), queue (0, 1) and (−1, 0): similarities 1, 0 and −1, so log(1 + e^(−1/T) + e^(−2/T)).

    Debiased with τ⁺ = .1: 2 negatives, Ng = (1 + e^(−1/T) − .1·2·e^(1/T)) / .9, which at T = 1 is .916, more than the
    least, 2/e = .736; and log(1 + .916/e) = .290.
    """
    x = torch.tensor([[2.0, 0.0], [3.0, 0.0]])[..., None, None]
    encoder = Encoder(nn.Flatten(), nn.Identity())
    ng = (1 + math.exp(-1) - 0.2 * math.e) / 0.9
    for debias, expected in ((0.0, math.log(1 + math.exp(-1) + math.exp(-2))), (0.1, math.log(1 + ng / math.e))):
        moco = MoCo(encoder, dim=2, queue=2, temperature=1.0, debias=debias)
        moco.queue_of(0).push(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
        loss, metrics = moco([x], torch.arange(1))
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        assert metrics["accuracy"].item() == 1


@pytest.mark.parametrize("symmetric", [False, True])
def test_small_views_are_queries_of_their_image_s_key(symmetric: bool) -> None:
    """Multi-crop, written out: every query of every image against its key and the queue, one at a time."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())  # so that views of any size go through
    encoder = Encoder(pool, nn.Linear(12, C))
    moco = MoCo(encoder, dim=C, queue=2 * K, temperature=T, symmetric=symmetric)
    large, small = torch.randn(2, N, 3, 4, 4), torch.randn(3, N, 3, 2, 2)
    loss, metrics = moco([large.flatten(0, 1), small.flatten(0, 1)], torch.arange(N))
    expected, right = 0.0, []
    for first, second in ((0, 1), (1, 0)) if symmetric else ((0, 1),):
        terms = []
        for n in range(N):
            key = normalize(moco.key_encoder(large[second, n][None])[0], dim=0)
            for view in (large[first, n], *small[:, n]):
                query = normalize(encoder(view[None])[0], dim=0)
                logits = torch.stack([query @ key, *(query @ other for other in moco.queue_of(0).keys)]) / T
                terms.append(-torch.log_softmax(logits, 0)[0].item())
                right.append(logits.argmax().item() == 0)
        expected += sum(terms) / len(terms)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(sum(right) / len(right))
    moco.after_step()
    assert moco.queue_of(0).pushed == (2 * N if symmetric else N)  # small views give no keys


@pytest.mark.parametrize("options", [{}, V2_PLUS, {"debias": 0.1}, {"mochi": (6, 3, 2)}])
def test_gradient_flows_into_the_query_encoder_only(options: dict[str, Any]) -> None:
    moco = small_moco(**options)
    moco.progress = 1.0
    before = [queue.keys.clone() for queue in moco.queues]
    loss, metrics = moco([views(0)], torch.arange(N))
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in moco.encoder.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in moco.key_encoder.parameters())
    for queue, keys in zip(moco.queues, before, strict=True):
        assert torch.equal(queue.keys, keys)  # keys enter after the step, not before the backward pass
    assert set(metrics) == set(MoCo.metrics) and not any(value.requires_grad for value in metrics.values())
    moco.after_step()
    assert not torch.equal(moco.queue_of(0).keys, before[0])


def test_the_debiased_loss_counts_the_queue_as_its_negatives() -> None:
    moco = small_moco(debias=0.3)
    x, terms = views(0), []
    queries, keys = normalize(moco.encoder(x[:N])), normalize(moco.key_encoder(x[N:]))
    for q, k in zip(queries, keys, strict=True):
        positive = torch.exp(q @ k / T)
        total = sum(torch.exp(q @ n / T) for n in moco.queue_of(0).keys)
        ng = torch.clamp((total - 0.3 * K * positive) / 0.7, min=K * math.exp(-1 / T))
        terms.append(-torch.log(positive / (positive + ng)))
    loss, _ = moco([x], torch.arange(N))
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_mixtures_are_of_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive's column is not one of the queue's: an off-by-one would mix neighbours."""
    hardest: list[torch.Tensor] = []

    def spy(q: torch.Tensor, keys: torch.Tensor, chosen: torch.Tensor, **rest: Any) -> torch.Tensor:
        assert torch.equal(keys, moco.queue_of(0).keys)
        hardest.append(chosen)
        return mix_hardest(q, keys, chosen, **rest)

    monkeypatch.setattr(contrastive, "mix_hardest", spy)
    moco = small_moco(mochi=(3, 2, 2))
    moco.progress = 1.0
    x = views(0)
    moco([x], torch.arange(N))
    similarities = normalize(moco.encoder(x[:N])).detach() @ moco.queue_of(0).keys.T
    assert torch.equal(hardest[0], similarities.argsort(1, descending=True)[:, :3])


def test_keys_come_back_in_the_order_of_their_queries() -> None:
    moco = small_moco()
    x = views(0)
    torch.testing.assert_close(moco.encode_keys(x), normalize(moco.key_encoder(x).detach()))


def test_a_step_in_parts_enqueues_all_its_keys_and_shuffles_each_part_anew() -> None:
    """Gradient accumulation: two losses, then one step."""
    moco = small_moco(**V2_PLUS)
    queues = [oldest_first(queue) for queue in moco.queues]
    shuffled, shuffle = [], moco._shuffle
    moco._shuffle = lambda length: shuffled.append(shuffle(length)[0]) or shuffle(length)  # type: ignore[method-assign]
    parts = [views(0, 8), views(1, 8)]  # together more than the queue holds
    losses = [moco([x], torch.arange(8))[0] for x in parts]
    keys = [normalize(moco.key_encoder(x).detach()).chunk(2) for x in parts]
    for ours, was in zip(moco.queues, queues, strict=True):
        assert torch.equal(oldest_first(ours), was)
    moco.after_step()
    for number in range(2):
        new = torch.cat([pair[1 - number] for pair in keys])  # direction 0 compares with second views' keys
        expected = torch.cat([queues[number], new])[-K:]
        torch.testing.assert_close(oldest_first(moco.queue_of(number)), expected)
    assert len({tuple(there.tolist()) for there in shuffled}) == 4  # two parts, two directions
    assert losses[0].item() != losses[1].item() and moco.steps == 1


@pytest.mark.parametrize("options", [{}, V2_PLUS | {"momentum_schedule": "cosine"}, {"mochi": (6, 3, 2)}])
def test_a_restored_run_goes_on_as_the_saved_one(options: dict[str, Any]) -> None:
    """In mid-run, with keys whose values hang on the shuffle, and a queue that is about to wrap around."""

    def method() -> MoCo:
        torch.manual_seed(0)
        backbone = split_batch_norm(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()), 2)
        return MoCo(Encoder(backbone, nn.Linear(12, C)), dim=C, queue=10, momentum=M, temperature=T, **options)

    whole, stopped, restored = method(), method(), method()
    losses = run(whole, views, steps=range(8), of=8, lr=0.5)
    run(stopped, views, steps=range(3), of=8, lr=0.5)
    restored.load_state_dict(copy.deepcopy(stopped.state_dict()))
    assert run(restored, views, steps=range(3, 8), of=8, lr=0.5) == losses[3:]
    other = method()
    state = {name: value for name, value in stopped.state_dict().items() if name != "_extra_state"}
    other.load_state_dict(state | {"_extra_state": {"steps": 0}})
    assert (
        run(other, views, steps=range(3, 8), of=8, lr=0.5) != losses[3:]
    )  # so the test can see what would be forgotten


def test_the_momentum_schedule_ends_with_a_key_encoder_at_rest() -> None:
    moco = small_moco(momentum_schedule="cosine")
    oracle = Algorithm1(small_encoder(), [oldest_first(moco.queue_of(0))])
    sgd = torch.optim.SGD(moco.encoder.parameters(), lr=0.5)
    for step, progress in enumerate((0.0, 0.5, 1.0)):
        moco.progress = progress
        moco([views(step)], torch.arange(N))[0].backward()
        sgd.step()
        sgd.zero_grad()
        before = copy.deepcopy(moco.key_encoder)
        moco.after_step()
        oracle.step(both(views(step))[:1], m={0.0: M, 0.5: 0.95, 1.0: 1.0}[progress])
        assert_same_state(moco, oracle)
        moved = [not torch.equal(a, b) for a, b in zip(before.parameters(), moco.key_encoder.parameters(), strict=True)]
        assert all(moved) if progress < 1 else not any(moved)


def test_the_shuffle_puts_keys_in_other_company_than_their_queries() -> None:
    """With split normalisation a key's value depends on its company; without the shuffle it would keep its query's."""
    torch.manual_seed(0)
    backbone = split_batch_norm(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()), 2)
    moco = MoCo(Encoder(backbone, nn.Linear(12, C)), dim=C, queue=K)
    x = views(0)
    unshuffled = normalize(moco.key_encoder(x).detach())
    assert not torch.allclose(moco.encode_keys(x), unshuffled, atol=1e-3)
    first, again = moco._shuffle(64)[0], moco._shuffle(64)[0]
    moco.after_step()
    assert torch.equal(first, again) and not torch.equal(first, moco._shuffle(64)[0])


def test_accuracy_counts_queries_whose_own_key_is_nearest() -> None:
    moco = MoCo(Encoder(nn.Flatten(), nn.Identity()), dim=12, queue=K)
    x = views(0)
    x[N:] = x[:N]  # keys equal queries: nothing in a random queue is nearer
    assert float(moco([x], torch.arange(N))[1]["accuracy"]) == 1.0
    x[N:] = -x[:N]  # nothing is farther
    assert float(moco([x], torch.arange(N))[1]["accuracy"]) == 0.0


def test_it_runs_in_half_precision_around_and_float32_within() -> None:
    moco = small_moco(temperature=0.05)
    x = views(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = moco([x], torch.arange(N))
        q, k = moco.encoder(x[:N]), moco.key_encoder(x[N:])
    assert q.dtype == torch.bfloat16 and loss.dtype == torch.float32
    q, k = normalize(q.float()), normalize(k.float())
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ moco.queue_of(0).keys.T], 1) / 0.05
    torch.testing.assert_close(loss, cross_entropy(logits, torch.zeros(N, dtype=torch.long)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_split_batch_norm_equals_batch_norm_on_each_part(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 6, 5, 5).mul(3).add(1).to(memory_format=memory_format).requires_grad_()
    whole = nn.BatchNorm2d(6)
    nn.init.normal_(whole.weight)
    copies = [copy.deepcopy(whole) for _ in range(4)]
    split = split_batch_norm(nn.Sequential(copy.deepcopy(whole)), 4)[0]
    assert isinstance(split, SplitBatchNorm2d)
    out = split(x)
    expected = torch.cat([norm(part) for norm, part in zip(copies, x.chunk(4), strict=True)])
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(split.running_mean, torch.stack([norm.running_mean for norm in copies]).mean(0))
    torch.testing.assert_close(split.running_var, torch.stack([norm.running_var for norm in copies]).mean(0))
    weights = torch.randn_like(out)
    (ours,) = torch.autograd.grad((out * weights).sum(), x)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(ours, theirs)
    split.eval()
    plain = nn.BatchNorm2d(6).eval()
    plain.load_state_dict(split.state_dict())
    torch.testing.assert_close(split(x), plain(x))
