"""The geometry of embeddings: what separates good representations from bad ones without any classifier.

Alignment and uniformity are Wang & Isola 2020 (arXiv 2005.10242). Huang et al. 2021 (arXiv 2111.00743) bound the error
of a nearest-centre classifier by three things: the alignment of an image's views, the divergence of the classes'
centres, and the concentration of augmented data, for which they define

    d_A(x₁, x₂) = min ‖x₁′ − x₂′‖ over the views x₁′ of x₁ and x₂′ of x₂          the augmented distance
    a (σ, δ)-augmentation: a share σ of every class, its main part, has d_A ≤ δ between any two of its images

Here the views are V draws of each image by the checkpoint's own recipe, so that every distance is from above, and
closer with more of them. The least δ for a given σ asks for the largest clique of a graph; it is bracketed instead:

    radius     the least r such that a share σ of the class has d_A ≤ r from one image of the class
    diameter   of the shares σ that are nearest to one image each, the least largest d_A between two of their images

Any main part lies within δ of each of its own images, so radius ≤ δ; and such a share is a main part, so δ ≤ diameter.
d_A is measured twice: between pixels, as in the paper, where it depends on the augmentation alone; and between
embeddings, where it shows what the network makes of it.

V views, N images, D dimensions, C classes; embeddings are of unit length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from penstock.engine.evaluate.features import Advance, embed
from penstock.engine.methods.embedding import embedding_std
from penstock.engine.precision import Precision
from penstock.errors import UserError
from penstock.loaders import Loader

PIXELS = 32  # the side to which views are shrunk before their pixels are compared


@dataclass(frozen=True, kw_only=True)
class EmbeddedViews:
    """V views of N images.

    Attributes:
        embeddings: float32 [V, N, D], of unit length.
        pixels: float32 [V, N, P], normalised as the network sees them, at most PIXELS² of them; divided by √P, so that
            a distance is a root mean square.
        labels: int64 [N].
    """

    embeddings: torch.Tensor
    pixels: torch.Tensor
    labels: torch.Tensor


@torch.no_grad()
def embed_views(
    network: nn.Module, loader: Loader, precision: Precision, *, views: int, advance: Advance | None = None
) -> EmbeddedViews:
    """Views of every image of the loader, which keeps their order: one epoch's after the other, until there are enough.

    The recipe's views are all of one size.

    Raises:
        UserError: embeddings are not finite.
    """
    epochs = -(-views // loader.recipe.count)
    rounds = [_embed_epoch(network, loader, precision, epoch, advance) for epoch in range(epochs)]
    embeddings, pixels, labels = zip(*rounds, strict=True)
    return EmbeddedViews(embeddings=torch.cat(embeddings)[:views], pixels=torch.cat(pixels)[:views], labels=labels[0])


def _embed_epoch(
    network: nn.Module, loader: Loader, precision: Precision, epoch: int, advance: Advance | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    embeddings, pixels, labels = [], [], []
    for batch, output in embed(network, loader, precision, epoch=epoch, advance=advance):
        images = batch.groups[0]  # [V·n, 3, S, S]
        small = functional.adaptive_avg_pool2d(images, min(PIXELS, images.shape[-1])).flatten(1)
        embeddings.append(functional.normalize(output).unflatten(0, (-1, len(batch))))
        pixels.append((small / small.shape[1] ** 0.5).unflatten(0, (-1, len(batch))))
        labels.append(batch.label.to(images.device))
    return torch.cat(embeddings, 1), torch.cat(pixels, 1), torch.cat(labels)


def alignment(z: torch.Tensor) -> torch.Tensor:
    """Mean of ‖f(x) − f(x⁺)‖² over all pairs of views of an image and all images, of embeddings [V, N, D]."""
    first, second = torch.triu_indices(len(z), len(z), 1)
    return (z[first] - z[second]).square().sum(2).mean()


def uniformity(z: torch.Tensor, t: float = 2.0) -> torch.Tensor:
    """log of the mean of exp(−t·‖f(x) − f(y)‖²) over all pairs of images, of embeddings [N, D]."""
    return (-t * functional.pdist(z).square()).exp().mean().log()


def class_centres(z: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Mean of the embeddings [V, N, D] of each class that has any, over its images and their views, [C, D]."""
    views = z.mean(0)
    return torch.stack([views[labels == k].mean(0) for k in range(classes) if (labels == k).any()])


def divergence(centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and the largest of μₖ·μₗ over pairs of classes: small (or negative) where classes lie apart."""
    first, second = torch.triu_indices(len(centres), len(centres), 1)
    products = (centres @ centres.T)[first, second]
    return products.mean(), products.max()


def augmented_distances(views: torch.Tensor) -> torch.Tensor:
    """d_A between all pairs of images, [n, n], of their views [V, n, P]; 0 from each to itself."""
    count, images, _ = views.shape
    flat = views.flatten(0, 1)
    nearest = torch.cdist(flat, flat).view(count, images, count, images).amin((0, 2))
    return nearest.fill_diagonal_(0.0)


def concentration(views: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Radius and diameter, as defined above, of the views [V, n, P] of one class's images, for a share σ of them."""
    distances = augmented_distances(views)
    count = math.ceil(share * len(distances))
    nearest = distances.topk(count, largest=False)  # of each image, itself among them
    diameters = torch.stack([distances[part][:, part].max() for part in nearest.indices])
    return nearest.values[:, -1].min(), diameters.min()


def geometry(views: EmbeddedViews, *, classes: int, share: float) -> dict[str, float]:
    """All of it, by name. Concentration is that of the worst class, as the paper's definition has it, and the mean.

    Raises:
        UserError: the images are all of one class.
    """
    z, labels = views.embeddings, views.labels
    check_several_classes(labels)
    centres = class_centres(z, labels, classes)
    mean_product, largest_product = divergence(centres)
    found = {
        "alignment": alignment(z),
        "uniformity": uniformity(z[0]),
        "std": embedding_std(z[0]),
        "centres_mean": mean_product,
        "centres_max": largest_product,
    }
    for name, x in (("embedding", z), ("pixel", views.pixels)):
        found |= {f"{name}_{what}": value for what, value in concentrations(x, labels, share).items()}
    return {name: float(value) for name, value in found.items()}


def check_several_classes(labels: torch.Tensor) -> None:
    """Raises UserError where the labels [N] of images are all the same: then there are no two centres."""
    if (labels == labels[0]).all():
        raise UserError(
            f"the {len(labels)} images whose geometry would be measured are all of one class: raise --geometry-images,"
            " or leave geometry out of --protocols"
        )


def concentrations(views: torch.Tensor, labels: torch.Tensor, share: float) -> dict[str, torch.Tensor]:
    """Of views [V, N, P], the largest radius and diameter of a class, and the mean of all classes'."""
    bounds = [concentration(views[:, labels == k], share) for k in labels.unique()]
    radius, diameter = (torch.stack(values) for values in zip(*bounds, strict=True))
    return {"radius": radius.max(), "diameter": diameter.max(), "radius_mean": radius.mean(),
            "diameter_mean": diameter.mean()}  # fmt: skip
