"""SimCLR (Chen et al. 2020, arXiv 2002.05709).

    python engine/train.py --method simclr

Both views of all images go through the network together. Each of the 2G embeddings must pick the other view of its
image out of all others, those of all ranks: no queue, no second encoder, and the more images the better.

Shapes: N images in this rank's batch, G in all ranks', C the embedding's dimensions.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from penstock.engine.distributed import Team
from penstock.engine.method import Encoder, Loss
from penstock.engine.methods.contrastive import Contrastive
from penstock.engine.methods.embedding import embedding_std


class SimCLR(Contrastive):
    """The NT-Xent loss (section 2.1, equation 1) over all ranks' batches; see Contrastive for the options.

    Each rank takes the mean over its own 2N embeddings as queries. Their gradient reaches the other ranks' embeddings,
    too, so DDP's average is exactly the gradient of the whole batch's loss.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: float = 0.5,
        debias: float = 0.0,
        mochi: tuple[int, int, int] | None = None,
        seed: int = 0,
        team: Team | None = None,
    ) -> None:
        super().__init__(encoder, temperature=temperature, debias=debias, mochi=mochi, seed=seed, team=team)

    def loss(self, views: list[torch.Tensor], index: torch.Tensor) -> Loss:
        z = functional.normalize(self.encoder(views[0]).float())  # [2N, C], first views, then second ones
        loss, accuracy = self.contrast(z, self.team.gather_with_gradient(z))
        return loss, {"accuracy": accuracy, "std": embedding_std(z)}

    def contrast(self, z: torch.Tensor, everyone: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """NT-Xent of this rank's embeddings [2N, C] among all ranks' [2G, C], and the accuracy."""
        own = self.team.rank * len(z)  # where this rank's rows begin
        right = own + torch.arange(len(z), device=z.device).roll(len(z) // 2)
        with torch.autocast(z.device.type, enabled=False):  # half precision is too coarse for what T divides
            logits = (z / self.temperature) @ everyone.T  # [2N, 2G]
            # An embedding is not compared with itself. Autograd need not know: softmax gives −inf no gradient.
            logits.detach().diagonal(own).fill_(-torch.inf)
            return self.info_nce(z, logits, right, everyone, negatives=len(everyone) - 2)
