"""Momentum Contrast: v1 (He et al. 2020, arXiv 1911.05722) and v2 (Chen et al. 2020, arXiv 2003.04297).

    python engine/train.py --method moco-v2

A query must pick its image's other view, the key, out of a queue of keys of earlier batches. Keys come from an encoder
that follows the query's slowly. The two versions differ in head, temperature, augmentation and schedule, not in code.
`moco-v2+` is v2 in both directions with a queue for each, as solo-learn has it (da Costa et al. 2022, arXiv
2106.01775).

With multi-crop (Caron et al. 2020, SwAV, arXiv 2006.09882, section 3.2) small views are queries too, each held against
the key of its image's large view: more to compare at little cost. Small views give no keys, and the loss is the mean
over all queries.

Shapes: N images in this rank's batch, G in all ranks', C the embedding's dimensions, K the queue's length, Q queries of
each image.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional

from penstock.engine.distributed import Team
from penstock.engine.method import Encoder, Loss
from penstock.engine.methods.contrastive import Contrastive
from penstock.engine.methods.embedding import embedding_std
from penstock.engine.methods.momentum import Follower, momentum_copy, scheduled_momentum
from penstock.engine.methods.queue import Queue
from penstock.engine.seeds import derive_seed


class MoCo(Contrastive):
    """MoCo's two encoders and its queue; see Contrastive for the options.

    Args:
        encoder: the query's, on its device; the key's starts as a copy.
        dim: C.
        queue: K, a multiple of the keys that a step brings to it.
        momentum: how much of itself the key encoder keeps at each step.
        momentum_schedule: `constant`, or `cosine`: rising to 1 over the run.
        symmetric: let each view be query and key in turn. A step then costs twice as much.
        queues: for a symmetric loss: 1, which takes both views' keys while the loss is the sum of both directions (the
            authors' CIFAR-10 demo), or 2, one of each view's keys, while the loss is their mean (MoCo v2+). Under SGD
            the mean is the sum at half the learning rate and twice the weight decay.
        seed: decides the queue's first content, the shuffles and the mixtures.
        team: the ranks among which keys are shuffled and gathered.
    """

    small_views = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int = 128,
        queue: int = 65536,
        momentum: float = 0.999,
        momentum_schedule: str = "constant",
        temperature: float = 0.2,
        symmetric: bool = False,
        queues: int = 1,
        debias: float = 0.0,
        mochi: tuple[int, int, int] | None = None,
        seed: int = 0,
        team: Team | None = None,
    ) -> None:
        assert symmetric or queues == 1
        super().__init__(encoder, temperature=temperature, debias=debias, mochi=mochi, seed=seed, team=team)
        self.momentum, self.momentum_schedule, self.symmetric = momentum, momentum_schedule, symmetric
        self.key_encoder = momentum_copy(encoder)
        self._keys_follow = Follower(self.key_encoder, encoder)
        self.queues = nn.ModuleList(
            Queue(queue, dim, seed=derive_seed(seed, "queue", number), device=self.team.device)
            for number in range(queues)
        )
        self._keys: list[torch.Tensor] = []  # of this step, direction by direction, until it is over

    def loss(self, views: list[torch.Tensor], index: torch.Tensor) -> Loss:
        first, second = views[0].chunk(2)
        small = [self.encode(group) for group in views[1:]]
        q = self.encode(first)
        loss, accuracy = self.contrast([q, *small], self.encode_keys(second), direction=0)
        if self.symmetric:
            other = self.contrast([self.encode(second), *small], self.encode_keys(first), direction=1)
            loss, accuracy = (loss + other[0]) / len(self.queues), (accuracy + other[1]) / 2
        return loss, {"accuracy": accuracy, "std": embedding_std(q)}

    def contrast(
        self, queries: list[torch.Tensor], k: torch.Tensor, *, direction: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """InfoNCE of one direction, and how often the right key was the nearest.

        Args:
            queries: [N, C], or [V·N, C] where there are V views of a kind.
            k: [G, C], the keys of all ranks' images; they enter the queue when the step is over.
            direction: 0 or 1, which view gave the queries.
        """
        self._keys.append(k)
        queue = self.queue_of(direction).keys
        q, own = torch.cat(queries), self.team.own(k)  # [Q·N, C] view by view, [N, C]
        with torch.autocast(q.device.type, enabled=False):  # half precision is too coarse for what T divides
            positive = (q * own.repeat(len(q) // len(own), 1)).sum(1, keepdim=True) / self.temperature  # [Q·N, 1]
            logits = torch.cat([positive, (q / self.temperature) @ queue.T], dim=1)  # [Q·N, 1 + K]
            right = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
            return self.info_nce(q, logits, right, queue, negatives=len(queue))

    def queue_of(self, direction: int) -> Queue:
        """The queue that a direction's queries are compared with, and that its keys enter."""
        return cast(Queue, self.queues[direction % len(self.queues)])

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
        device = self.team.device
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
        self._keys_follow.follow(scheduled_momentum(self.momentum, self.momentum_schedule, self.progress))
        for turn, keys in enumerate(self._keys):  # directions alternate
            self.queue_of(turn).push(keys)
        self._keys.clear()
        super().after_step()
