"""Weighted kNN on frozen features: how good a representation is, with nothing trained on top of it.

The k training images nearest to a query by cosine vote for their class with weight exp(similarity / T): Wu et al. 2018,
arXiv 1805.01978, section 3.4, with k = 200 and T = 0.1 as in the MoCo authors' CIFAR-10 demo.

N queries, M training images (the bank), D features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from penstock.engine.method import Encoder
from penstock.engine.precision import Precision
from penstock.loaders import Loader

CHUNK = 1 << 25  # similarities held at a time: 128 MB of float32


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
    step = max(1, CHUNK // len(bank))
    return torch.cat([_vote(part, bank, labels, classes, k, temperature) for part in queries.split(step)])


def _vote(
    queries: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor, classes: int, k: int, temperature: float
) -> torch.Tensor:
    similarity, nearest = (queries @ bank.T).topk(min(k, len(bank)))  # [N, k] each
    votes = similarity.new_zeros(len(queries), classes)
    return votes.scatter_add_(1, labels[nearest], (similarity / temperature).exp()).argmax(1)


@torch.no_grad()
def extract_features(network: nn.Module, loader: Loader, precision: Precision) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of unit length, float32 [N, D], and labels, int64 [N], of a loader's first epoch, on the device.

    The network must be in evaluation mode. fp16 is not used: without running statistics (the untrained network) a deep
    one overflows it.
    """
    if precision.dtype == torch.float16:
        precision = Precision(device=precision.device, dtype=None)
    features, labels = [], []
    for views in loader.epoch(0):
        with precision.autocast():
            output = network(views.groups[0])
        features.append(functional.normalize(output.float().flatten(1)))
        labels.append(views.label)
    return torch.cat(features), torch.cat(labels).to(precision.device)


@dataclass(frozen=True, kw_only=True)
class OnlineKNN:
    """kNN accuracy of a network while it trains.

    Attributes:
        bank, queries: loaders of the labelled training images and of those to classify; one plain view, in order.
        classes: C.
        k, temperature: as above.
        on: `backbone`, or `projection` (after the head).
    """

    bank: Loader
    queries: Loader
    classes: int
    k: int = 200
    temperature: float = 0.1
    on: str = "backbone"

    def accuracy(self, encoder: Encoder, precision: Precision) -> float:
        """Per cent of the queries whose class is found. Leaves the encoder in the mode it was in."""
        was_training = encoder.training
        network = encoder.eval() if self.on == "projection" else encoder.eval().backbone
        bank, bank_labels = extract_features(network, self.bank, precision)
        queries, labels = extract_features(network, self.queries, precision)
        encoder.train(was_training)
        found = knn_predict(queries, bank, bank_labels, classes=self.classes, k=self.k, temperature=self.temperature)
        return 100.0 * float((found == labels).float().mean())

    def close(self) -> None:
        self.bank.close()
        self.queries.close()
