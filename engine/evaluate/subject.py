"""One network before the images it is evaluated on: what every protocol is given.

Features are computed when a protocol first asks for them, and once: kNN, both linear classifiers and the map share
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from penstock.augment import Recipe
from penstock.engine.evaluate.data import EVALUATION_BATCH, in_order, plain_view, probe_view, spread
from penstock.engine.evaluate.features import Advance, Features, extract_features
from penstock.engine.evaluate.geometry import EmbeddedViews, embed_views
from penstock.engine.method import Encoder
from penstock.engine.precision import Precision
from penstock.engine.seeds import derive_seed
from penstock.loaders import Source
from penstock.loaders.progress import WHOLE


@contextmanager
def bar(name: str, total: int) -> Iterator[Advance]:
    """A progress bar on standard error until the block ends; call what it yields with how many more are done."""
    text, count = TextColumn("{task.description:<38}"), MofNCompleteColumn(table_column=WHOLE)
    times = (TimeElapsedColumn(table_column=WHOLE), TimeRemainingColumn(table_column=WHOLE))
    columns = (text, BarColumn(), count, *times)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total)
        yield lambda count: progress.advance(task, count)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network and the images that it is shown.

    Attributes:
        name: `trained` or `untrained`, for the progress bars.
        encoder: in evaluation mode, on the device.
        on: `backbone`, or `projection`: whose output is evaluated.
        train, val: labelled images of the same classes.
        recipe: of the training: its normalisation, and its first views, whose geometry is measured.
        size: side of the views.
        out: where a protocol that trains for long keeps its files.
    """

    name: str
    encoder: Encoder
    on: str
    train: Source
    val: Source
    recipe: Recipe
    size: int
    precision: Precision
    out: Path
    batch: int = EVALUATION_BATCH
    workers: int | None = None
    on_error: str = "stop"
    seed: int = 0

    @property
    def network(self) -> nn.Module:
        """[N, 3, S, S] -> [N, D]."""
        return self.encoder if self.on == "projection" else self.encoder.backbone

    @property
    def classes(self) -> int:
        return len(self.train.classes)

    @cached_property
    def features(self) -> int:
        """Of the backbone."""
        with torch.no_grad():
            image = torch.zeros(1, 3, self.size, self.size, device=self.precision.device)
            return self.encoder.backbone(image).flatten(1).shape[1]

    @cached_property
    def plain_train(self) -> Features:
        return self._features("training images", self.train, plain_view(self.size, self.recipe))

    @cached_property
    def cropped_train(self) -> Features:
        """Of one random crop of each training image, flipped or not."""
        crops = derive_seed(self.seed, "evaluation")  # other than those that a classifier begins to train on
        return self._features("training images, cropped", self.train, probe_view(self.size, self.recipe), seed=crops)

    @cached_property
    def plain_val(self) -> Features:
        return self._features("validation images", self.val, plain_view(self.size, self.recipe))

    def _features(self, what: str, source: Source, recipe: Recipe, **other: int) -> Features:
        with (
            in_order(source, recipe, **self._options | other) as loader,
            bar(self.title(what), len(source)) as advance,
        ):
            return extract_features(self.network, loader, self.precision, advance=advance)

    def views(self, source: Source, *, images: int, views: int) -> EmbeddedViews:
        """Augmented views of up to so many of a source's images, at equal distances."""
        source = spread(source, images)
        total = len(source) * -(-views // self.recipe.count)
        title = self.title(f"augmented {'training' if source.name == self.train.name else 'validation'} images")
        with in_order(source, self.recipe, **self._options) as loader, bar(title, total) as advance:
            return embed_views(self.network, loader, self.precision, views=views, advance=advance)

    @property
    def _options(self) -> dict[str, Any]:
        device = self.precision.device
        return {"batch": self.batch, "workers": self.workers, "device": device, "on_error": self.on_error,
                "seed": self.seed}  # fmt: skip

    def title(self, what: str) -> str:
        return what if self.name == "trained" else f"{self.name}: {what}"
