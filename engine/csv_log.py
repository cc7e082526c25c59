"""Tables of numbers on the disk: a line is whole and readable as soon as it is written."""

from __future__ import annotations

import csv
import os
from pathlib import Path

Row = dict[str, float]


class CsvLog:
    """Rows of numbers in a file. `keep` rows of an existing file: those whose `key` is at most this (None: none)."""

    def __init__(self, path: Path, columns: list[str], *, key: str, keep: int | None) -> None:
        self.columns = columns
        kept = [] if keep is None else [row for row in read_csv(path) if row[key] <= keep]
        partial = path.with_name(path.name + ".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows([_written(row) for row in kept])
        os.replace(partial, path)
        self.file = path.open("a", newline="")

    def write(self, row: Row) -> None:
        csv.DictWriter(self.file, self.columns).writerow(_written(row))
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _written(row: Row) -> dict[str, float | str]:
    """Whole numbers as such, others to seven digits."""
    return {name: int(value) if value == int(value) else f"{value:.7g}" for name, value in row.items()}


def read_csv(path: Path) -> list[Row]:
    """The rows of a log; cells that were left empty are absent. No rows where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
