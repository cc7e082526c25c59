"""MoCo against the paper: loss, queue and momentum equal a few lines written from algorithm 1 of arXiv 1911.05722."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from penstock.engine.method import Encoder
from penstock.engine.moco import MoCo, linear_head, mlp_head
from penstock.engine.split_bn import SplitBatchNorm2d, split_batch_norm

N, C, K, M, T = 4, 5, 12, 0.9, 0.2


def small_encoder() -> Encoder:
    """No normalisation, so that shuffling cannot change a key."""
    torch.manual_seed(0)
    return Encoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh()), linear_head(7, C))


def views(step: int) -> torch.Tensor:
    return torch.randn(2 * N, 3, 2, 2, generator=torch.Generator().manual_seed(step))


class Algorithm1:
    """The paper's pseudo-code, line for line, the queue as a plain list of keys, oldest first."""

    def __init__(self, encoder: nn.Module, queue: torch.Tensor) -> None:
        self.f_q, self.f_k, self.queue = encoder, copy.deepcopy(encoder), list(queue)
        self.sgd = torch.optim.SGD(self.f_q.parameters(), lr=0.5)

    def step(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        loss, new = torch.zeros(()), []
        for x_q, x_k in pairs:
            q = normalize(self.f_q(x_q), dim=1)
            k = normalize(self.f_k(x_k), dim=1).detach()
            l_pos = torch.bmm(q.view(N, 1, C), k.view(N, C, 1)).view(N, 1)
            l_neg = torch.mm(q, torch.stack(self.queue).T)
            loss = loss + cross_entropy(torch.cat([l_pos, l_neg], dim=1) / T, torch.zeros(N, dtype=torch.long))
            new += list(k)
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()
        for slow, fast in zip(self.f_k.parameters(), self.f_q.parameters(), strict=True):
            slow.data = M * slow.data + (1 - M) * fast.data
        self.queue = self.queue[len(new) :] + new
        return loss.item()


@pytest.mark.parametrize("symmetric", [False, True])
def test_loss_queue_and_key_encoder_equal_algorithm_1(symmetric: bool) -> None:
    queue = 2 * K if symmetric else K
    moco = MoCo(small_encoder(), dim=C, queue=queue, momentum=M, temperature=T, symmetric=symmetric)
    oracle = Algorithm1(small_encoder(), moco.queue.clone())
    sgd = torch.optim.SGD(moco.encoder.parameters(), lr=0.5)
    for step in range(8):  # the queue wraps around twice
        x = views(step)
        loss, _ = moco([x], torch.arange(N))
        loss.backward()
        sgd.step()
        sgd.zero_grad()
        moco.after_step()
        pairs = [(x[:N], x[N:]), (x[N:], x[:N])] if symmetric else [(x[:N], x[N:])]
        assert loss.item() == pytest.approx(oracle.step(pairs), rel=1e-5)
        in_order = moco.queue.roll(-moco.pointer, 0)  # oldest first
        torch.testing.assert_close(in_order, torch.stack(oracle.queue), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(moco.key_encoder.parameters(), oracle.f_k.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_small_views_are_queries_of_their_image_s_key(symmetric: bool) -> None:
    """Multi-crop, written out: every query of every image against its key and the queue, one at a time."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())  # so that views of any size go through
    encoder = Encoder(pool, linear_head(12, C))
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
                logits = torch.stack([query @ key, *(query @ other for other in moco.queue)]) / T
                terms.append(-torch.log_softmax(logits, 0)[0].item())
                right.append(logits.argmax().item() == 0)
        expected += sum(terms) / len(terms)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(sum(right) / len(right))
    moco.after_step()
    assert moco.pointer == (2 * N if symmetric else N)  # small views give no keys


def test_gradient_flows_into_the_query_encoder_only() -> None:
    moco = MoCo(small_encoder(), dim=C, queue=K)
    before = moco.queue.clone()
    moco([views(0)], torch.arange(N))[0].backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in moco.encoder.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in moco.key_encoder.parameters())
    assert torch.equal(moco.queue, before)  # keys enter after the step, not before the backward pass


def test_keys_come_back_in_the_order_of_their_queries() -> None:
    moco = MoCo(small_encoder(), dim=C, queue=K)
    x = views(0)
    torch.testing.assert_close(moco.encode_keys(x), normalize(moco.key_encoder(x).detach()))


def test_a_batch_that_no_longer_divides_the_queue_wraps_around() -> None:
    """As after a checkpoint of another batch size: 3 keys a step, then 8, in a queue of 12."""
    moco = MoCo(small_encoder(), dim=C, queue=K)
    sent = [normalize(torch.randn(n, C, generator=torch.Generator().manual_seed(n))) for n in (3, 8, 5)]
    for keys in sent:
        moco._keys.append(keys)
        moco.after_step()
    expected = torch.cat([sent[2][1:], torch.cat(sent[:2])[4:], sent[2][:1]])
    assert torch.equal(moco.queue, expected)


def test_the_shuffle_puts_keys_in_other_company_than_their_queries() -> None:
    """With split normalisation a key's value depends on its company; without the shuffle it would keep its query's."""
    torch.manual_seed(0)
    backbone = split_batch_norm(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()), 2)
    moco = MoCo(Encoder(backbone, linear_head(12, C)), dim=C, queue=K)
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


def test_heads_are_those_of_the_papers() -> None:
    assert [tuple(p.shape) for p in linear_head(8, 3).parameters()] == [(3, 8), (3,)]
    assert [tuple(p.shape) for p in mlp_head(8, 3).parameters()] == [(8, 8), (8,), (3, 8), (3,)]


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
