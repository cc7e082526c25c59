"""kNN against a plain numpy implementation of Wu et al.'s weighted vote."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from penstock.engine.evaluate import knn
from penstock.engine.evaluate.knn import NO_VOTE, knn_predict, knn_rank


def plain_votes(query: np.ndarray, bank: np.ndarray, labels: np.ndarray, classes: int, k: int, t: float) -> np.ndarray:
    similarity = bank @ query
    votes = np.zeros(classes)
    for i in np.argsort(-similarity)[:k]:
        votes[labels[i]] += np.exp(similarity[i] / t)
    return votes


@pytest.fixture
def bank() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return normalize(torch.randn(300, 8, generator=generator)), torch.randint(0, 5, (300,), generator=generator)


@pytest.mark.parametrize("k", [1, 20, 500])  # 500: more than there are
@pytest.mark.parametrize("chunk", [1, 10_000, 1 << 25])  # a query at a time, some, and all at once
def test_predictions_equal_a_plain_implementation(
    k: int, chunk: int, bank: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "CHUNK", chunk)
    images, labels = bank
    queries = normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(1)))
    ranked = knn_rank(queries, images, labels, classes=5, k=k, temperature=0.1, top=3)
    for query, found in zip(queries.numpy(), ranked.tolist(), strict=True):
        votes = plain_votes(query, images.numpy(), labels.numpy(), 5, k, 0.1)
        best = sorted(range(5), key=lambda c: -votes[c])[:3]
        assert found == [c if votes[c] > 0 else NO_VOTE for c in best]
    predicted = knn_predict(queries, images, labels, classes=5, k=k, temperature=0.1)
    assert predicted.tolist() == ranked[:, 0].tolist()


@pytest.mark.parametrize("chunk", [1, 10_000, 1 << 25])
def test_an_image_has_no_vote_on_itself(
    chunk: int, bank: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "CHUNK", chunk)
    images, labels = bank
    ranked = knn_rank(images, images, labels, classes=5, k=20, temperature=0.1, among_themselves=True)
    for i, found in enumerate(ranked[:, 0].tolist()):
        others = np.arange(len(images)) != i
        votes = plain_votes(images[i].numpy(), images.numpy()[others], labels.numpy()[others], 5, 20, 0.1)
        assert found == votes.argmax()


@pytest.mark.parametrize("temperature", [0.008, 0.003])  # exp(1 / T) is no float32 any more
def test_low_temperatures(temperature: float, bank: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = bank
    queries = normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(1)))
    ranked = knn_rank(queries, images, labels, classes=6, k=20, temperature=temperature, top=6)
    for query, found in zip(queries.double().numpy(), ranked.tolist(), strict=True):
        votes = plain_votes(query, images.double().numpy(), labels.numpy(), 6, 20, temperature)
        voted = np.flatnonzero(votes)
        assert found[0] == votes.argmax()
        assert sorted(found[: len(voted)]) == voted.tolist()  # however little their votes weigh
        assert found[len(voted) :] == [NO_VOTE] * (6 - len(voted))


def test_a_class_that_has_the_image_itself_alone_has_no_neighbour() -> None:
    bank = normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]]))
    ranked = knn_rank(
        bank, bank, torch.tensor([0, 1, 1]), classes=2, k=200, temperature=0.001, top=2, among_themselves=True
    )
    assert ranked.tolist() == [[1, NO_VOTE], [0, 1], [1, 0]]


def test_every_query_is_heard_of(bank: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "CHUNK", 10_000)  # 33 queries
    heard: list[int] = []
    knn_rank(bank[0], *bank, classes=5, k=5, temperature=0.1, advance=heard.append)
    assert heard == [33] * 9 + [3]


def test_near_neighbours_outvote_many_far_ones() -> None:
    bank = normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8]]))
    labels = torch.tensor([0, 1, 1, 1])
    query = torch.tensor([[1.0, 0.0]])  # exp(1 / T) against 3 exp(.6 / T)
    assert knn_predict(query, bank, labels, classes=2, k=4, temperature=0.1).item() == 0
    assert knn_predict(query, bank, labels, classes=2, k=4, temperature=10.0).item() == 1
