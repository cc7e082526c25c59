"""Linear probes on augmented images, and fine-tuning, against plainly written loops."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from penstock.augment import RECIPES, Recipe
from penstock.augment.operations import CenterCrop, RandomChoice
from penstock.augment.recipe import View
from penstock.augment.recipes import dump_recipe
from penstock.engine.checkpoint import load_checkpoint
from penstock.engine.csv_log import read_csv
from penstock.engine.evaluate.classifier_config import PROTOCOLS, ClassifierConfig, learning_rate_share, training_recipe
from penstock.engine.evaluate.linear import LinearClassifier
from penstock.engine.evaluate.supervised import Training, build_classifier
from penstock.engine.precision import Precision
from penstock.engine.split_bn import SplitBatchNorm2d
from penstock.errors import UserError
from penstock.loaders import Order
from penstock.loaders.sources import ImageArrays
from tests.tiny_classifier import CLASSES, CPU, FEATURES, FP32, SIZE, TINY, TRAIN, VAL, fit, images, tiny_backbone

pytestmark = pytest.mark.usefixtures("one_thread", "quick_checkpoints")


def as_they_are(folder: Path) -> Recipe:
    """A file with the recipe whose one view is the image itself."""
    view = View(operations=(CenterCrop(fraction=1.0),), size=SIZE)
    recipe = Recipe(name="plain", about="", views=(view,), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    (folder / "plain.yaml").write_text(dump_recipe(recipe))
    return recipe


def normalised(source: ImageArrays, recipe: Recipe) -> torch.Tensor:
    pixels = (source.images / 255 - np.array(recipe.mean)) / np.array(recipe.std)
    return torch.from_numpy(pixels).float().permute(0, 3, 1, 2)


def network(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)["network"]


def test_a_probe_leaves_every_tensor_of_the_backbone_as_it_was(tmp_path: Path) -> None:
    backbone = tiny_backbone().train()
    before = copy.deepcopy(backbone.state_dict())
    result = fit(TINY, tmp_path, backbone)
    assert result.last.top1 > 60  # chance is 33
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in backbone.parameters())  # no graph was kept through it
    assert set(network(result.last_weights)) == {"weight", "bias"}


def test_the_probe_equals_a_plain_loop(tmp_path: Path) -> None:
    """Deterministic views; lr 0.5 until the drops at 60 and 80 % of five epochs, momentum .9, no weight decay."""
    recipe, backbone = as_they_are(tmp_path), tiny_backbone()
    config = replace(TINY, recipe=str(tmp_path / "plain.yaml"), epochs=5)
    result = fit(config, tmp_path, backbone, like=None)
    backbone.eval()
    with torch.no_grad():
        features, val_features = backbone(normalised(TRAIN, recipe)), backbone(normalised(VAL, recipe))
    head = build_classifier(tiny_backbone(), FEATURES, len(CLASSES), config, FP32).head
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    order, labels = Order(len(TRAIN), config.batch, seed=config.seed), torch.from_numpy(TRAIN.labels)
    for epoch in range(5):
        losses, right = [], []
        for step in range(order.steps()):
            chosen = torch.from_numpy(order.indices(epoch, step))
            x, y = features[chosen], labels[chosen]
            p = (x @ weight.T + bias).softmax(1)
            losses.append(-p[range(len(y)), y].log().mean().item())
            right.append((p.argmax(1) == y).float().mean().item())
            error = (p - nn.functional.one_hot(y, len(CLASSES))) / len(y)  # the gradient of the mean cross-entropy
            velocity = [0.9 * v + g for v, g in zip(velocity, (error.T @ x, error.sum(0)), strict=True)]
            lr = (0.5, 0.5, 0.5, 0.05, 0.005)[epoch]
            weight, bias = weight - lr * velocity[0], bias - lr * velocity[1]
    trained = network(result.last_weights)
    torch.testing.assert_close(trained["weight"], weight, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(trained["bias"], bias, atol=2e-5, rtol=1e-4)
    assert result.train.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert result.train.top1 == pytest.approx(100 * np.mean(right))
    logits = val_features @ weight.T + bias
    assert result.last.predicted.tolist() == logits.argmax(1).tolist()
    assert result.last.loss == pytest.approx(nn.functional.cross_entropy(logits, result.last.label).item(), rel=1e-4)


def test_fine_tuning_trains_a_copy_of_the_whole_network(tmp_path: Path) -> None:
    """One step over all images, against autograd: two learning rates, weight decay, smoothed labels."""
    recipe, backbone = as_they_are(tmp_path), tiny_backbone()
    before = copy.deepcopy(backbone.state_dict())
    config = replace(
        TINY, finetune=True, recipe=str(tmp_path / "plain.yaml"), epochs=1, batch=len(TRAIN), backbone_lr=0.2,
        weight_decay=0.01, label_smoothing=0.1, momentum=0.0, schedule="cosine",
    )  # fmt: skip
    result = fit(config, tmp_path, backbone, like=None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())

    plain = nn.ModuleDict({"backbone": tiny_backbone(), "head": nn.Linear(FEATURES, len(CLASSES))}).train()
    plain["head"].load_state_dict(build_classifier(backbone, FEATURES, len(CLASSES), config, FP32).head.state_dict())
    log_p = plain["head"](plain["backbone"](normalised(TRAIN, recipe))).log_softmax(1)
    target = 0.9 * nn.functional.one_hot(torch.from_numpy(TRAIN.labels), 3) + 0.1 / 3
    (-(target * log_p).sum(1).mean()).backward()
    trained = network(result.last_weights)
    for name, parameter in plain.named_parameters():
        lr = 0.5 if name.startswith("head") else 0.2
        assert parameter.grad is not None
        expected = parameter - lr * (parameter.grad + 0.01 * parameter)
        torch.testing.assert_close(trained[name], expected.detach(), atol=1e-6, rtol=1e-4, msg=name)
    for name in ("backbone.1.running_mean", "backbone.1.running_var"):
        torch.testing.assert_close(trained[name], plain.state_dict()[name])
    assert not torch.equal(trained["backbone.1.running_mean"], before["1.running_mean"])


def test_no_step_draws_what_another_has_drawn(tmp_path: Path) -> None:
    backbone, seeds = tiny_backbone(dropout=0.3), []
    backbone[5].register_forward_hook(
        lambda module, *_: seeds.append(torch.initial_seed()) if module.training else None
    )
    fit(replace(TINY, finetune=True), tmp_path, backbone)
    assert len(seeds) == len(set(seeds)) == 3 * (len(TRAIN) // 16)


def test_a_split_batch_norm_is_whole_again_when_fine_tuned() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, FEATURES, 1), SplitBatchNorm2d(FEATURES, splits=8))
    classifier = build_classifier(backbone, FEATURES, 3, replace(TINY, finetune=True), FP32)
    assert classifier.backbone[1].splits == 1 and backbone[1].splits == 8


def test_plain_images_beside_augmented_ones_have_the_same_labels(tmp_path: Path) -> None:
    """Where both views are the image itself, twice the images are the same gradient."""
    as_they_are(tmp_path)
    config = replace(TINY, recipe=str(tmp_path / "plain.yaml"))
    once, twice = (fit(replace(config, plain=plain), tmp_path / str(plain), like=None) for plain in (False, True))
    torch.testing.assert_close(network(twice.last_weights), network(once.last_weights))


@pytest.mark.parametrize("given", [{"lr": 30.0, "seed": 3, "epochs": 4}, {"lr": 5.0, "seed": 3}])
def test_the_log_the_figures_and_the_two_sets_of_weights(given: dict[str, Any], tmp_path: Path) -> None:
    """Learning rates at which the accuracy goes up and down; in the second run the last is as good as the best."""
    recipe, backbone = as_they_are(tmp_path), tiny_backbone()
    config = replace(TINY, recipe=str(tmp_path / "plain.yaml"), drops=(), **given)
    result = fit(config, tmp_path, backbone, like=None)
    rows = read_csv(result.log)
    assert [row["epoch"] for row in rows] == list(range(config.epochs + 1)) and "train_loss" not in rows[0]
    accuracies = [row["val_top1"] for row in rows]
    assert 0 < result.best.epoch == int(np.argmax(accuracies)) < config.epochs == result.last.epoch
    with torch.no_grad():
        features = backbone(normalised(VAL, recipe))
    for which, path in ((result.best, result.best_weights), (result.last, result.last_weights)):
        saved = load_checkpoint(path)
        assert saved["epoch"] == which.epoch and rows[which.epoch]["val_top1"] == pytest.approx(which.top1)
        found = (features @ saved["network"]["weight"].T + saved["network"]["bias"]).argmax(1)
        assert found.equal(which.predicted)
        assert which.top1 == pytest.approx(100 * (found.numpy() == VAL.labels).mean())
    assert result.last.label.tolist() == VAL.labels.tolist() and result.last.index.tolist() == list(range(len(VAL)))
    assert result.last.top5 == 100 and rows[-1]["train_top1"] == pytest.approx(result.train.top1)


def test_top_5_counts_the_five_most_likely(tmp_path: Path) -> None:
    noise = np.random.default_rng(3)
    labels = noise.integers(0, 9, 64)
    source = ImageArrays(noise.integers(0, 256, (64, SIZE, SIZE, 3), np.uint8), labels, tuple("abcdefghi"), "nine")
    bias = torch.arange(9.0) * 10  # whatever the image: i, h, g, f, e
    start = LinearClassifier(weight=torch.zeros(9, FEATURES), bias=bias)
    result = fit(replace(TINY, epochs=1, lr=1e-9), tmp_path, train=source, val=source, start=start)
    assert result.last.top1 == pytest.approx(100 * (labels == 8).mean())
    assert result.last.top5 == pytest.approx(100 * (labels >= 4).mean())
    assert result.train.top5 == pytest.approx(100 * (labels >= 4).mean())  # 64 images, so none was left out


def test_a_start_from_a_regression_predicts_as_it_does(tmp_path: Path) -> None:
    recipe, backbone = as_they_are(tmp_path), tiny_backbone().eval()
    with torch.no_grad():
        features = backbone(normalised(VAL, recipe))
    weight = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(5)) / features.std(0)
    start = LinearClassifier(weight=weight, bias=-weight @ features.mean(0))
    config = replace(PROTOCOLS["imagenette"], recipe=str(tmp_path / "plain.yaml"), epochs=1, lr=1e-12, loader="folder")
    result = fit(config, tmp_path, backbone, start=start, like=None)
    logits = features @ start.weight.T + start.bias
    assert result.best.epoch == 0 and result.best.predicted.equal(logits.argmax(1))
    assert len(set(result.best.predicted.tolist())) == 3
    assert read_csv(result.log)[0]["val_loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, torch.from_numpy(VAL.labels)).item(), rel=1e-5
    )


def test_the_first_weights_are_mocos() -> None:
    classifier = build_classifier(nn.Identity(), 2000, 100, TINY, FP32)
    assert classifier.head.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert abs(classifier.head.weight.mean().item()) < 1e-4 and not classifier.head.bias.any()
    other = build_classifier(nn.Identity(), 2000, 100, replace(TINY, seed=1), FP32)
    assert not torch.equal(classifier.head.weight, other.head.weight)


def test_the_backbone_alone_computes_in_half_precision(tmp_path: Path) -> None:
    half = Precision(device=CPU, dtype=torch.bfloat16)
    classifier = build_classifier(tiny_backbone(), FEATURES, 3, TINY, half)
    seen = []
    classifier.backbone[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    assert classifier(torch.zeros(2, 3, SIZE, SIZE)).dtype == torch.float32 and seen == [torch.bfloat16]
    assert fit(replace(TINY, finetune=True), tmp_path, precision=half).last.top1 > 45


def test_learning_rates() -> None:
    """MoCo's: 30 per 256 images, divided by 10 at epochs 60 and 80 of 100."""
    moco = PROTOCOLS["moco"]
    assert (moco.head_lr, moco.epochs, moco.batch, moco.weight_decay, moco.momentum) == (30.0, 100, 256, 0.0, 0.9)
    assert replace(moco, batch=64).head_lr == 7.5
    shares = [learning_rate_share(moco, epoch) for epoch in (0, 59.9, 60, 79.9, 80, 99.9)]
    assert shares == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = ClassifierConfig(schedule="cosine", epochs=10, warmup_epochs=2.0)
    shares = [learning_rate_share(cosine, epoch) for epoch in (0, 1, 2, 4, 6, 10)]
    assert shares == pytest.approx([0, 0.5, 1, (1 + math.cos(math.pi / 4)) / 2, 0.5, 0])
    assert replace(moco, optimizer="adam").head_lr == 0.001 and replace(moco, finetune=True).head_lr == 0.05


