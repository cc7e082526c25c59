"""What evaluates a network while it trains: kNN, and a logistic regression. Both judge by plain validation images.

    python engine/train.py --knn-every 1 --logistic-every 10 --keep-best logistic

An evaluation is a pure function of the network, the seed and the epoch: a run that was stopped and resumed finds what
one that never was does. It can be long, so it can be left in the middle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from penstock.engine.csv_log import Row
from penstock.engine.evaluate.features import Features, extract_features
from penstock.engine.evaluate.knn import knn_predict
from penstock.engine.evaluate.linear import LinearClassifier
from penstock.engine.evaluate.logistic import fit_logistic
from penstock.engine.evaluate.scores import accuracy
from penstock.engine.method import Encoder
from penstock.engine.precision import Precision
from penstock.loaders import Loader


def is_due(every: int, epoch: int, epochs: int) -> bool:
    """Whether what is done `every` so many epochs (0: never), and after the last, is done after so many."""
    return every > 0 and (epoch % every == 0 or epoch == epochs)


class Abandoned(Exception):
    """The run is to stop before its evaluation is over."""


class Snapshot:
    """A network at the end of an epoch, in evaluation mode, and what it makes of images.

    Args:
        val: the validation images, whose features are computed once.
        epoch: epochs that are over; decides the crops.
        check: called now and then; raises Abandoned.
    """

    def __init__(
        self, encoder: Encoder, val: Loader, precision: Precision, *, epoch: int, check: Callable[[], None]
    ) -> None:
        self.encoder, self.precision, self.epoch, self.check = encoder, precision, epoch, check
        self._val, self._known = val, dict[str, Features]()

    def features(self, images: Loader, *, on: str = "backbone", unit: bool = False) -> Features:
        """Of all images, by the backbone or the projection."""
        network = self.encoder if on == "projection" else self.encoder.backbone
        return extract_features(
            network, images, self.precision, unit=unit, epoch=self.epoch, advance=lambda count: self.check()
        )

    def val(self, *, on: str = "backbone") -> Features:
        if on not in self._known:
            self._known[on] = self.features(self._val, on=on)
        return self._known[on]


class OnlineProtocol(Protocol):
    """A way to evaluate.

    Attributes:
        name: of its column.
        every: epochs between two evaluations.
        train: labelled training images, in order.
    """

    name: ClassVar[str]

    @property
    def every(self) -> int: ...

    @property
    def train(self) -> Loader: ...

    def figures(self, seen: Snapshot) -> Row: ...


@dataclass(frozen=True, kw_only=True)
class OnlineKNN:
    """`knn`: per cent of the validation images whose class the training images' votes find (`knn.py`).

    Attributes:
        train: one plain view of each image.
        classes: C.
        k, temperature: see `knn.py`.
        on: `backbone`, or `projection`: whose output is compared.
    """

    every: int
    train: Loader
    classes: int
    k: int = 200
    temperature: float = 0.1
    on: str = "backbone"
    name: ClassVar[str] = "knn"

    def figures(self, seen: Snapshot) -> Row:
        bank, val = seen.features(self.train, on=self.on, unit=True), seen.val(on=self.on)
        found = knn_predict(
            val.unit, bank.values, bank.labels, classes=self.classes, k=self.k, temperature=self.temperature
        )
        return {"knn": accuracy(found[:, None], val.labels, classes=self.classes)["top1"]}


@dataclass(frozen=True, kw_only=True)
class OnlineLogistic:
    """`logistic`, `logistic_train`: per cent that a regression on the backbone's output finds (`logistic.py`).

    Attributes:
        train: one random crop of each image, flipped or not, others in each epoch: what it is fitted to.
        classes: C.
    """

    every: int
    train: Loader
    classes: int
    name: ClassVar[str] = "logistic"

    def figures(self, seen: Snapshot) -> Row:
        train, val = seen.features(self.train), seen.val()
        classifier = fit_logistic(train, classes=self.classes, between=seen.check).classifier
        return {"logistic": self._top1(classifier, val), "logistic_train": self._top1(classifier, train)}

    def _top1(self, classifier: LinearClassifier, features: Features) -> float:
        return accuracy(classifier.rank(features.values), features.labels, classes=self.classes)["top1"]


@dataclass(frozen=True, kw_only=True)
class OnlineEvaluation:
    """All that a run is evaluated by while it trains.

    Attributes:
        protocols: of which none, one or several are due at the end of an epoch.
        val: one plain view of each labelled validation image, in order.
        epochs: of the whole run; after the last one, all are due.
    """

    protocols: Sequence[OnlineProtocol]
    val: Loader
    epochs: int

    def figures(self, encoder: Encoder, precision: Precision, *, epoch: int, stop: Callable[[], object]) -> Row:
        """What those that are due find after so many epochs, and the seconds that each took.

        The validation images' features count for the first that needs them. The encoder is left in the mode it was in.

        Args:
            stop: asked now and then whether to leave off.

        Raises:
            Abandoned: it was to.
        """

        def check() -> None:
            if stop():
                raise Abandoned

        was_training, row = encoder.training, Row()
        seen = Snapshot(encoder.eval(), self.val, precision, epoch=epoch, check=check)
        try:
            for protocol in self.protocols:
                if is_due(protocol.every, epoch, self.epochs):
                    began = time.perf_counter()
                    row |= protocol.figures(seen)
                    row[f"{protocol.name}_seconds"] = time.perf_counter() - began
        finally:
            encoder.train(was_training)
        return row

    def close(self) -> None:
        for images in (self.val, *(protocol.train for protocol in self.protocols)):
            images.close()
