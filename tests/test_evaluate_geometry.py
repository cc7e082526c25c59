"""The geometry of embeddings against plain loops over the definitions in the papers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from penstock.engine.evaluate.geometry import (
    EmbeddedViews,
    alignment,
    augmented_distances,
    class_centres,
    concentration,
    divergence,
    geometry,
    uniformity,
)
from penstock.errors import UserError

VIEWS, IMAGES, CLASSES = 3, 12, 3


@pytest.fixture
def views() -> EmbeddedViews:
    generator = torch.Generator().manual_seed(0)
    z = normalize(torch.randn(VIEWS, IMAGES, 5, generator=generator), dim=2)
    pixels = torch.rand(VIEWS, IMAGES, 7, generator=generator)
    return EmbeddedViews(embeddings=z, pixels=pixels, labels=torch.arange(IMAGES) % CLASSES)


def test_alignment_is_the_mean_squared_distance_of_two_views(views: EmbeddedViews) -> None:
    z = views.embeddings.double().numpy()
    pairs = [
        np.sum((z[v, i] - z[w, i]) ** 2) for i in range(IMAGES) for v, w in itertools.combinations(range(VIEWS), 2)
    ]
    assert float(alignment(views.embeddings)) == pytest.approx(np.mean(pairs), rel=1e-5)


def test_uniformity_is_the_log_of_the_mean_gaussian_potential(views: EmbeddedViews) -> None:
    z = views.embeddings[0].double().numpy()
    pairs = [math.exp(-2 * np.sum((z[i] - z[j]) ** 2)) for i, j in itertools.combinations(range(IMAGES), 2)]
    assert float(uniformity(views.embeddings[0])) == pytest.approx(math.log(np.mean(pairs)), rel=1e-5)
    assert float(uniformity(torch.ones(4, 5))) == 0  # all in one place
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(uniformity(opposite)) == pytest.approx(-8)


def test_centres_and_their_products(views: EmbeddedViews) -> None:
    z = views.embeddings.double().numpy()
    centres = []
    for k in range(CLASSES):
        members = [z[v, i] for v in range(VIEWS) for i in range(IMAGES) if i % CLASSES == k]
        centres.append(np.mean(members, axis=0))
    found = class_centres(views.embeddings, views.labels, CLASSES + 1)  # a class without images has no centre
    np.testing.assert_allclose(found.numpy(), centres, atol=1e-6)
    products = [centres[k] @ centres[m] for k, m in itertools.combinations(range(CLASSES), 2)]
    mean, largest = divergence(found)
    assert (float(mean), float(largest)) == pytest.approx((np.mean(products), max(products)), abs=1e-6)


def plain_distances(x: np.ndarray) -> np.ndarray:
    """d_A: the least distance of a view of one image to a view of the other."""
    count, images, _ = x.shape
    found = np.zeros((images, images))
    for i, j in itertools.product(range(images), repeat=2):
        found[i, j] = min(np.linalg.norm(x[v, i] - x[w, j]) for v in range(count) for w in range(count))
    return found


def test_augmented_distance_is_that_of_the_nearest_views(views: EmbeddedViews) -> None:
    found = augmented_distances(views.pixels)
    np.testing.assert_allclose(found.numpy(), plain_distances(views.pixels.double().numpy()), atol=1e-6)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.75, 1.0])
def test_concentration_brackets_the_paper_s(share: float, views: EmbeddedViews) -> None:
    """The least δ for which a share of the class lies within δ of each other, by trying every part of the class."""
    x = views.pixels[:, :8]
    distances = plain_distances(x.double().numpy())
    count = math.ceil(share * 8)
    least = min(
        max((distances[i, j] for i, j in itertools.combinations(part, 2)), default=0.0)
        for part in itertools.combinations(range(8), count)
    )
    radius, diameter = map(float, concentration(x, share))
    assert radius - 1e-6 <= least <= diameter + 1e-6
    assert radius == pytest.approx(min(sorted(row)[count - 1] for row in distances), abs=1e-6)
    nearest = [sorted(range(8), key=lambda j, row=row: row[j])[:count] for row in distances]
    assert diameter == pytest.approx(min(distances[np.ix_(part, part)].max() for part in nearest), abs=1e-6)


def test_geometry_has_the_worst_class_and_the_mean(views: EmbeddedViews) -> None:
    found = geometry(views, classes=CLASSES, share=0.75)
    for name, x in (("embedding", views.embeddings), ("pixel", views.pixels)):
        bounds = [concentration(x[:, views.labels == k], 0.75) for k in range(CLASSES)]
        radii, diameters = ([float(value) for value in values] for values in zip(*bounds, strict=True))
        assert found[f"{name}_radius"] == pytest.approx(max(radii))
        assert found[f"{name}_diameter"] == pytest.approx(max(diameters))
        assert found[f"{name}_radius_mean"] == pytest.approx(np.mean(radii))
        assert found[f"{name}_diameter_mean"] == pytest.approx(np.mean(diameters))
    assert found["alignment"] == pytest.approx(float(alignment(views.embeddings)))


def test_images_of_one_class_have_no_two_centres(views: EmbeddedViews) -> None:
    alone = EmbeddedViews(embeddings=views.embeddings, pixels=views.pixels, labels=torch.full((IMAGES,), 2))
    with pytest.raises(UserError, match=r"^the 12 images .* are all of one class: raise --geometry-images, or leave"):
        geometry(alone, classes=CLASSES, share=0.75)


def test_collapsed_embeddings_show() -> None:
    z = normalize(torch.ones(2, 6, 4), dim=2)
    found = geometry(EmbeddedViews(embeddings=z, pixels=z, labels=torch.arange(6) % 2), classes=2, share=0.9)
    assert found["alignment"] == 0 and found["std"] == pytest.approx(0, abs=1e-6)
    assert found["uniformity"] == pytest.approx(0) and found["centres_max"] == pytest.approx(1)
