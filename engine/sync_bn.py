"""Batch normalisation by the statistics of all ranks' batches, which methods need whose loss compares a whole batch.

    network = synchronise_batch_norm(network, team)

Without it each rank's batch has statistics of its own, which tell a contrastive loss who belongs to whom (Chen et al.
2020, SimCLR, arXiv 2002.05709, section 2.2), and the loss is another one on another number of ranks (Goyal et al. 2017,
arXiv 1706.02677, section 2.3). On GPUs this is torch's layer. torch has none for CPUs: there it is ours.

N images in this rank's batch, G in all ranks', C channels.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from penstock.engine.distributed import Team
from penstock.engine.split_bn import SplitBatchNorm2d
from penstock.errors import UserError


class SyncBatchNorm(_BatchNorm):
    """BatchNorm1d and 2d that, in training, normalise the batches of all ranks as one; each brings as many images.

    Input [N, C], [N, C, L] or [N, C, H, W], in either memory format, which is kept; all arithmetic is in float32. The
    ranks exchange the mean and variance of their batches, from which those of all follow without cancellation: the
    mean of the variances and the variance of the means.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, features: int, *, team: Team) -> None:
        super().__init__(features)
        self.team = team

    def _check_input_dim(self, x: torch.Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        others = [d for d in range(x.ndim) if d != 1]  # all dimensions but the channels'
        wide = x.float()
        own = torch.stack(torch.var_mean(wide, others, correction=0))  # [2, C]
        variances, means = self.team.gather_with_gradient(own[None]).unbind(1)  # of each rank's batch: [ranks, C]
        mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)  # of all: [C]
        if self.track_running_stats:
            count = self.team.world * x.numel() // x.shape[1]  # values of a channel, over G images
            self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        shape = [-1] + [1] * (x.ndim - 2)  # [C, 1, 1]
        y = (wide - mean.view(shape)) * scale.view(shape)
        if self.affine:
            y = y + self.bias.view(shape)
        return y.to(x.dtype)

    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Move the running statistics, both [C], towards a batch's; without a momentum they are the mean of all."""
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def synchronise_batch_norm(network: nn.Module, team: Team) -> nn.Module:
    """Let every BatchNorm1d and 2d of a network normalise all ranks' batches as one, in place.

    Parameters stay the same objects, and names in the state dict the same names, so a checkpoint moves between numbers
    of ranks. On one rank nothing changes.

    Raises:
        UserError: the network normalises batches in a layer of another type, or in parts.
    """
    if team.world == 1 or isinstance(network, (SyncBatchNorm, nn.SyncBatchNorm)):
        return network
    if type(network) is nn.BatchNorm1d or type(network) is nn.BatchNorm2d:
        return _synchronised(network, team)
    if isinstance(network, SplitBatchNorm2d):
        raise UserError(
            f"--bn-splits {network.splits} normalises parts of each rank's batch, and this method all ranks' batches as"
            " one: use --bn-splits 1"
        )
    if isinstance(network, _BatchNorm):
        raise UserError(
            f"this architecture uses {type(network).__name__}, which cannot normalise several ranks' batches as one:"
            " choose another --arch, such as resnet18, or train on one rank"
        )
    for name, child in network.named_children():
        setattr(network, name, synchronise_batch_norm(child, team))
    return network


def _synchronised(layer: nn.BatchNorm1d | nn.BatchNorm2d, team: Team) -> nn.Module:
    if team.device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
        return converted
    sync = SyncBatchNorm(layer.num_features, team=team)
    vars(sync).update(vars(layer))  # its settings, parameters and buffers: an optimizer that knows them loses none
    return sync
