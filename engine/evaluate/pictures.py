"""An evaluation's pictures: which classes are taken for which, a map of the embeddings, how classifiers were trained.

N images, D dimensions, C classes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from penstock.engine.csv_log import Row

TEXT_COLOUR, MUTED_COLOUR = "#323f4b", "#9aa5b1"
NAMED, NUMBERED = 30, 12  # classes whose names, and whose shares, can still be read
LEGEND = 20  # classes that differ enough in colour
PARTS = {"train": ("training images, augmented", "#9aa5b1"), "val": ("validation images", "#0a7f88")}


def draw_confusions(confusions: Mapping[str, NDArray[np.int64]], classes: Sequence[str], path: Path) -> None:
    """One panel for each classifier; a row holds the shares of one class's images that were taken for each class.

    Args:
        confusions: int64 [C, C] by the classifier's name.
    """
    side = min(9.0, 2.6 + 0.32 * len(classes))
    figure = Figure(figsize=(side * len(confusions) + 0.8, side), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(confusions), squeeze=False)[0]
    for axes, (name, counts) in zip(panels, confusions.items(), strict=True):
        picture = _draw_confusion(axes, name, counts, classes)
    panels[0].set_ylabel("is", color=TEXT_COLOUR)
    scale = figure.colorbar(picture, ax=panels[-1], fraction=0.04, format="{x:.0%}")
    scale.outline.set_visible(False)
    scale.ax.tick_params(colors=TEXT_COLOUR, labelsize=8)
    figure.savefig(path, format="png")


def _draw_confusion(axes: Axes, name: str, counts: NDArray[np.int64], classes: Sequence[str]) -> Any:
    images = counts.sum(1, keepdims=True)
    share = np.divide(counts, images, out=np.zeros(counts.shape), where=images > 0)
    picture = axes.imshow(
        share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest"
    )  # rare ones show, too
    right = counts.trace() / max(1, counts.sum())
    axes.set_title(f"{name}: {right:.1%} right", fontsize=11, color=TEXT_COLOUR)
    axes.set_xlabel("taken for", color=TEXT_COLOUR)
    axes.tick_params(colors=TEXT_COLOUR, length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    if len(classes) <= NAMED:
        short = [textwrap.shorten(str(c), 18, placeholder="…") for c in classes]
        axes.set_xticks(range(len(classes)), short, rotation=90)
        axes.set_yticks(range(len(classes)), short)
    if len(classes) <= NUMBERED:
        for row, column in np.ndindex(share.shape):
            if counts[row, column]:
                colour = "white" if share[row, column] > 0.3 else TEXT_COLOUR
                text = f"{100 * share[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    return picture


def draw_curves(logs: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Loss and top-1 over the epochs, of training and validation images; one line of panels for each classifier.

    Args:
        logs: the rows of its CSV file by the classifier's name.
    """
    figure = Figure(figsize=(11, 3.4 * len(logs)), dpi=130, layout="constrained")
    lines = figure.subplots(len(logs), 2, squeeze=False)
    for panels, (name, rows) in zip(lines, logs.items(), strict=True):
        for axes, metric, title in zip(panels, ("loss", "top1"), ("loss", "top-1, %"), strict=True):
            _draw_curve(axes, f"{name}: {title}", metric, rows)
    handles, labels = lines[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=9, labelcolor=TEXT_COLOUR
    )
    figure.savefig(path, format="png")


def _draw_curve(axes: Axes, title: str, metric: str, rows: Sequence[Row]) -> None:
    for part, (label, colour) in PARTS.items():
        points = [(row["epoch"], row[f"{part}_{metric}"]) for row in rows if f"{part}_{metric}" in row]
        axes.plot(*zip(*points, strict=True), color=colour, label=label, marker="o" if len(points) == 1 else None)
    axes.set_title(title, fontsize=11, color=TEXT_COLOUR)
    axes.set_xlabel("epoch", color=TEXT_COLOUR)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(colors=TEXT_COLOUR, labelsize=8)
    axes.grid(color="#e3e8ec", linewidth=0.8)
    axes.spines[:].set_visible(False)


def embedding_map(unit: torch.Tensor, *, seed: int) -> dict[str, NDArray[np.float64]]:
    """Places in the plane, [N, 2], of embeddings [N, D] of unit length, by the name of the method that found them."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    values = unit.double().cpu().numpy()
    pca = PCA(2, random_state=seed)
    places = pca.fit_transform(values)
    kept = pca.explained_variance_ratio_.sum()
    perplexity = min(30.0, (len(values) - 1) / 3)
    neighbours = TSNE(2, init="pca", perplexity=perplexity, random_state=seed).fit_transform(values)
    return {f"PCA: {kept:.0%} of the variance": places, f"t-SNE, perplexity {perplexity:.0f}": neighbours}


def draw_map(
    places: Mapping[str, NDArray[np.float64]], labels: NDArray[np.int64], classes: Sequence[str], path: Path
) -> None:
    """A panel for each method of `embedding_map`; a point is an image, its colour the class."""
    figure = Figure(figsize=(12.5 if len(classes) <= LEGEND else 10.5, 5.2), dpi=130, layout="constrained")
    colours = _colours(len(classes))
    panels = figure.subplots(1, len(places), squeeze=False)[0]
    for axes, (title, place) in zip(panels, places.items(), strict=True):
        axes.scatter(place[:, 0], place[:, 1], s=9, c=colours[labels], linewidths=0, alpha=0.8)
        axes.set_title(title, fontsize=11, color=TEXT_COLOUR)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(MUTED_COLOUR)
    if len(classes) <= LEGEND:
        for k, name in enumerate(classes):
            panels[-1].scatter([], [], s=30, color=colours[k], label=textwrap.shorten(str(name), 22, placeholder="…"))
        panels[-1].legend(
            loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, labelcolor=TEXT_COLOUR
        )
    figure.savefig(path, format="png")


def _colours(classes: int) -> NDArray[np.float64]:
    """RGBA, float [C, 4]."""
    name = "tab10" if classes <= 10 else "tab20" if classes <= LEGEND else "gist_rainbow"
    colours = matplotlib.colormaps[name]
    return colours(np.arange(classes) if classes <= LEGEND else np.linspace(0, 1, classes))
