"""The linear probe on cached features: a linear classifier, trained on the device in seconds.

Candidates of every learning rate and weight decay are trained at once. They see the same batches, so that the logits of
all of them are one product, [B, D] × [D, K·C], which costs the device little more than a single candidate's. The best
is chosen on a part of the training images that none of them saw, never on the validation images, and trained once more
on all training images.

Minimised is, for standardised features, the mean cross-entropy + weight_decay / 2 · ‖weight‖². scikit-learn's
LogisticRegression has its optimum where weight_decay = 1 / (C · N); the solver `lbfgs` ends there.

N images, B in a batch, D features, C classes, K candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch.nn import functional

from penstock.engine.evaluate.features import Advance, Features
from penstock.engine.evaluate.linear import LinearClassifier, Scale
from penstock.errors import UserError

SOLVERS = ("sgd", "lbfgs")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the linear probe is trained.

    Raises:
        UserError: a value that no training can have.
    """

    solver: str = "sgd"
    """sgd, or lbfgs: to the optimum on all images at once, for a set that fits the device; learning rates and epochs
    mean nothing to it."""
    lrs: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    """Learning rates to choose from, each lowered to 0 along a cosine; features are standardised."""
    weight_decays: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2)
    """Weight decays to choose from."""
    epochs: int = 50
    """Passes over the features."""
    batch: int = 512
    """Features in a step."""
    momentum: float = 0.9
    """Of SGD."""
    held_out: float = 0.2
    """The share of the training images on which the best is chosen."""
    seed: int = 0
    """Decides which those are, and the order of the rest."""

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise UserError(f"--probe.solver {self.solver!r} is not known: choose one of {', '.join(SOLVERS)}")
        for field in ("epochs", "batch"):
            if getattr(self, field) < 1:
                raise UserError(f"--probe.{field} {getattr(self, field)}: this must be at least 1")
        if not self.lrs or not all(0 < lr < math.inf for lr in self.lrs):
            raise UserError("--probe.lrs: give learning rates that are more than 0, and finite")
        if not self.weight_decays or not all(0 <= decay < math.inf for decay in self.weight_decays):
            raise UserError("--probe.weight-decays: give weight decays that are 0 or more, and finite")
        if not 0 <= self.momentum < 1:
            raise UserError(f"--probe.momentum {self.momentum}: this must be at least 0, and less than 1")
        if not 0 < self.held_out < 1:
            raise UserError(f"--probe.held-out {self.held_out}: this is a share of the images, between 0 and 1")

    @property
    def rounds(self) -> int:
        """What training takes, as `advance` hears of it: epochs, or for lbfgs each candidate and the best once more."""
        return len(_candidates(self)) + 1 if self.solver == "lbfgs" else 2 * self.epochs

    def held_out_of(self, images: int) -> int:
        """How many of the training images are held out.

        Raises:
            UserError: none, or all.
        """
        held = round(self.held_out * images)
        if not 1 <= held < images:
            raise UserError(
                f"--probe.held-out {self.held_out:g} of {images} training images: it takes at least one to train on and"
                " one to choose by: use 0.2, and more images"
            )
        return held


@dataclass(frozen=True, kw_only=True)
class Candidate:
    lr: float
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A trained probe.

    Attributes:
        classifier: for plain features.
        chosen: by which learning rate and weight decay.
        held_out: per cent of the held-out training images that it classified rightly when it was chosen.
    """

    classifier: LinearClassifier
    chosen: Candidate
    held_out: float


def train_linear_probe(train: Features, *, classes: int, config: ProbeConfig, advance: Advance | None = None) -> Probe:
    """Choose the best candidate and train it on all features; `advance` hears of every round.

    Raises:
        UserError: too few images to hold any out, or no learning rate at which it does not diverge.
    """
    scale = Scale.of(train.values)
    values, labels = scale.apply(train.values), train.labels
    kept, held = _held_out(len(train), config, labels.device)
    candidates = _candidates(config)
    weight, bias = _fit(values[kept], labels[kept], candidates, classes, config, advance)
    best, rightly = _best(weight, bias, values[held], labels[held])
    weight, bias = _fit(values, labels, [candidates[best]], classes, config, advance)
    return Probe(classifier=scale.fold(weight[0], bias[0]), chosen=candidates[best], held_out=100 * rightly)


def _held_out(images: int, config: ProbeConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the images to train on, and of those to choose by."""
    held = config.held_out_of(images)
    mixed = torch.randperm(images, generator=torch.Generator().manual_seed(config.seed)).to(device)
    return mixed[held:], mixed[:held]


