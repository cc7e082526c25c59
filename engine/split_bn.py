"""Batch normalisation over parts of a batch: on one rank, what several ranks without SyncBN would compute.

MoCo needs it: a key normalised together with its own query leaks who belongs to whom through the statistics, and the
task can be solved without learning anything. He et al. 2020, section 3.3; the split form is that of the authors'
CIFAR-10 demo.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from penstock.errors import UserError


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that, in training, normalises each of `splits` consecutive parts of the batch by itself.

    One affine map serves all parts. The running statistics move by `momentum` towards the mean over the parts of each
    part's mean and unbiased variance, which is what averaging them over `splits` ranks would give; evaluation uses
    them as any BatchNorm does. Input [N, C, H, W] with N a multiple of `splits`, in either memory format, which is
    kept: a part is a range of whole samples, and so is dense in both.
    """

    momentum: float
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, features: int, *, splits: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(features, eps=eps, momentum=momentum)
        self.splits = splits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        means = self.running_mean.repeat(self.splits, 1)  # [splits, C]: each part moves a row of its own
        variances = self.running_var.repeat(self.splits, 1)
        parts = [
            functional.batch_norm(part, mean, variance, self.weight, self.bias, True, self.momentum, self.eps)
            for part, mean, variance in zip(x.chunk(self.splits), means, variances, strict=True)
        ]
        self.running_mean.copy_(means.mean(0))
        self.running_var.copy_(variances.mean(0))
        return torch.cat(parts)


def split_batch_norm(network: nn.Module, splits: int) -> nn.Module:
    """Make every BatchNorm2d of a network a SplitBatchNorm2d, in place; names in its state dict stay.

    Raises:
        UserError: the network normalises batches in a layer of another type, which this cannot split.
    """
    for name, child in network.named_children():
        if type(child) is nn.BatchNorm2d:
            momentum = child.momentum or 0.1
            split = SplitBatchNorm2d(child.num_features, splits=splits, eps=child.eps, momentum=momentum)
            split.load_state_dict(child.state_dict())
            setattr(network, name, split)
        elif isinstance(child, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"--bn-splits {splits}: this architecture uses {type(child).__name__}, which cannot be split:"
                " use --bn-splits 1, or several ranks"
            )
        else:
            split_batch_norm(child, splits)
    return network
