"""What is written of a table's runs: their figures beside the published ones, as text and as a picture."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from penstock.engine.systems import TABLES
from penstock.engine.systems.plan import Cut, plan
from penstock.engine.systems.results import as_csv, draw, gather, header, markdown, rich_table
from penstock.engine.systems.table import Entry, Table, last_knn
from tests.finished_runs import finish


def table_of(*columns: tuple[str, str, float | None], headings: tuple[str, ...] = ("list",)) -> Table:
    """(row, column, published); labels of a row are separated by |."""
    settings = {"data": "shapes", "epochs": 10, "method": "simclr"}
    entries = (
        Entry(row=tuple(row.split("|")), column=column, run=f"{row}-{column}", settings=settings, score=last_knn,
              published=published, published_std=None if published is None else 0.05)
        for row, column, published in columns
    )  # fmt: skip
    return Table(name="t", title="A title", measure="kNN, %", source="a paper", headings=headings, seeds=3,
                 entries=tuple(entries))  # fmt: skip


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    """Of a table of two rows, one figure of which has three runs behind it, one has one, one none and one is blank."""
    table = table_of(("weak", "gray", 80.0), ("strong", "gray", 90.0), ("strong", "blur", None))
    cells = plan(table, Cut(epochs=5, subset=64, batch=None), seeds=4)
    for seed, knn in enumerate((70.0, 72.0, 72.0, 74.0)):
        finish(tmp_path / f"strong-gray-seed{seed}", knn)
    finish(tmp_path / "weak-gray-seed0", 50)
    finish(tmp_path / "weak-gray-seed1", 99, finished=False)
    return gather(table, cells, lambda name: tmp_path / name, data="shapes", images=64)


def test_figures_are_means_and_deviations_over_finished_runs(report: dict[str, Any]) -> None:
    weak, strong, blur = report["rows"]
    assert (strong["figures"], strong["mean"]) == ([70, 72, 72, 74], 72)
    assert strong["std"] == pytest.approx(2**0.5), "of the runs, as published: not an estimate from them"
    assert (weak["figures"], weak["mean"], weak["std"]) == ([50], 50, None)
    assert (blur["mean"], blur["published"], blur["minutes"]) == (None, None, [])
    assert strong["minutes"] == [1, 1, 1, 1] and strong["commits"] == ["abc"]
    assert report["columns"] == ["gray", "blur"]


def test_measured_stands_beside_published_and_what_is_not_there_is_blank(report: dict[str, Any]) -> None:
    text = markdown(report)
    assert "| list | gray | published | blur | published |" in text
    assert "| weak | 50.00 (1 of 4 runs) | 80.00 ± 0.05 |  |  |" in text
    assert "| strong | 72.00 ± 1.41 | 90.00 ± 0.05 |  |  |" in text
    assert "shapes cut to 64 images, 5 epochs (10 in the published table); changed: seeds 4 for 3." in text
    weak, strong, blur = csv.DictReader(io.StringIO(as_csv(report)))
    assert (strong["mean"], strong["std"][:4], strong["published"], strong["seeds"]) == ("72.0", "1.41", "90.0", "4")
    assert (weak["std"], blur["mean"], blur["seeds"], blur["minutes"]) == ("", "", "0", "")
    console = Console(file=io.StringIO(), width=80)
    console.print(rich_table(report))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(
        r"weak +gray +50\.00 \(1 of 4 runs\) +80\.00 ± 0\.05 *\n strong +gray +72\.00 ± 1\.41 +90\.00", said
    )
    assert said.count("strong") == 1 and re.search(r"\n +blur *$", said.rstrip()), "labels stand once"


def test_the_header_says_all_that_differs(tmp_path: Path) -> None:
    table = TABLES["r1-subsets"]

    def said(cut: Cut, seeds: int = 3) -> str:
        cells = plan(table, cut, seeds=seeds, only=["moco-a"])
        return header(gather(table, cells, lambda name: tmp_path / name, data="cifar10", images=50_000))

    assert said(Cut()) == "cifar10, 50,000 images, 800 epochs"
    assert said(Cut(epochs=1)) == "cifar10, 50,000 images, 1 epoch (800 in the published table)"
    assert said(Cut(data="cifar10:/here")) == "cifar10, 50,000 images, 800 epochs"
    assert said(Cut(data="stl10"), seeds=1).endswith("800 epochs; changed: seeds 1 for 3, data stl10 for cifar10")
    changed = said(Cut(epochs=4, batch=128, train="--optimizer adamw"))
    assert "4 epochs (800 in the published table); changed: bn splits 4 for 8, batch 128 for 512" in changed
    assert "optimizer adamw for sgd, lr 0.001 for 0.04, weight decay 0.0005 for 0.001" in changed


def picture(report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Figure, list[str]]:
    """The figure that was drawn, and the labels of its x axis."""
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (drawn.append(self), save(self, path)))
    draw(report, tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 5000
    return drawn[0], [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]


def heights(figure: Figure) -> list[list[float]]:
    """The figures of each row of marks, from left to right; those that are not there are nan."""
    return [container.lines[0].get_ydata().tolist() for container in figure.axes[0].containers]


def test_the_picture_has_rows_side_by_side(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure, labels = picture(report, tmp_path, monkeypatch)
    assert labels == ["weak", "strong"]
    assert heights(figure)[:2] == [[80, 90], [50, 72]]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["gray", "blur", "measured", "published"]


def test_the_picture_of_one_row_has_its_columns_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(("all", "validation", 90.0), ("all", "training", 95.0))
    cells = plan(table, Cut(), seeds=1)
    report = gather(table, cells, lambda name: tmp_path / name, data="shapes", images=64)
    figure, labels = picture(report, tmp_path, monkeypatch)
    assert labels == ["validation", "training"]
    places = [container.lines[0].get_xdata().tolist() for container in figure.axes[0].containers]
    assert places == [[0], [0], [1], [1]]


def test_the_picture_names_ticked_headings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("||200", "linear", 60.6), ("✓|✓|800", "linear", 71.1)]
    table = table_of(*rows, headings=("MLP", "cos", "epochs"))
    report = gather(table, plan(table, Cut(), seeds=1), lambda name: tmp_path / name, data="shapes", images=64)
    assert picture(report, tmp_path, monkeypatch)[1] == ["none\nepochs 200", "MLP, cos\nepochs 800"]
