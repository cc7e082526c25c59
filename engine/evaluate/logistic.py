"""Logistic regression on frozen features, by scikit-learn: the protocol by which MoCo v2 was followed on Imagenette.

There the training images are seen once by RandomResizedCrop and flip (recipe `probe`), the validation images by resize
and centre crop, and the regression is where a linear layer's training starts from. All features lie in memory, as
float64: for ImageNet's 1.28 million take the linear probe.

N images, D features, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.engine.evaluate.features import Features
from penstock.engine.evaluate.linear import LinearClassifier, Scale

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

NEVER = -1e4  # bias of a class that the training images do not show
ROUND = 100  # iterations that scikit-learn cannot be stopped in


@dataclass(frozen=True, kw_only=True)
class Logistic:
    """A fitted regression.

    Attributes:
        classifier: for plain features; an `nn.Linear` with its weight and bias goes on from here.
        iterations: of L-BFGS.
        converged: whether it came to an optimum; else the iterations were too few, or the line search failed.
    """

    classifier: LinearClassifier
    iterations: int
    converged: bool


def fit_logistic(
    train: Features,
    *,
    classes: int,
    c: float = 1.0,
    iterations: int = 2000,
    between: Callable[[], None] = lambda: None,
) -> Logistic:
    """Fit to the training images.

    Args:
        c: scikit-learn's C, the inverse of the regularisation's strength, for standardised features.
        iterations: of L-BFGS, at most.
        between: called every hundred iterations; what it raises leaves the fit.
    """
    from sklearn.linear_model import LogisticRegression

    values = train.values.double().cpu()  # in float32 the line search gives up before the gradient is small
    scale = Scale.of(values)
    model = LogisticRegression(C=c, warm_start=True)
    done, converged = _fit(model, scale.apply(values).numpy(), train.labels.cpu().numpy(), iterations, between)
    weight, bias = _of_all_classes(model.classes_, model.coef_, model.intercept_, classes)
    folded, device = scale.fold(weight, bias), train.values.device
    moved = LinearClassifier(weight=folded.weight.to(device), bias=folded.bias.to(device))
    return Logistic(classifier=moved, iterations=done, converged=converged)


def _fit(
    model: LogisticRegression,
    values: NDArray[np.float64],
    labels: NDArray[np.int64],
    iterations: int,
    between: Callable[[], None],
) -> tuple[int, bool]:
    """Fit in rounds, each from where the last one ended. Returns how many iterations it took, and whether it converged.

    The warning that it did not converge is what tells a round that came to its end from one that ran out.
    """
    from sklearn.exceptions import ConvergenceWarning

    done = 0
    while True:
        model.max_iter = min(ROUND, iterations - done)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(values, labels)
        took = int(model.n_iter_.max())
        done += took
        converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        if converged or took < model.max_iter or done >= iterations:  # few, and not converged: the line search failed
            return done, converged
        between()


def _of_all_classes(
    seen: np.ndarray, coefficients: np.ndarray, intercept: np.ndarray, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [C, D] and bias [C] of what scikit-learn found for the classes that it saw."""
    if len(coefficients) == 1:  # two classes: it keeps the second one's odds
        halves = np.array([-0.5, 0.5])
        coefficients, intercept = halves[:, None] * coefficients, halves * intercept
    weight = torch.zeros(classes, coefficients.shape[1], dtype=torch.float64)
    bias = torch.full((classes,), NEVER, dtype=torch.float64)
    weight[seen], bias[seen] = torch.from_numpy(coefficients), torch.from_numpy(intercept)
    return weight, bias
