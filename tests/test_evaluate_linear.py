"""Logistic regression and the linear probe against scikit-learn's optimum, and against each other."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report, top_k_accuracy_score
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from penstock.engine.evaluate.features import Features
from penstock.engine.evaluate.linear import LinearClassifier, Scale
from penstock.engine.evaluate.linear_probe import Candidate, ProbeConfig, _fit, train_linear_probe
from penstock.engine.evaluate.logistic import fit_logistic
from penstock.engine.evaluate.scores import accuracy, class_report
from penstock.errors import UserError

CLASSES, DIMENSIONS = 4, 6


def clouds(images: int, classes: int = CLASSES, seed: int = 0) -> Features:
    """Overlapping classes, in features of very different scales, one of which never changes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, DIMENSIONS, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(images) % classes
    values = centres[labels] + torch.randn(images, DIMENSIONS, generator=generator)
    scale = torch.tensor([1e-3, 0.1, 1.0, 10.0, 300.0, 0.0])
    return Features(values=5 + values * scale, labels=labels)


def scikit_learn(train: Features, c: float) -> tuple[StandardScaler, LogisticRegression]:
    values = train.values.double().numpy()
    scaler = StandardScaler().fit(values)
    model = LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(scaler.transform(values), train.labels.numpy())
    return scaler, model


def probabilities(classifier: LinearClassifier, values: torch.Tensor) -> np.ndarray:
    logits = functional.linear(values.double(), classifier.weight.double(), classifier.bias.double())
    return logits.softmax(1).numpy()


@pytest.mark.parametrize("c", [0.01, 1.0])
@pytest.mark.parametrize("classes", [2, CLASSES])
def test_logistic_regression_is_scikit_learn_s_for_plain_features(c: float, classes: int) -> None:
    train, val = clouds(200, classes), clouds(80, classes, seed=1)
    found = fit_logistic(train, classes=classes, c=c)
    assert found.converged and found.classifier.weight.shape == (classes, DIMENSIONS)
    scaler, model = scikit_learn(train, c)
    expected = model.predict_proba(scaler.transform(val.values.double().numpy()))
    np.testing.assert_allclose(probabilities(found.classifier, val.values), expected, atol=2e-3)
    assert found.classifier.rank(val.values)[:, 0].tolist() == expected.argmax(1).tolist()


def test_a_linear_layer_goes_on_from_the_regression() -> None:
    train = clouds(200)
    classifier = fit_logistic(train, classes=CLASSES).classifier
    layer = torch.nn.Linear(DIMENSIONS, CLASSES)
    layer.load_state_dict({"weight": classifier.weight, "bias": classifier.bias})
    assert torch.equal(layer(train.values).argmax(1), classifier.rank(train.values)[:, 0])


def test_a_class_without_training_images_is_never_found() -> None:
    train = clouds(200, classes=3)
    classifier = fit_logistic(train, classes=5).classifier
    assert classifier.rank(train.values, top=3).max() == 2
    assert torch.isfinite(classifier.weight).all() and torch.isfinite(classifier.bias).all()


def test_a_regression_that_stops_early_says_so_without_a_warning() -> None:
    assert not fit_logistic(clouds(200), classes=CLASSES, iterations=1).converged


