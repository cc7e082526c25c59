"""What the methods share in looking at their embeddings."""

from __future__ import annotations

import torch
from torch.nn import functional


@torch.no_grad()
def embedding_std(z: torch.Tensor) -> torch.Tensor:
    """How far embeddings [N, C] of different images are spread: about 1 over the whole sphere, 0 where they collapsed.

    The standard deviation over the images of each dimension of the normalised embeddings, averaged and multiplied by
    √C, as Chen & He 2021 (SimSiam, arXiv 2011.10566, section 4.1) look for collapse. float32 scalar.
    """
    unit = functional.normalize(z.detach().float())
    return unit.std(0, correction=0).mean() * z.shape[1] ** 0.5
