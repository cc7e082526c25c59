"""The throughput benchmark: its clock, its files, its rows, and what it refuses. Absolute speeds are nobody's test."""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.augment.executors import EXECUTORS
from penstock.benchmarks import throughput
from penstock.benchmarks.photographs import FEWEST, photographs
from penstock.benchmarks.rival import Rival, Row
from penstock.benchmarks.worker import Stopwatch, choose_recipe
from penstock.errors import UserError
from penstock.loaders import LOADERS, make, open_source

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@dataclass
class Prefetching:
    """A loader whose first batches of each epoch lie ready, and whose others take 10 ms each."""

    ready: int = 3
    steps: int = 20
    epochs: int = 0

    def __iter__(self) -> Iterator[range]:
        self.epochs += 1
        for step in range(self.steps):
            if step >= self.ready:
                time.sleep(0.01)
            yield range(8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five photographs in two classes."""
    rng = np.random.default_rng(0)
    for i in range(5):
        path = tmp_path / "photos" / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40 + i, 48, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def test_what_lay_ready_does_not_count() -> None:
    pairs, seconds = Stopwatch(Prefetching(), prefetched=3, lanes=1).measure(0.1)
    assert seconds >= 0.1
    assert pairs / seconds < 8 / 0.01  # had the three counted, they alone would add 24 pairs to these 80


def test_the_clock_stands_still_between_epochs() -> None:
    loader = Prefetching(steps=8)
    pairs, seconds = Stopwatch(loader, prefetched=3, lanes=1).measure(0.2)
    assert loader.epochs >= 4
    assert pairs / seconds < 8 / 0.01


def test_bursts_are_counted_whole() -> None:
    pairs, _ = Stopwatch(Prefetching(steps=1000), prefetched=3, lanes=4).measure(0.05)
    assert pairs % (4 * 8) == 0


def test_a_small_set_becomes_distinct_files(photos: Path) -> None:
    files = photographs(str(photos), batch=64)
    made = open_source(files.data)
    assert files.distinct == 5
    assert files.count == len(made) >= FEWEST
    paths = [Path(made.location(i)) for i in range(len(made))]
    assert len({path.stat().st_ino for path in paths}) == len(made)
    assert made.classes == ("class0", "class1")
    originals = {path.read_bytes() for path in photos.rglob("*.jpg")}
    assert {path.read_bytes() for path in paths} == originals
    assert photographs(str(photos), batch=64) == files  # made once


def test_a_large_set_is_read_where_it_lies(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.benchmarks.photographs.FEWEST", 2)
    monkeypatch.setattr("penstock.benchmarks.photographs.BATCHES", 2)
    monkeypatch.setattr("penstock.benchmarks.photographs.MOST", 4)
    files = photographs(str(photos), batch=1)
    assert files.data == str(photos)
    assert files.count == len(open_source(files.data, limit=files.limit)) == 4


@pytest.mark.parametrize(("cpus", "counts"), [(1, [1, 2]), (2, [1, 2, 3]), (16, [8, 12, 16, 17])])
def test_worker_counts_end_above_the_cpus(cpus: int, counts: list[int]) -> None:
    assert throughput.worker_counts(cpus) == counts


def test_results_hold_against_the_baseline_and_the_ceiling_of_the_same_storage() -> None:
    rows = [
        Row(loader="torchvision", storage="files", workers=3, repeats=[10, 30, 20]),
        Row(loader="ffcv", storage="jpeg", workers=2, repeats=[50, 70, 60]),
        Row(loader="decode-only", storage="files", workers=2, repeats=[100]),
        Row(loader="decode-only", storage="jpeg", workers=2, repeats=[120]),
        Row(loader="synthetic", workers=2, repeats=[400]),
    ]
    found = {(row["loader"], row["storage"]): row for row in throughput.results(rows)}
    assert found["torchvision", "files"]["pairs_per_s"] == 20
    assert found["torchvision", "files"]["ceiling_share"] == 0.2
    assert found["ffcv", "jpeg"]["ratio"] == 3
    assert found["ffcv", "jpeg"]["ceiling_share"] == 0.5
    assert found["synthetic", None]["ratio"] == 20


def test_a_row_that_fails_says_why(tmp_path: Path) -> None:
    task = {"loader": "folder", "data": str(tmp_path / "nowhere"), "limit": None, "threads": 1, "batch": 1}
    rival = Rival(Row(loader="folder", workers=1), {**task, "recipe": "moco-v2", "size": 32, "views": None})
    try:
        rival.warm(1)
        assert rival.row.error
        assert "nowhere" in rival.row.error
        assert rival.measure(0.1) == 0
        assert rival.row.pairs_per_s is None
    finally:
        rival.close()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--loaders", "fast"], "fast"),
        (["--recipe", "moco-v9"], "moco-v9"),
        (["--recipe", "multi-crop", "--views", "4"], "--views 4: the views of multi-crop are of 2 kinds"),
        (["--executor", "fastest"], "--executor 'fastest' is not known"),
        pytest.param(["--executor", "fused_gpu"], "fused_gpu needs a GPU: .* use --executor fused_cpu", marks=NO_GPU),
        (["--fallback", "hue,clahee"], "--fallback 'clahee' is not an operation"),
        (["--repeats", "0"], "--repeats 0"),
        (["--workers", "0"], "--workers 0"),
        (["--seconds", "0"], "--seconds 0"),
        (["--json", "nowhere/t.json"], "nowhere"),
        (["--plot", "t.docx"], "t.docx"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_inputs_are_refused_at_once(arguments: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        throughput.main(arguments)


def test_the_help_names_every_executor() -> None:
    (shown,) = re.findall(r'\bexecutor: str.*\n    """((?:.|\n)*?)"""', inspect.getsource(throughput.Config))
    assert set(EXECUTORS) <= set(re.split(r"[,:.\s]+", shown))


def test_a_number_of_views_takes_the_place_of_the_recipe_s() -> None:
    assert choose_recipe("moco-v2", 32, None).count == 2
    assert choose_recipe("moco-v2", 32, 5).count == 5
    assert [group.size for group in choose_recipe("multi-crop", 64, None).groups] == [64, 27]


@pytest.mark.timeout(300)
def test_end_to_end(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Two loaders, one of which is not installed: table, JSON and picture."""
    monkeypatch.setattr(make, "find_spec", lambda name: None)
    monkeypatch.setattr(throughput, "worker_counts", lambda cpus: [1])
    out = {"json": tmp_path / "t.json", "plot": tmp_path / "t.png"}
    settings = ["--size", "32", "--batch", "16", "--seconds", "0.1", "--repeats", "2", "--workers", "1"]
    settings += ["--executor", "fused_cpu", "--fallback", "hue"]
    written = [part for name, path in out.items() for part in (f"--{name}", str(path))]
    assert throughput.main(["--data", str(photos), "--loaders", "folder", "ffcv-package", *settings, *written]) == 0

    report = json.loads(out["json"].read_text())
    rows = {(row["loader"], row["storage"]): row for row in report["rows"]}
    names = [loader for loader, _ in rows]
    assert names == ["torchvision", "folder", "ffcv-package", "decode-only", "synthetic"]
    measured = [row for row in rows.values() if row["loader"] != "ffcv-package"]
    assert all(len(row["repeats"]) == 2 and row["pairs_per_s"] > 0 and row["ratio"] > 0 for row in measured)
    assert rows["folder", "files"]["executor"] == "fused_cpu" and 0.5 < rows["folder", "files"]["routed"] < 1
    assert all(row["executor"] is row["routed"] is None for key, row in rows.items() if key != ("folder", "files"))
    assert report["settings"]["views"] == 2
    assert rows["ffcv-package", None]["pairs_per_s"] is None
    assert str(LOADERS["ffcv-package"].extra) in rows["ffcv-package", None]["error"]
    assert {"cpu", "cpus", "memory_gb", "gpus"} <= report["machine"].keys()
    assert report["versions"]["torch"]
    assert report["images"] > report["distinct_images"] == 5
    said = capsys.readouterr().out
    assert "make install" in said and "of the views by Albumentations" in said
    with Image.open(out["plot"]) as picture:
        assert picture.width > 800