def test_the_pool_of_fourteen_is_trained_on_three_draws_and_plain_images() -> None:
    """At p .6, 112 px, 32 views a step: frozen or not."""
    for name in ("pool-14-probe", "pool-14-finetune"):
        config = PROTOCOLS[name]
        recipe = training_recipe(config)
        drawn, plain = recipe.views
        (pool,) = (operation for operation in drawn.operations if isinstance(operation, RandomChoice))
        assert pool.times == 3 and {o.p for o in pool.operations if o is not None} == {0.6}
        assert plain.operations == (CenterCrop(fraction=0.875),) and (drawn.count, plain.count) == (1, 1)
        assert len(recipe.groups) == 1 and recipe.size == 112 and recipe.mean == RECIPES["pool-14"].mean
        classifier = build_classifier(tiny_backbone(), FEATURES, 10, config, FP32)
        optimizer = Training(classifier, None, None, config, {}, Path()).optimizer
        assert isinstance(optimizer, torch.optim.Adam) and len(optimizer.param_groups) == 1 + config.finetune
        assert {(group["peak"], group["weight_decay"]) for group in optimizer.param_groups} == {(1e-3, 1e-4)}


def test_views_follow_the_pre_training() -> None:
    like = RECIPES["moco-cifar"].resized(24)
    recipe = training_recipe(TINY, like)
    assert (recipe.size, recipe.mean, recipe.std) == (24, like.mean, like.std) and recipe.count == 1
    assert training_recipe(replace(TINY, size=48), like).size == 48
    assert training_recipe(replace(TINY, recipe="moco-v2")).count == 1  # a classifier compares no pairs
    gradual = training_recipe(replace(TINY, recipe="gradual", epochs=8))
    assert [gradual.at(epoch) == gradual.at(0) for epoch in range(8)] == [True] * 2 + [False] * 6


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown(terminal: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(replace(TINY, epochs=2), tmp_path, progress=terminal)
    assert ("epoch 2/2: train_loss" in capsys.readouterr().out) == terminal


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "sdg"}, "--optimizer 'sdg' is not known: choose one of sgd"),
        ({"schedule": "cos"}, "--schedule 'cos' is not known"),
        ({"epochs": 0}, "--epochs 0"),
        ({"backbone_lr": 0.1}, "--backbone-lr 0.1: the backbone is frozen: add --finetune"),
        ({"label_smoothing": 1.0}, "--label-smoothing 1.0"),
        ({"momentum": 1.0}, "--momentum 1.0: this must be at least 0, and less than 1"),
        ({"weight_decay": -1e-4}, "--weight-decay -0.0001: this must be at least 0"),
        ({"warmup_epochs": -1.0}, "--warmup-epochs -1.0: this must be at least 0"),
        ({"warmup_epochs": math.inf}, "--warmup-epochs inf: this must be at least 0"),
        ({"lr": math.inf}, "--lr inf: this must be more than 0"),
        ({"drops": (60.0, 80.0)}, "--drops 60: these are shares of the run"),
        ({"drops": (0.6, 1.0)}, "--drops 1: these are shares of the run"),
        ({"size": 0}, "--size 0"),
        ({"workers": 0}, "--workers 0"),
        ({"loader": "fodler"}, "fodler"),
        ({"on_error": "go on"}, "--on-error 'go on' is not known: choose one of stop, skip"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassifierConfig(**given)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {"train": ImageArrays(TRAIN.images, [-1] * 72, (), "bare")}, "bare: none of its images has a label"),
        ({}, {"val": images(40, classes=("cat", "dog", "owl"))}, r"noise-40.*cat, dog, owl.*are not those"),
        ({"batch": 73}, {}, "--batch 73 is larger than the data"),
        ({"draws": 3}, {}, "--draws 3: --recipe probe has no pool"),
        ({"recipe": "prob"}, {}, "--recipe 'prob' is not known"),
        ({}, {"start": LinearClassifier(weight=torch.zeros(3, 5), bias=torch.zeros(3))}, r"\[3, 5\] cannot start"),
    ],
)
def test_what_cannot_be_trained_is_said_and_leaves_nothing(
    config: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fit(replace(TINY, **config), tmp_path / "out", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_images_without_a_label_are_left_out(tmp_path: Path) -> None:
    mixed = ImageArrays(VAL.images, np.where(np.arange(40) % 4, VAL.labels, -1), CLASSES, "mixed")
    result = fit(replace(TINY, epochs=1), tmp_path, val=mixed)
    assert result.last.label.tolist() == mixed.labels[mixed.labels >= 0].tolist()


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    huge = tiny_backbone()
    with torch.no_grad():
        huge[0].weight *= 1e30
    with pytest.raises(
        UserError, match=r"the loss of probe-augmented is (nan|inf), \d epochs? after.* try --lr below 1e\+30"
    ):
        fit(replace(TINY, lr=1e30), tmp_path, huge)
    assert not list(tmp_path.glob("*.partial"))
