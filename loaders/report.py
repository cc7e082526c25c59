"""What a conversion did: counted on the way, kept in the sidecar, printed at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.counts import counted
from penstock.loaders.sidecar import Provenance
from penstock.loaders.unfinished import Outcome, Skipped


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a conversion did.

    Attributes:
        path: the shard.
        samples, bytes: images in it, and its length.
        untouched: images whose original bytes were passed through.
        reencoded: why the others were not, and how many for each reason.
        skipped: `sample` (its number in the source), `location` and `reason` of each broken image left out.
        kept: images that an earlier, interrupted run had done.
        seconds: how long the others took, written out and under their name.
    """

    path: Path
    samples: int
    bytes: int
    untouched: int
    reencoded: dict[str, int]
    skipped: list[dict[str, Any]]
    kept: int
    seconds: float

    def __str__(self) -> str:
        kept = f", {self.kept:,} of them done before," if self.kept else ""
        rate = f"{self.seconds:.1f} s, {(self.samples - self.kept) / self.seconds:.0f} images/s"
        skipped = f", {counted(len(self.skipped), 'broken one')} skipped" if self.skipped else ""
        counts = changes(self.untouched, self.reencoded)
        done = f"{counted(self.samples, 'image')}{kept} in {rate}, {self.bytes / 1e6:.1f} MB"
        return f"{self.path}: {done}; {counts}{skipped}"


def changes(untouched: int, reencoded: dict[str, int]) -> str:
    return ", ".join([f"{untouched} untouched", *(f"{count} encoded anew ({why})" for why, count in reencoded.items())])


@dataclass
class Tally:
    """Counts images on their way into a shard, or those of several shards."""

    untouched: int = 0
    reencoded: Counter[str] = field(default_factory=Counter)
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def count(self, outcome: Outcome) -> None:
        if isinstance(outcome, Skipped):
            self.skipped.append({"sample": outcome.number, "location": outcome.location, "reason": outcome.reason})
        elif outcome.change is None:
            self.untouched += 1
        else:
            self.reencoded[outcome.change] += 1

    @staticmethod
    def total(parts: Sequence[Provenance]) -> Tally:
        tally = Tally()
        for part in parts:
            tally.untouched += part.untouched
            tally.reencoded.update(part.reencoded)
            tally.skipped += part.skipped
        return tally

    def fields(self) -> dict[str, Any]:
        """The counts, as a report and a sidecar's provenance name them."""
        return {
            "untouched": self.untouched,
            "reencoded": dict(sorted(self.reencoded.items())),
            "skipped": self.skipped,
        }
