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


def test_near_neighbours_outvote_many_far_ones() -> None:
    bank = normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8]]))
    labels = torch.tensor([0, 1, 1, 1])
    query = torch.tensor([[1.0, 0.0]])  # exp(1 / T) against 3 exp(.6 / T)
    assert knn_predict(query, bank, labels, classes=2, k=4, temperature=0.1).item() == 0
    assert knn_predict(query, bank, labels, classes=2, k=4, temperature=10.0).item() == 1
