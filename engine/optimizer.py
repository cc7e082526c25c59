"""Optimizers, in their fused form: one kernel for all parameters, and no wait for the gradient scaler (but LARS's)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from penstock.engine.config import CompleteConfig
from penstock.engine.lars import LARS
from penstock.engine.method import Method


def build_optimizer(config: CompleteConfig, method: Method) -> torch.optim.Optimizer:
    """The optimizer of a completed configuration, over the method's parameters that take gradients.

    Each group's learning rate is `ratio` times the configuration's.
    """
    groups = parameter_groups(method, apart=config.optimizer == "lars")
    for group in groups:
        group["ratio"] = 1.0 if group["adapted"] else config.bias_lr_ratio
        group["lr"] = config.lr * group["ratio"]
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "lars":
        return LARS(groups, momentum=config.sgd_momentum, **common)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.sgd_momentum, fused=True, **common)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(groups, fused=True, **common)


def parameter_groups(method: Method, *, apart: bool) -> list[dict[str, Any]]:
    """Parameters that are treated alike, the scheduled weights first; empty groups are left out.

    Args:
        apart: whether biases and the scales and shifts of normalisation form groups of their own, which LARS neither
            adapts nor decays.

    Each group has `params`, `scheduled` (whether its learning rate follows the schedule) and `adapted` (for LARS). The
    encoder and each other part of a method have groups of their own: fused SGD fails where only some of a group have
    momentum yet, as when SwAV's prototypes join late.
    """
    groups: dict[tuple[bool, bool, str], list[nn.Parameter]] = {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            part = name.split(".")[0]
            adapted = not (apart and parameter.ndim == 1)
            groups.setdefault((part not in method.unscheduled, adapted, part), []).append(parameter)
    return [{"params": groups[key], "scheduled": key[0], "adapted": key[1]} for key in sorted(groups, reverse=True)]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give it to every group that follows the schedule, by the group's `ratio`."""
    for group in optimizer.param_groups:
        if group["scheduled"]:
            group["lr"] = lr * group["ratio"]