def _candidates(config: ProbeConfig) -> list[Candidate]:
    lrs = config.lrs[:1] if config.solver == "lbfgs" else config.lrs
    return [Candidate(lr=lr, weight_decay=decay) for lr, decay in product(lrs, config.weight_decays)]


def _best(weight: torch.Tensor, bias: torch.Tensor, values: torch.Tensor, labels: torch.Tensor) -> tuple[int, float]:
    """The candidate that is right most often, of several such the one with the least loss; and how often it is.

    Raises:
        UserError: none has a loss that is a number: all have diverged.
    """
    rightly, loss = torch.zeros(2, len(weight), device=weight.device)
    for x, y in zip(values.split(4096), labels.split(4096), strict=True):
        logits = _logits(x, weight, bias)  # [B, K, C]
        rightly += (logits.argmax(2) == y[:, None]).float().sum(0)
        loss += _losses(logits, y) * len(y)
    share = (rightly / len(labels)).tolist()
    finite = loss.isfinite().nonzero().flatten().tolist()
    if not finite:
        raise UserError("--probe.lrs: the linear probe diverges at each of these learning rates: give lower ones")
    best = max(finite, key=lambda k: (share[k], -loss[k].item()))
    return best, share[best]


def _logits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Of features [B, D] by weights [K, C, D] and biases [K, C]: [B, K, C], in one product."""
    return functional.linear(x, weight.flatten(0, 1), bias.flatten()).unflatten(1, bias.shape)


def _losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each candidate's mean cross-entropy, [K], of logits [B, K, C]."""
    repeated = labels[:, None].expand(-1, logits.shape[1])
    return functional.cross_entropy(logits.transpose(1, 2), repeated, reduction="none").mean(0)


def _fit(
    values: torch.Tensor,
    labels: torch.Tensor,
    candidates: list[Candidate],
    classes: int,
    config: ProbeConfig,
    advance: Advance | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [K, C, D] and biases [K, C], trained from zero: the loss is convex."""
    weight = values.new_zeros(len(candidates), classes, values.shape[1]).requires_grad_()
    bias = values.new_zeros(len(candidates), classes).requires_grad_()
    decay = values.new_tensor([candidate.weight_decay for candidate in candidates])  # [K]
    if config.solver == "lbfgs":
        _descend_lbfgs(weight, bias, values, labels, decay, advance)
    else:
        lr = values.new_tensor([candidate.lr for candidate in candidates])  # [K]
        _descend_sgd(weight, bias, values, labels, lr, decay, config, advance)
    return weight.detach(), bias.detach()


def _descend_sgd(
    weight: torch.Tensor,
    bias: torch.Tensor,
    values: torch.Tensor,
    labels: torch.Tensor,
    lr: torch.Tensor,
    decay: torch.Tensor,
    config: ProbeConfig,
    advance: Advance | None,
) -> None:
    """SGD with momentum, every candidate with its own learning rate; the sum of their losses has each its gradient."""
    batch = min(config.batch, len(values))
    steps = len(values) // batch
    generator = torch.Generator().manual_seed(config.seed)
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for epoch in range(config.epochs):
        order = torch.randperm(len(values), generator=generator).to(values.device)
        for step in range(steps):
            part = order[step * batch : (step + 1) * batch]
            loss = _losses(_logits(values[part], weight, bias), labels[part]).sum()
            gradients = torch.autograd.grad(loss, (weight, bias))
            now = lr * (1 + math.cos(math.pi * (epoch * steps + step) / (config.epochs * steps))) / 2
            with torch.no_grad():
                velocity[0].mul_(config.momentum).add_(gradients[0]).add_(decay[:, None, None] * weight)
                velocity[1].mul_(config.momentum).add_(gradients[1])
                weight -= now[:, None, None] * velocity[0]
                bias -= now[:, None] * velocity[1]
        if advance is not None:
            advance(1)


def _descend_lbfgs(
    weight: torch.Tensor,
    bias: torch.Tensor,
    values: torch.Tensor,
    labels: torch.Tensor,
    decay: torch.Tensor,
    advance: Advance | None,
) -> None:
    """One candidate after the other: each has a curvature and a step length of its own. In float64, as in float32 the
    line search gives up before the gradient is small."""
    wide = values.double()
    for k in range(len(weight)):
        w, b = _optimum(wide, labels, weight[k : k + 1].double(), bias[k : k + 1].double(), float(decay[k]))
        with torch.no_grad():
            weight[k], bias[k] = w[0], b[0]
        if advance is not None:
            advance(1)


def _optimum(
    values: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, decay: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [1, C, D] and bias [1, C] at the minimum, by L-BFGS on all images at once."""
    weight, bias = weight.detach().requires_grad_(), bias.detach().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=2000, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = _losses(_logits(values, weight, bias), labels).sum() + decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()
