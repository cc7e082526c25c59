"""Features of images, as every protocol on a frozen network takes them, while it trains and afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from penstock.augment import RECIPES
from penstock.engine.evaluate.data import check_same_classes, in_order, plain_view
from penstock.engine.evaluate.features import extract_features
from penstock.engine.precision import Precision
from penstock.errors import UserError
from penstock.loaders import Loader
from penstock.loaders.sources import ImageArrays

CPU = torch.device("cpu")
FP32 = Precision(device=CPU, dtype=None)
IMAGES, SIZE = 37, 8  # more than a whole number of batches
LIKE = RECIPES["moco-cifar"]


def source(classes: tuple[str, ...] = ("a", "b", "c")) -> ImageArrays:
    noise = np.random.default_rng(0)
    labels = noise.integers(0, 3, IMAGES)
    return ImageArrays(noise.integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8), labels, classes, "noise")


def loader(batch: int = 8) -> Loader:
    return in_order(source(), plain_view(SIZE, LIKE), batch=batch, workers=1, device=CPU)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()  # [N, 5, 1, 1]


@pytest.mark.parametrize("unit", [False, True])
def test_features_are_those_of_each_image_in_order(unit: bool) -> None:
    images, net = source(), network()
    heard: list[int] = []
    with loader() as batches:
        found = extract_features(net, batches, FP32, unit=unit, advance=heard.append)
    pixels = (images.images / 255 - np.array(LIKE.mean)) / np.array(LIKE.std)
    with torch.no_grad():
        expected = net(torch.from_numpy(pixels).float().permute(0, 3, 1, 2)).flatten(1)
    torch.testing.assert_close(found.values, normalize(expected) if unit else expected, atol=1e-4, rtol=1e-4)
    assert found.labels.tolist() == images.labels.tolist() and heard == [8, 8, 8, 8, 5]


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    broken = network()
    with torch.no_grad():
        broken[0].bias[1] = value
    half = Precision(device=CPU, dtype=torch.bfloat16)
    with loader() as batches:
        with pytest.raises(UserError, match=r"its weights are broken; take an earlier checkpoint$"):
            extract_features(broken, batches, FP32)
        with pytest.raises(UserError, match=r"take an earlier checkpoint, or try --amp off$"):
            extract_features(broken, batches, half)


def test_classes_that_differ_are_said_with_what_can_be_done() -> None:
    with pytest.raises(UserError, match=r"^val: .*\(x, y, z, …\).*: choose another --val-data$"):
        check_same_classes(source(), source(("x", "y", "z")), name="val")
    with pytest.raises(UserError, match=r": add --knn-every 0$"):
        check_same_classes(source(), source(("x", "y", "z")), name="val", remedy="add --knn-every 0")
