"""What a published table is made of: entries, each a run of ours beside the figure that stands there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.engine.csv_log import read_csv
from penstock.engine.runs import DOWNSTREAM, Evaluation

Settings = Mapping[str, Any]  # of TrainConfig, by the names of its fields
Score = Callable[[Path], float | None]  # a run's figure, from its folder; None: not there yet


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One figure of a table.

    Attributes:
        row: labels of its row, one for each of the table's headings.
        column: what stands above it.
        run: name of the run that it is taken from; entries of one run have equal `settings` and `evaluation`.
        settings: what the run is trained with, as published; `epochs` is among them.
        score: takes the figure from the run's folder.
        published, published_std: the figure to expect, and its standard deviation over seeds; None: not published.
    """

    row: tuple[str, ...]
    column: str
    run: str
    settings: Settings
    score: Score
    evaluation: Evaluation | None = None
    published: float | None = None
    published_std: float | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A published table.

    Attributes:
        name: what is typed for it.
        title: what it shows.
        measure: what its figures are, protocol and epoch included.
        source: who published it.
        cost: what is known of the full length, on the authors' machines.
        headings: above the labels of the rows.
        seeds: of each run, as published.
        classes: of the images, where those of a larger set must be chosen; None: all.
    """

    name: str
    title: str
    measure: str
    source: str
    headings: tuple[str, ...]
    entries: tuple[Entry, ...]
    cost: str = "not published"
    seeds: int = 1
    classes: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """What stands above its figures, in order."""
        return tuple(dict.fromkeys(entry.column for entry in self.entries))


def last_knn(folder: Path) -> float | None:
    """kNN accuracy after the last epoch, per cent."""
    return next((row["knn"] for row in reversed(_epochs(folder)) if "knn" in row), None)


def best_knn(folder: Path) -> float | None:
    """kNN accuracy of the best epoch, per cent: chosen by the images that it is judged by."""
    return max((row["knn"] for row in _epochs(folder) if "knn" in row), default=None)


def best_logistic(folder: Path) -> float | None:
    """Validation accuracy of the logistic regression of the best epoch, per cent."""
    return max((row["logistic"] for row in _epochs(folder) if "logistic" in row), default=None)


def best_logistic_on_training(folder: Path) -> float | None:
    """Training accuracy of that regression, on the images as they were cropped for it, per cent."""
    fitted = [row for row in _epochs(folder) if "logistic" in row]
    return max(fitted, key=lambda row: row["logistic"])["logistic_train"] if fitted else None


def fall_of_loss(folder: Path) -> float | None:
    """The highest epoch's mean loss, divided by the last epoch's.

    Of the highest, not of the first: while MoCo's queue still holds noise, a query's own key is easily found.
    """
    losses = [row["loss"] for row in _epochs(folder) if "loss" in row]
    return max(losses) / losses[-1] if losses else None


def evaluated(protocol: str, *, part: str = "validation") -> Score:
    """The top-1 accuracy that engine/evaluate/run.py found after the last epoch, on `validation` or `train` images."""

    def score(folder: Path) -> float | None:
        path = folder / DOWNSTREAM / "results.json"
        outcome = json.loads(path.read_text())["figures"]["trained"].get(protocol) if path.exists() else None
        if outcome is None:
            return None
        return float(outcome[part]["top1"])

    return score


def _epochs(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log, but for the one before the first epoch."""
    return [row for row in read_csv(folder / "epochs.csv") if row["epoch"] > 0]
