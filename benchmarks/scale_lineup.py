"""Who takes part in the scale benchmark, and its rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

IMAGENET = 1_280_000


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Whose cost is measured.

    Attributes:
        kind: of set that it reads: `beton`, `webdataset` or `files`.
        loader: of ours, which hands out batches; None where only the index and the order are measured.
        most: samples up to which it is measured, and `why` not above.
    """

    kind: str
    loader: str | None = None
    most: int | None = None
    why: str = ""


CONTENDERS = {
    "ffcv": Contender(kind="beton", loader="ffcv"),
    "resident": Contender(kind="beton", loader="resident", most=100_000, why="it holds all pixels: 3 KB a sample here"),
    "webdataset": Contender(kind="webdataset", loader="folder", most=IMAGENET, why="its index is text, and read whole"),
    "folder": Contender(kind="files", loader="folder", most=IMAGENET, why="so many files take minutes to make"),
    "ffcv-package": Contender(kind="beton", most=IMAGENET, why="over 50 GB of memory for 100 million"),
    "torchvision": Contender(kind="files", most=IMAGENET, why="so many files take minutes to make"),
}


@dataclass(kw_only=True)
class Row:
    """A contender at a number of samples: what each process measured (see `scale_probe.Measured`), or why none did."""

    contender: str
    samples: int
    repeats: list[dict[str, float | None]] = field(default_factory=list)
    error: str | None = None

    def figures(self) -> dict[str, float | None]:
        """The median of each figure."""
        found: dict[str, float | None] = {}
        for name in self.repeats[0] if self.repeats else ():
            values = [repeat[name] for repeat in self.repeats]
            found[name] = median(value for value in values if value is not None) if None not in values else None
        return found
