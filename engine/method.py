"""What a method is to the loop: a module that turns a batch of views into a loss. `moco.py` is one.

N images in a batch, V views of each, S their side, D features.
"""

from __future__ import annotations

import torch
from torch import nn


class Encoder(nn.Module):
    """A backbone and, on top of it, the projection head that only the pre-training uses."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))


class Method(nn.Module):
    """The step, the loop, evaluation, checkpoints and logs know no more of a method than this.

    Everything that its next step depends on is in its state dict, or a pure function of what is there: a resumed run
    ends where an uninterrupted one does.

    Attributes:
        encoder: the network that is trained, and evaluated.
        metrics: the names of what `loss` reports beside the loss.
    """

    encoder: Encoder
    metrics: tuple[str, ...] = ()

    def loss(self, views: list[torch.Tensor], index: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of one batch, and what to log beside it; all scalars on the device, so that nothing waits for it.

        Args:
            views: `Views.groups`: one tensor [V·N, 3, S, S] for each group of views of equal size.
            index: int64 [N], the samples' positions in the source.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """What follows the optimizer's step, such as moving a momentum encoder."""

    def forward(self, views: list[torch.Tensor], index: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, under the name that DistributedDataParallel wraps."""
        return self.loss(views, index)
