"""LARS, layer-wise adaptive rate scaling: SGD whose step is held in proportion to each layer's weights.

You, Gitman & Ginsburg 2017 (arXiv 1708.03888), in the form that SimCLR, BYOL and Barlow Twins train large batches with:
biases and normalisation are neither adapted nor decayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class LARS(torch.optim.Optimizer):
    """For each weight w with gradient g, decay λ and trust coefficient η:

        g ← g + λw;   g ← g · η‖w‖ / ‖g‖  (as it is where either norm is 0);   v ← μv + g;   w ← w − lr · v

    All tensors of a group in one call for each line, and nothing is read back from the device. A group with
    `adapted=False` skips the first two.

    Args:
        parameters: tensors, or groups of them.
        lr: learning rate. momentum: μ. weight_decay: λ. trust: η.
    """

    def __init__(
        self,
        parameters: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapted": True}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step_group(group, weights)
        return loss

    def _step_group(self, group: dict[str, Any], weights: list[torch.Tensor]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if group["adapted"]:
            gradients = _adapted(gradients, weights, decay=group["weight_decay"], trust=group["trust"])
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        velocities = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, gradients)
        torch._foreach_add_(weights, velocities, alpha=-group["lr"])


def _adapted(
    gradients: list[torch.Tensor], weights: list[torch.Tensor], *, decay: float, trust: float
) -> list[torch.Tensor]:
    """Gradients with decay, as long as `trust` of their weights."""
    decayed = torch._foreach_add(gradients, weights, alpha=decay)
    of_weights = torch.stack(torch._foreach_norm(weights))
    of_gradients = torch.stack(torch._foreach_norm(decayed))
    usable = (of_weights > 0) & (of_gradients > 0)
    ratios = torch.where(usable, trust * of_weights / of_gradients, 1.0)
    torch._foreach_mul_(decayed, list(ratios.unbind()))
    return list(decayed)
