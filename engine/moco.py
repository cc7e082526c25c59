"""Momentum Contrast: v1 (He et al. 2020, arXiv 1911.05722) and v2 (Chen et al. 2020, arXiv 2003.04297).

    python engine/train.py --method moco-v2

A query must pick its image's other view, the key, out of a queue of keys of earlier batches. Keys come from an encoder
that follows the query's slowly. The two versions differ in head, temperature, augmentation and schedule, not in code.

With multi-crop (Caron et al. 2020, SwAV, arXiv 2006.09882, section 3.2) small views are queries too, each held against
the key of its image's large view: more to compare at little cost. Small views give no keys, and the loss is the mean
over all queries.

Shapes: N images in this rank's batch, G in all ranks', C the embedding's dimensions, K the queue's length, Q queries of
each image.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from penstock.engine.distributed import Team
from penstock.engine.method import Encoder, Method
from penstock.engine.seeds import derive_seed


class MoCo(Method):
    """MoCo's two encoders and its queue.

    Args:
        encoder: the query's, on its device; the key's starts as a copy.
        dim: C.
        queue: K, a multiple of the keys that a step brings (G, or 2·G if symmetric).
        momentum: how much of itself the key encoder keeps at each step.
        temperature: what similarities are divided by.
        symmetric: let each view be query and key in turn, sum both losses and enqueue both sets of keys (the authors'
            CIFAR-10 demo). A step then costs twice as much.
        seed: decides the queue's first content and the shuffles.
        team: the ranks among which keys are shuffled and gathered.
    """

    metrics = ("accuracy",)  # how often the right key is the nearest to its query
    queue: torch.Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int = 128,
        queue: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        symmetric: bool = False,
        seed: int = 0,
        team: Team | None = None,
    ) -> None:
        super().__init__()
        self.momentum, self.temperature, self.symmetric = momentum, temperature, symmetric
        self.seed, self.team = seed, team or Team()
        self.encoder = encoder
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self._key_weights: list[torch.Tensor] = list(self.key_encoder.parameters())
        self._query_weights: list[torch.Tensor] = list(encoder.parameters())
        start = torch.randn(queue, dim, generator=torch.Generator().manual_seed(derive_seed(seed, "queue")))
        self.register_buffer("queue", functional.normalize(start).to(self.team.device))  # [K, C]
        self.pointer, self.steps = 0, 0  # where the next keys go; steps taken
        self._keys: list[torch.Tensor] = []  # of this step, until it is over

    def loss(self, views: list[torch.Tensor], index: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        first, second = views[0].chunk(2)
        small = [self.encode(group) for group in views[1:]]
        loss, accuracy = self.contrast([self.encode(first), *small], self.encode_keys(second))
        if self.symmetric:
            other_loss, other_accuracy = self.contrast([self.encode(second), *small], self.encode_keys(first))
            loss, accuracy = loss + other_loss, (accuracy + other_accuracy) / 2
        return loss, {"accuracy": accuracy}

    def contrast(self, queries: list[torch.Tensor], k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """InfoNCE of one direction, and how often the right key was the nearest.

        Args:
            queries: [N, C], or [V·N, C] where there are V views of a kind.
            k: [G, C], the keys of all ranks' images; they enter the queue when the step is over.
        """
        self._keys.append(k)
        q, own = torch.cat(queries), self.team.own(k)  # [Q·N, C] view by view, [N, C]
        with torch.autocast(q.device.type, enabled=False):  # half precision is too coarse for what T divides
            positive = (q * own.repeat(len(q) // len(own), 1)).sum(1, keepdim=True)  # [Q·N, 1]
            logits = torch.cat([positive, q @ self.queue.T], dim=1) / self.temperature  # [Q·N, 1 + K]
            right = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
            loss = functional.cross_entropy(logits, right)
        return loss, (logits.detach().argmax(1) == 0).float().mean()

    def encode(self, views: torch.Tensor) -> torch.Tensor:
        """Queries [N, C] of views [N, 3, S, S]."""
        return functional.normalize(self.encoder(views).float())

    @torch.no_grad()
    def encode_keys(self, views: torch.Tensor) -> torch.Tensor:
        """All ranks' keys [G, C], each normalised in other company than its query.

        The views of all ranks are shuffled by a permutation that all agree on, encoded by whichever rank and part of a
        batch they fall to, and brought back into order. All views travel: gloo and nccl alike have this collective.
        """
        everyone = self.team.gather(views)
        there, back = self._shuffle(len(everyone))
        k = functional.normalize(self.key_encoder(everyone[self.team.own(there)]).float())
        return self.team.gather(k)[back]

    def _shuffle(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A permutation of this step and direction, a pure function of the seed, and its inverse."""
        device = self.queue.device
        generator = torch.Generator(device)
        generator.manual_seed(derive_seed(self.seed, "shuffle", self.steps, len(self._keys)))
        there = torch.randperm(length, generator=generator, device=device)
        return there, torch.empty_like(there).scatter_(0, there, torch.arange(length, device=device))

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the key encoder towards the query's, and put this step's keys in the place of the oldest.

        Not earlier: the backward pass reads the queue that the forward pass did, and a copy of it costs more than
        everything here.
        """
        torch._foreach_lerp_(self._key_weights, self._query_weights, 1 - self.momentum)
        for keys in self._keys:
            places = torch.arange(self.pointer, self.pointer + len(keys), device=keys.device) % len(self.queue)
            self.queue[places] = keys  # wraps around where the batch has changed since a checkpoint
            self.pointer = (self.pointer + len(keys)) % len(self.queue)
        self._keys.clear()
        self.steps += 1

    def get_extra_state(self) -> dict[str, int]:
        return {"pointer": self.pointer, "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.pointer, self.steps = state["pointer"], state["steps"]


def linear_head(features: int, dim: int) -> nn.Module:
    """MoCo v1's projection."""
    return nn.Linear(features, dim)


def mlp_head(features: int, dim: int) -> nn.Module:
    """MoCo v2's projection: one hidden layer as wide as the features, no normalisation."""
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, dim))
