"""kNN against a plain numpy implementation of Wu et al.'s weighted vote."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from penstock.engine import knn
from penstock.engine.knn import knn_predict


def plain_knn(queries: np.ndarray, bank: np.ndarray, labels: np.ndarray, classes: int, k: int, t: float) -> np.ndarray:
    predictions = []
    for query in queries:
        similarity = bank @ query
        votes = np.zeros(classes)
        for i in np.argsort(-similarity)[:k]:
            votes[labels[i]] += np.exp(similarity[i] / t)
        predictions.append(votes.argmax())
    return np.array(predictions)


@pytest.mark.parametrize("k", [1, 20, 500])  # 500: more than there are
@pytest.mark.parametrize("chunk", [1, 1 << 25])  # a query at a time, and all at once
def test_predictions_equal_a_plain_implementation(k: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    bank = normalize(torch.randn(300, 8, generator=generator))
    queries = normalize(torch.randn(50, 8, generator=generator))
    labels = torch.randint(0, 5, (300,), generator=generator)
    found = knn_predict(queries, bank, labels, classes=5, k=k, temperature=0.1)
    expected = plain_knn(queries.numpy(), bank.numpy(), labels.numpy(), 5, k, 0.1)
    assert found.tolist() == expected.tolist()


def test_near_neighbours_outvote_many_far_ones() -> None:
    bank = normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8]]))
    labels = torch.tensor([0, 1, 1, 1])
    query = torch.tensor([[1.0, 0.0]])  # exp(1 / T) against 3 exp(.6 / T)
    assert knn_predict(query, bank, labels, classes=2, k=4, temperature=0.1).item() == 0
    assert knn_predict(query, bank, labels, classes=2, k=4, temperature=10.0).item() == 1
