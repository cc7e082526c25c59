"""LARS against its equations, and which parameters the optimizers treat apart."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from penstock.engine.config import TrainConfig
from penstock.engine.defaults import complete
from penstock.engine.distributed import Team
from penstock.engine.lars import LARS
from penstock.engine.method import Encoder
from penstock.engine.methods import build_method
from penstock.engine.methods.simsiam import SimSiam
from penstock.engine.optimizer import build_optimizer, parameter_groups, set_learning_rate


def test_lars_equals_its_equations_written_out() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(4, 3), torch.randn(5), torch.zeros(2, 2), torch.randn(3, 3)]
    ours = [nn.Parameter(weight.clone()) for weight in weights]
    optimizer = LARS(
        [{"params": [ours[0], ours[2], ours[3]]}, {"params": [ours[1]], "adapted": False}],
        lr=0.5, momentum=0.9, weight_decay=0.1, trust=0.02,
    )  # fmt: skip
    velocity = [torch.zeros_like(weight) for weight in weights]
    for _ in range(4):
        gradients = [torch.randn(weight.shape) for weight in weights]
        for parameter, gradient in zip(ours, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        for i, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            if i != 1:
                gradient = gradient + 0.1 * weight
                w, g = weight.norm().item(), gradient.norm().item()
                gradient = gradient * (0.02 * w / g if w > 0 and g > 0 else 1.0)
            velocity[i] = 0.9 * velocity[i] + gradient
            weights[i] = weight - 0.5 * velocity[i]
        for parameter, weight in zip(ours, weights, strict=True):
            torch.testing.assert_close(parameter.detach(), weight)


def test_lars_leaves_a_weight_without_gradient_or_decay_as_it_is() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.zeros(2, 2)
    LARS([weight], lr=1.0).step()
    assert torch.equal(weight, torch.ones(2, 2))


def test_lars_goes_on_from_its_state_and_passes_over_what_has_no_gradient() -> None:
    first = nn.Parameter(torch.ones(2, 2))
    idle = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([first, idle], lr=1.0)
    first.grad = torch.eye(2)
    optimizer.step()
    assert torch.equal(idle, torch.ones(2, 2)) and not optimizer.state[idle]
    second = nn.Parameter(first.detach().clone())
    other = LARS([second, nn.Parameter(torch.ones(2, 2))], lr=1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    second.grad = first.grad.clone()
    optimizer.step()
    other.step()
    assert torch.equal(first, second)


def simsiam() -> SimSiam:
    return SimSiam(Encoder(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Linear(4, 4))


def test_the_predictor_keeps_its_learning_rate_and_lars_leaves_vectors_alone() -> None:
    groups = parameter_groups(simsiam(), apart=True)
    kinds = [(group["scheduled"], group["adapted"], [tuple(p.shape) for p in group["params"]]) for group in groups]
    assert kinds == [
        (True, True, [(4, 3, 3, 3)]),
        (True, False, [(4,), (4,), (4,)]),
        (False, True, [(4, 4)]),
        (False, False, [(4,)]),
    ]
    optimizer = torch.optim.SGD(parameter_groups(simsiam(), apart=False), lr=1.0)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 1.0]


@pytest.mark.parametrize("kind", ["sgd", "lars", "adam", "adamw"])
def test_every_optimizer_moves_all_that_is_trained_and_nothing_else(kind: str) -> None:
    config = complete(TrainConfig(method="byol", optimizer=kind), source="cifar10-train", length=5000, world=1)
    small = replace(config, width=8, dim=16, hidden=16, predictor=16, size=16, lr=0.1)
    method = build_method(small, Team())
    optimizer = build_optimizer(small, method)
    before = copy.deepcopy(dict(method.named_parameters()))
    method([torch.randn(8, 3, 16, 16)], torch.arange(4))[0].backward()
    optimizer.step()
    for name, parameter in method.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
