"""BYOL, Bootstrap Your Own Latent (Grill et al. 2020, arXiv 2006.07733).

    python engine/train.py --method byol

A predictor guesses, from the online network's projection of one view, what the target network makes of the other. The
target follows the online network slowly, takes no gradient, and stands still in the end. There are no negatives.

Shapes: N images in this rank's batch, C the projection's dimensions.
"""

from __future__ import annotations

import torch
from torch import nn

from penstock.engine.distributed import Team
from penstock.engine.method import Encoder, Loss, Method
from penstock.engine.methods.embedding import embedding_std
from penstock.engine.methods.momentum import Follower, momentum_copy, scheduled_momentum
from penstock.engine.methods.simsiam import mean_cosine


class BYOL(Method):
    """2 − 2 cos(q(z₁), z′₂), and the same with the views exchanged: their sum, and its mean over the images.

    z are the online network's projections, q(z) what the predictor makes of them, z′ the target network's projections.
    The loss is 0 where each guess is right, and 4 where they know nothing.

    Args:
        encoder: the online network's, on its device; the target's starts as a copy. Their statistics of BatchNorm are
            each network's own.
        predictor: q, [N, C] -> [N, C].
        momentum: how much of itself the target keeps at each step, at first.
        momentum_schedule: `cosine`, as the paper has it: rising to 1 over the run; or `constant`.
        team: the ranks that train together.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: nn.Module,
        *,
        momentum: float = 0.996,
        momentum_schedule: str = "cosine",
        team: Team | None = None,
    ) -> None:
        super().__init__(encoder, team)
        self.momentum, self.momentum_schedule = momentum, momentum_schedule
        self.predictor = predictor
        self.target = momentum_copy(encoder)
        self._target_follows = Follower(self.target, encoder)

    def loss(self, views: list[torch.Tensor], index: torch.Tensor) -> Loss:
        first, second = views[0].chunk(2)
        z1, z2 = self.encoder(first), self.encoder(second)  # apart: BatchNorm's statistics are each view's own
        with torch.no_grad():
            target1, target2 = self.target(first), self.target(second)
        cosines = mean_cosine(self.predictor(z1), target2) + mean_cosine(self.predictor(z2), target1)
        return 4 - 2 * cosines, {"std": embedding_std(z1)}

    def after_step(self) -> None:
        self._target_follows.follow(scheduled_momentum(self.momentum, self.momentum_schedule, self.progress))
