"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230).

    python engine/train.py --method barlow-twins

Over the batch, each dimension of one view's projection is correlated with each of the other view's. What is wanted is
the identity: a dimension agrees with itself under any augmentation, and no two dimensions tell the same. No image is
held against another, so there are no negatives, and nothing is stopped or slowed to keep the network from collapsing.

Shapes: N images in this rank's batch, G in all ranks', C the projection's dimensions.
"""

from __future__ import annotations

import torch
from torch import nn

from penstock.engine.distributed import Team
from penstock.engine.method import Encoder, Loss, Method
from penstock.engine.methods.embedding import embedding_std
from penstock.engine.sync_bn import synchronise_batch_norm


class BarlowTwins(Method):
    """Σ (1 − c_ii)² + λ Σ_{i≠j} c_ij², where c [C, C] correlates the views' projections over all ranks' images.

    The sum is multiplied by nothing, as in the authors' code of today, and so grows with C.

    Args:
        encoder: on its device; its projections are not normalised in the end, since this does so.
        dim: C.
        redundancy: λ, what a correlation between different dimensions costs.
        team: the ranks over whose images dimensions are correlated.
    """

    def __init__(self, encoder: Encoder, *, dim: int, redundancy: float = 5e-3, team: Team | None = None) -> None:
        super().__init__(encoder, team)
        self.redundancy = redundancy
        plain = nn.BatchNorm1d(dim, affine=False, track_running_stats=False)
        self.standardise = synchronise_batch_norm(plain, self.team)  # [N, C]: mean 0 and variance 1 over the G images

    def loss(self, views: list[torch.Tensor], index: torch.Tensor) -> Loss:
        first, second = views[0].chunk(2)
        z_a, z_b = self.encoder(first), self.encoder(second)  # apart: BatchNorm's statistics are each view's own
        return self.redundancy_reduction(z_a, z_b), {"std": embedding_std(z_a)}

    def redundancy_reduction(self, z_a: torch.Tensor, z_b: torch.Tensor) -> torch.Tensor:
        """The loss of two views' projections [N, C]; in float32.

        Where C is 8192, c is 256 MB. So as little as can be is of that size beside c and its gradient: the second sum
        is that over all of c less the diagonal's, and the diagonal, whose gradient would be one more, is worked out by
        itself.
        """
        with torch.autocast(z_a.device.type, enabled=False):
            a, b = self.standardise(z_a.float()), self.standardise(z_b.float())
            b = b / (self.team.world * len(b))  # G
            c = self.team.sum(a.T @ b)  # [C, C]
            diagonal = self.team.sum((a * b).sum(0))  # [C]
            redundant = torch.linalg.vector_norm(c).square() - diagonal.square().sum()
            return (1 - diagonal).square().sum() + self.redundancy * redundant
