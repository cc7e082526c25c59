"""Weighted kNN on frozen features: how good a representation is, with nothing trained on top of it.

The k training images nearest to a query by cosine vote for their class with weight exp(similarity / T): Wu et al. 2018,
arXiv 1805.01978, section 3.4, with k = 200 and T = 0.1 as in the MoCo authors' CIFAR-10 demo.

N queries, M training images (the bank), D features, C classes.
"""

from __future__ import annotations

import torch

from penstock.engine.evaluate.features import Advance

CHUNK = 1 << 25  # similarities held at a time: 128 MB of float32
NO_VOTE = -1  # stands where fewer classes have neighbours than were asked for


def knn_predict(
    queries: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor, *, classes: int, k: int, temperature: float
) -> torch.Tensor:
    """The class of each query, int64 [N].

    Args:
        queries, bank: float [N, D] and [M, D], of unit length.
        labels: int64 [M], the bank's.
        classes: C.
        k: neighbours that vote; the whole bank where it is smaller.
    """
    return knn_rank(queries, bank, labels, classes=classes, k=k, temperature=temperature)[:, 0]


def knn_rank(
    queries: torch.Tensor,
    bank: torch.Tensor,
    labels: torch.Tensor,
    *,
    classes: int,
    k: int,
    temperature: float,
    top: int = 1,
    among_themselves: bool = False,
    advance: Advance | None = None,
) -> torch.Tensor:
    """The `top` classes of each query by their votes, int64 [N, top], NO_VOTE where fewer have any.

    Args:
        among_themselves: the queries are the bank itself, and none has a vote on its own class.
        advance: hears of every query.
    """
    step = max(1, CHUNK // len(bank))
    k = min(k, len(bank) - among_themselves)
    ranked = []
    for first in range(0, len(queries), step):
        similarity = queries[first : first + step] @ bank.T  # [n, M]
        if among_themselves:
            similarity.diagonal(first).fill_(-torch.inf)  # row i is query first + i
        nearest = similarity.topk(k)
        ranked.append(_most_votes(nearest.values, labels[nearest.indices], classes, temperature, top))
        if advance is not None:
            advance(len(similarity))
    return torch.cat(ranked)


def _most_votes(
    similarity: torch.Tensor, labels: torch.Tensor, classes: int, temperature: float, top: int
) -> torch.Tensor:
    """Of each query's neighbours [n, k], the nearest first, the classes that have most votes, [n, top].

    A vote is counted relative to the nearest one's, since exp(1 / T) is no float32 for T below .0113. Those of far
    neighbours may then come to 0, which still is more than no neighbour.
    """
    votes = similarity.new_full((len(similarity), classes), -1.0).scatter_(1, labels, 0.0)
    votes.scatter_add_(1, labels, ((similarity - similarity[:, :1]) / temperature).exp())
    most = votes.topk(min(top, classes))
    return most.indices.where(most.values >= 0, NO_VOTE)
