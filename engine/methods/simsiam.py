"""SimSiam (Chen & He 2021, arXiv 2011.10566).

    python engine/train.py --method simsiam

A predictor guesses one view's projection from the other's. No negatives, no momentum encoder, no large batch: what is
guessed takes no gradient, and that alone keeps the network from giving every image the same projection.

Shapes: N images in this rank's batch, C the projection's dimensions.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from penstock.engine.distributed import Team
from penstock.engine.method import Encoder, Loss, Method
from penstock.engine.methods.embedding import embedding_std


class SimSiam(Method):
    """−½ cos(p₁, z₂) − ½ cos(p₂, z₁), the mean over the images: −1 where each guess is right.

    z are the projections, which take no gradient here, and p what the predictor makes of them. The paper reports the
    spread of z, `std`, beside the loss: 0 is collapse, and 1 what independent Gaussian dimensions have.

    Args:
        encoder: on its device.
        predictor: [N, C] -> [N, C].
        team: the ranks that train together.
    """

    unscheduled = ("predictor",)  # section 4.2: it should keep up with the latest projections

    def __init__(self, encoder: Encoder, predictor: nn.Module, *, team: Team | None = None) -> None:
        super().__init__(encoder, team)
        self.predictor = predictor

    def loss(self, views: list[torch.Tensor], index: torch.Tensor) -> Loss:
        first, second = views[0].chunk(2)
        z1, z2 = self.encoder(first), self.encoder(second)  # apart: BatchNorm's statistics are each view's own
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = -(mean_cosine(p1, z2.detach()) + mean_cosine(p2, z1.detach())) / 2
        return loss, {"std": embedding_std(z1)}


def mean_cosine(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The cosine between corresponding rows of two [N, C], their mean; in float32."""
    return functional.cosine_similarity(p.float(), z.float()).mean()
