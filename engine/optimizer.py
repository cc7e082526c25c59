"""Optimizers, in their fused form on GPUs: one kernel for all parameters, and no wait for the gradient scaler."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from penstock.engine.config import CompleteConfig


def build_optimizer(config: CompleteConfig, network: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of a completed configuration, over the parameters that take gradients."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": device.type == "cuda"}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.sgd_momentum, **common)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(parameters, **common)
