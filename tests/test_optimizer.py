"""LARS against its equations, and which parameters the optimizers treat apart."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from penstock.engine.checkpoint import load_checkpoint, save_checkpoint
from penstock.engine.config import TrainConfig
from penstock.engine.defaults import complete
from penstock.engine.distributed import Team
from penstock.engine.lars import LARS
from penstock.engine.method import Encoder
from penstock.engine.methods import build_method
from penstock.engine.methods.simsiam import SimSiam
from penstock.engine.optimizer import build_optimizer, parameter_groups, set_learning_rate
from penstock.engine.schedule import learning_rate
from penstock.engine.train import main


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
    given = TrainConfig(method="simsiam", optimizer="lars", lr=1.0, bias_lr_ratio=0.5)
    optimizer = build_optimizer(complete(given, source="cifar10-train", length=5000, world=1), simsiam())
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.125, 1.0, 0.5]


@pytest.mark.parametrize(
    ("epoch", "of_weights", "of_biases"),
    [(2.5, 0.4, 0.0096), (10.0, 1.6, 0.0384), (340.0, 1.2, 0.0288), (505.0, 0.8, 0.0192), (1000.0, 0.0, 0.0)],
)
def test_barlow_twins_biases_and_norms_learn_at_the_paper_s_rate(
    epoch: float, of_weights: float, of_biases: float
) -> None:
    """.2 and .0048, times 2048 / 256: reached in 10 of 1000 epochs, then a cosine, at a third 3/4 and half-way 1/2."""
    given = TrainConfig(method="barlow-twins", batch=2048, epochs=1000)
    config = complete(given, source="imagenet-train", length=1_281_167, world=1)
    method = build_method(replace(config, width=8, dim=16, hidden=16, size=16, stem="cifar"), Team())
    optimizer = build_optimizer(config, method)
    set_learning_rate(optimizer, learning_rate(config, epoch))
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    slow = {id(p) for m in method.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for p in m.parameters()}
    slow |= {id(parameter) for name, parameter in method.named_parameters() if name.endswith("bias")}
    before = copy.deepcopy(list(method.parameters()))
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for was, parameter in zip(before, method.parameters(), strict=True):
        assert rates[parameter] == pytest.approx(of_biases if id(parameter) in slow else of_weights)
        if id(parameter) in slow:  # neither adapted nor decayed
            torch.testing.assert_close(parameter, was - of_biases)
    assert {id(parameter) for parameter in rates} > slow


def test_a_resumed_run_keeps_its_ratio_and_one_of_before_there_was_any_has_none(tmp_path: Path) -> None:
    tiny = ["--method", "barlow-twins", "--optimizer", "lars", "--subset", "64", "--batch", "32", "--size", "16",
            "--width", "8", "--dim", "16", "--hidden", "16", "--workers", "1", "--knn-every", "0"]  # fmt: skip
    last = tmp_path / "last.pt"

    def rates() -> dict[bool, float]:
        return {group["adapted"]: group["lr"] for group in load_checkpoint(last)["optimizer"]["param_groups"]}

    assert main([*tiny, "--epochs", "1", "--warmup-epochs", "0", "--accumulate", "2", "--out", str(tmp_path)]) == 0
    assert rates()[False] == pytest.approx(0.024 * rates()[True]) and rates()[True] > 0
    assert main(["--resume", str(last), "--epochs", "2", "--lr", "0.1", "--final-lr", "0.1"]) == 0
    assert rates() == pytest.approx({True: 0.1, False: 0.0024})
    state = load_checkpoint(last)
    del state["config"]["bias_lr_ratio"]
    for group in state["optimizer"]["param_groups"]:
        del group["ratio"]
    save_checkpoint(last, state)
    assert main(["--resume", str(last), "--epochs", "3"]) == 0
    assert rates() == {True: 0.1, False: 0.1}


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