def test_a_line_search_that_fails_is_no_convergence(monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-learn warns of one as it does of too few iterations."""
    fit = LogisticRegression.fit

    def failing(self: LogisticRegression, *arguments: Any) -> LogisticRegression:
        warnings.warn("lbfgs failed to converge after 9 iterations: ABNORMAL", ConvergenceWarning, stacklevel=1)
        return fit(self, *arguments)

    monkeypatch.setattr(LogisticRegression, "fit", failing)
    found = fit_logistic(clouds(200), classes=CLASSES)
    assert not found.converged and found.iterations < 2000


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_every_round_is_heard_of(solver: str) -> None:
    config = ProbeConfig(solver=solver, weight_decays=(0.01, 0.1, 1.0), epochs=3)
    heard: list[int] = []
    train_linear_probe(clouds(60), classes=CLASSES, config=config, advance=heard.append)
    assert sum(heard) == config.rounds == {"sgd": 6, "lbfgs": 4}[solver]


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_the_converged_probe_is_scikit_learn_s_optimum(c: float) -> None:
    train, val = clouds(200), clouds(80, seed=1)
    config = ProbeConfig(solver="lbfgs", weight_decays=(1 / (c * len(train)),))
    classifier = train_linear_probe(train, classes=CLASSES, config=config).classifier
    scaler, model = scikit_learn(train, c)
    expected = model.predict_proba(scaler.transform(val.values.double().numpy()))
    np.testing.assert_allclose(probabilities(classifier, val.values), expected, atol=1e-4)
    standardised = classifier.weight.numpy() * scaler.scale_
    np.testing.assert_allclose(standardised[:, :5], model.coef_[:, :5], atol=1e-4)


def test_sgd_comes_to_the_same_optimum() -> None:
    train = clouds(200)
    decay = 1 / len(train)
    config = ProbeConfig(lrs=(1.0,), weight_decays=(decay,), epochs=400, batch=200)
    classifier = train_linear_probe(train, classes=CLASSES, config=config).classifier
    scaler, model = scikit_learn(train, 1.0)
    expected = model.predict_proba(scaler.transform(train.values.double().numpy()))
    np.testing.assert_allclose(probabilities(classifier, train.values), expected, atol=2e-3)


def test_candidates_trained_at_once_are_those_trained_alone() -> None:
    """And equal torch's own SGD, step by step."""
    train = clouds(60)
    values = Scale.of(train.values).apply(train.values)
    candidates = [Candidate(lr=lr, weight_decay=decay) for lr in (0.1, 1.0, 1e9) for decay in (0.0, 0.1)]
    config = ProbeConfig(epochs=3, batch=20)
    weight, bias = _fit(values, train.labels, candidates, CLASSES, config, None)
    generator = torch.Generator().manual_seed(config.seed)
    orders = [torch.randperm(60, generator=generator) for _ in range(3)]
    for k, candidate in enumerate(candidates[:4]):  # the last two diverge, which must not touch the others
        layer = torch.nn.Linear(DIMENSIONS, CLASSES)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        groups = [{"params": [layer.weight], "weight_decay": candidate.weight_decay}, {"params": [layer.bias]}]
        optimizer = torch.optim.SGD(groups, lr=candidate.lr, momentum=0.9)
        for step in range(9):
            part = orders[step // 3][step % 3 * 20 : step % 3 * 20 + 20]
            for group in optimizer.param_groups:
                group["lr"] = candidate.lr * (1 + math.cos(math.pi * step / 9)) / 2
            optimizer.zero_grad()
            functional.cross_entropy(layer(values[part]), train.labels[part]).backward()
            optimizer.step()
        torch.testing.assert_close(weight[k], layer.weight.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(bias[k], layer.bias.detach(), rtol=1e-4, atol=1e-5)


def test_the_best_candidate_is_chosen_on_images_that_it_did_not_see() -> None:
    """Among more noise than images every label can be learnt by heart: right on those seen, a guess on the others."""
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(120, 300, generator=generator), torch.randint(0, 2, (120,), generator=generator)
    config = ProbeConfig(lrs=(0.01,), weight_decays=(1e-5,), epochs=60, held_out=0.5)
    heard: list[int] = []
    probe = train_linear_probe(Features(values=values, labels=labels), classes=2, config=config, advance=heard.append)
    assert (probe.classifier.rank(values)[:, 0] == labels).all()  # trained once more, on all
    assert probe.held_out < 75
    assert sum(heard) == 120


def test_a_learning_rate_that_diverges_is_not_chosen() -> None:
    config = ProbeConfig(lrs=(1e30, 0.1), weight_decays=(0.0,), epochs=10)
    probe = train_linear_probe(clouds(200), classes=CLASSES, config=config)
    assert probe.chosen.lr == 0.1 and probe.held_out > 100 / CLASSES
    with pytest.raises(UserError, match=r"^--probe.lrs: the linear probe diverges at each of these learning rates"):
        train_linear_probe(clouds(200), classes=CLASSES, config=ProbeConfig(lrs=(1e30, 1e38), epochs=10))


def test_too_few_images_to_hold_out_and_wrong_settings_are_one_line() -> None:
    with pytest.raises(UserError, match=r"--probe.held-out 0.2 of 2 training images"):
        train_linear_probe(clouds(2), classes=2, config=ProbeConfig())
    cases: list[dict[str, Any]] = [
        {"solver": "adam"}, {"epochs": 0}, {"lrs": ()}, {"lrs": (math.nan,)}, {"weight_decays": (-1.0,)},
        {"momentum": 1.0}, {"momentum": -0.1}, {"held_out": 0.0}, {"held_out": 1.0}, {"held_out": 20.0},
    ]  # fmt: skip
    for wrong in cases:
        with pytest.raises(UserError, match=r"^--probe\.\w+[^\n]*$"):
            ProbeConfig(**wrong)


def test_accuracy_is_scikit_learn_s() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 8, generator=generator)
    labels = torch.randint(0, 8, (200,), generator=generator)
    found = accuracy(scores.topk(5).indices, labels, classes=8)
    for name, k in (("top1", 1), ("top5", 5)):
        assert found[name] == pytest.approx(100 * top_k_accuracy_score(labels.numpy(), scores.numpy(), k=k))
    assert set(accuracy(scores[:, :5].topk(5).indices, labels % 5, classes=5)) == {"top1"}


def test_the_report_of_a_class_is_scikit_learn_s() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, predicted = torch.randint(0, 5, (2, 100), generator=generator)
    predicted[predicted == 4] = -1  # no prediction, and a class that is never predicted
    found = class_report(predicted, labels, classes=5)
    expected = classification_report(labels, predicted, labels=range(5), output_dict=True, zero_division=0.0)
    for k in range(5):
        ours = (found.precision[k], found.recall[k], found.f1[k], found.support[k])
        assert ours == pytest.approx([expected[str(k)][x] for x in ("precision", "recall", "f1-score", "support")])
        for other in range(5):
            assert found.confusion[k, other] == int(((labels == k) & (predicted == other)).sum())
