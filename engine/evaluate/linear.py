"""A linear classifier on features, and the standardisation in which it is fitted.

Features of networks differ in scale by orders of magnitude, and so would the learning rates and the regularisation that
suit them. So both are meant for features of mean 0 and variance 1; afterwards that is folded into weight and bias.

N images, D features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class LinearClassifier:
    """`nn.Linear`'s weight and bias, for features as the network gives them.

    Attributes:
        weight: float32 [C, D].
        bias: float32 [C].
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def rank(self, features: torch.Tensor, top: int = 1) -> torch.Tensor:
        """The `top` most likely classes of features [N, D], int64 [N, top], the likeliest first."""
        logits = functional.linear(features, self.weight, self.bias)  # [N, C]
        return logits.topk(min(top, len(self.bias))).indices


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Mean and standard deviation of each feature, [D] each."""

    mean: torch.Tensor
    std: torch.Tensor

    @staticmethod
    def of(features: torch.Tensor) -> Scale:
        """A feature that never changes is left as large as it is."""
        std, mean = torch.std_mean(features, dim=0, correction=0)
        return Scale(mean=mean, std=std.where(std > 1e-6 * mean.abs().clamp(min=1e-6), 1.0))

    def apply(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.std

    def fold(self, weight: torch.Tensor, bias: torch.Tensor) -> LinearClassifier:
        """The classifier of plain features that is weight [C, D] and bias [C] of standardised ones."""
        plain = weight / self.std
        return LinearClassifier(weight=plain.float(), bias=(bias - plain @ self.mean).float())
