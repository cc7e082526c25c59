"""SwAV, Swapping Assignments between Views (Caron et al. 2020, arXiv 2006.09882).

    python engine/train.py --method swav

Prototypes share the images of a batch evenly among them. What a large view was given, its code, every other view of
the image must predict. With multi-crop the others are a second large view and several small ones.

A batch much smaller than the number of prototypes cannot be shared evenly; then embeddings of earlier batches, a queue
for each large view, take part in the sharing.

Shapes: N images in this rank's batch, G in all ranks', V views of each, C the embedding's dimensions, P prototypes, K
the queues' length, B rows that this rank brings to the sharing.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional

from penstock.engine.distributed import Team
from penstock.engine.method import Encoder, Loss, Method
from penstock.engine.methods.embedding import embedding_std
from penstock.engine.methods.queue import Queue
from penstock.engine.seeds import derive_seed


class SwAV(Method):
    """The cross-entropy between a large view's code and another view's prediction of it, the mean over all such pairs.

    Args:
        encoder: on its device.
        dim: C.
        prototypes: P.
        temperature: what similarities are divided by in a prediction.
        epsilon: what they are divided by in a code: the smaller, the nearer a code is to one prototype.
        iterations: of Sinkhorn-Knopp, 1 or more.
        queue: K, all ranks' embeddings together, no fewer than one call of `loss` brings; 0: none.
        queue_start: the share of the run after which queues take part, from when on they are full.
        frozen: the share of the run during which prototypes stay as they began.
        seed: decides the prototypes.
        team: the ranks whose images are shared among the prototypes together.
    """

    small_views = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int,
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue: int = 0,
        queue_start: float = 0.0,
        frozen: float = 0.0,
        seed: int = 0,
        team: Team | None = None,
    ) -> None:
        super().__init__(encoder, team)
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue_start, self.frozen = queue_start, frozen
        generator = torch.Generator().manual_seed(derive_seed(seed, "prototypes"))
        directions = functional.normalize(torch.randn(prototypes, dim, generator=generator))
        self.prototypes = nn.Parameter(directions.to(self.team.device))  # [P, C], of unit length
        self.queues = nn.ModuleList(
            Queue(queue, dim, seed=derive_seed(seed, "queue", view), device=self.team.device)
            for view in range(2 if queue else 0)
        )
        self._embeddings: list[torch.Tensor] = []  # of this step, large view by large view, until it is over

    def loss(self, views: list[torch.Tensor], index: torch.Tensor) -> Loss:
        images = len(views[0]) // 2
        z = self.encode(views)
        with torch.autocast(z.device.type, enabled=False):  # half precision is too coarse for what is divided
            scores = z @ self.prototypes.T  # [V·N, P]
            log_p = (scores / self.temperature).log_softmax(1).split(images)  # V times [N, P]
            large = zip(z.split(images)[:2], scores.split(images)[:2], strict=True)
            codes = [self.codes(*of_view, view=view) for view, of_view in enumerate(large)]
            terms = [
                -(q * log_p[other]).sum(1).mean()
                for view, q in enumerate(codes)
                for other in range(len(log_p))
                if other != view
            ]
        return torch.stack(terms).mean(), {"std": embedding_std(z[:images])}

    def encode(self, views: list[torch.Tensor]) -> torch.Tensor:
        """Embeddings [V·N, C] of unit length.

        As in the authors' code, the backbone sees the views of one size together, since they make one tensor, and the
        head sees all: so BatchNorm's statistics are a size's there, and all views' here.
        """
        features = torch.cat([self.encoder.backbone(group) for group in views])
        return functional.normalize(self.encoder.head(features).float())

    def networks(self) -> list[nn.Module]:
        return [self.encoder.backbone, self.encoder.head]

    @torch.no_grad()
    def codes(self, z: torch.Tensor, scores: torch.Tensor, *, view: int) -> torch.Tensor:
        """How a large view's images are shared among the prototypes: [N, P], rows that add up to 1.

        Args:
            z: its embeddings [N, C]; they enter its queue when the step is over.
            scores: their similarities to the prototypes, [N, P].
            view: 0 or 1.
        """
        if self.queues:
            queue = cast(Queue, self.queues[view])
            if self.progress >= self.queue_start and queue.pushed >= len(queue):
                share = queue.keys[self.team.rank :: self.team.world]  # all hold the same queue: each brings a part
                scores = torch.cat([scores, share @ self.prototypes.T])
            self._embeddings.append(self.team.gather(z))
        return sinkhorn(scores, epsilon=self.epsilon, iterations=self.iterations, team=self.team)[: len(z)]

    def before_step(self) -> None:
        if self.progress < self.frozen:
            self.prototypes.grad = None  # an optimizer passes over it, with its momentum and weight decay

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring the prototypes back to unit length, and put this step's embeddings in the place of the oldest.

        Not at the next forward pass: so a checkpoint holds the prototypes as that pass will use them, and a step of
        several parts does not change under way what its gradients are taken at.
        """
        if self.progress >= self.frozen:
            self.prototypes.copy_(functional.normalize(self.prototypes))
        for turn, z in enumerate(self._embeddings):  # views alternate
            cast(Queue, self.queues[turn % 2]).push(z)
        self._embeddings.clear()


def sinkhorn(scores: torch.Tensor, *, epsilon: float, iterations: int, team: Team) -> torch.Tensor:
    """Share rows among columns: each row's shares add up to 1, and each column gets about as much as any other.

    Sinkhorn-Knopp on exp(scores / ε) over all ranks' rows: columns and rows are brought to equal sums in turn, rows
    last. In logarithms, where nothing overflows and no column's sum is 0, however small ε is.

    Args:
        scores: this rank's, float32 [B, P].

    Returns:
        This rank's shares [B, P].
    """
    log_q = scores / epsilon
    for _ in range(iterations):
        columns = team.gather(log_q.logsumexp(0, keepdim=True)).logsumexp(0)  # [P]: from each rank's sum, all ranks'
        log_q = (log_q - columns).log_softmax(1)
    return log_q.exp()
