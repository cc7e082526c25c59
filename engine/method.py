"""What a method is to the loop: a module that turns a batch of views into a loss. `methods/` holds them.

N images in a batch, V views of each, S their side, D features, C the projection's dimensions.
"""

from __future__ import annotations

import torch
from torch import nn

from penstock.engine.distributed import Team

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]


class Encoder(nn.Module):
    """A backbone [N, 3, S, S] -> [N, D] and, on top of it, the projection head [N, D] -> [N, C] of the pre-training."""

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
        team: the ranks that train together.
        metrics: the names of what `loss` reports beside the loss; `std` is `embedding.embedding_std`.
        small_views: whether it uses views after the first two (multi-crop); if not, a recipe that has some is refused.
        unscheduled: names of the parts whose learning rate stays at its peak.
        progress: the share of the run that is over, 0 to 1; the loop sets it before each step.
    """

    metrics: tuple[str, ...] = ("std",)
    small_views: bool = False
    unscheduled: tuple[str, ...] = ()

    def __init__(self, encoder: Encoder, team: Team | None = None) -> None:
        super().__init__()
        self.encoder, self.team = encoder, team or Team()
        self.progress = 0.0

    def loss(self, views: list[torch.Tensor], index: torch.Tensor) -> Loss:
        """The loss of one batch, and what to log beside it; all scalars on the device, so that nothing waits for it.

        With gradient accumulation, called for each part of a batch before the hooks below are.

        Args:
            views: `Views.groups`: one tensor [V·N, 3, S, S] for each group of views of equal size, view by view.
            index: int64 [N], the samples' positions in the source.
        """
        raise NotImplementedError

    def networks(self) -> list[nn.Module]:
        """What `loss` calls that is worth compiling."""
        return [part for part in self.modules() if isinstance(part, Encoder)]

    def before_step(self) -> None:
        """What precedes the optimizer's step: gradients are there, averaged over the ranks."""

    def after_step(self) -> None:
        """What follows the optimizer's step, such as moving a momentum encoder."""

    def forward(self, views: list[torch.Tensor], index: torch.Tensor) -> Loss:
        """The loss, under the name that DistributedDataParallel wraps."""
        return self.loss(views, index)
