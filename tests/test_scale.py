"""The scale benchmark: its sets are what readers of real ones accept, its rows are whole, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.progress import Progress

from penstock.benchmarks import scale, scale_lineup, scale_report, scale_sets
from penstock.benchmarks.scale_chart import draw_chart
from penstock.benchmarks.scale_sets import CLASSES, bytes_on_disk, write_set
from penstock.errors import UserError
from penstock.loaders import Source, open_source
from penstock.loaders.sources.arrays import ImageArrays


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs, no two of one size."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("photos")
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40 + i, 48, 3), np.uint8)).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture(scope="module")
def source(photos: Path) -> Source:
    return open_source(str(photos))


@pytest.fixture
def noise() -> Source:
    return ImageArrays(np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8), [0, 0], ("a",), "noise")


@pytest.mark.parametrize("kind", ["beton", "webdataset", "files"])
def test_a_set_opens_and_each_of_its_images_is_whole(kind: str, source: Source, tmp_path: Path) -> None:
    made = open_source(str(write_set(kind, tmp_path, 2500, source)))
    assert len(made) == len(made.labels) == 2500
    images = [made.decode(index) for index in range(2500)]  # tests checksums, where there are some
    assert {image.shape[2] for image in images} == {3}
    labels = made.labels.tolist()
    if kind == "webdataset":  # an image's label is in its checksum, so it goes with the member
        assert labels == [index % 3 for index in range(2500)]
    else:
        assert labels == sorted(labels) and set(labels) == set(range(CLASSES))
    size = sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file())
    assert size <= bytes_on_disk(kind, 2500)


def test_samples_of_a_beton_lie_in_different_places_until_they_repeat(
    noise: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_sets, "DISTINCT", 100)
    made = open_source(str(write_set("beton", tmp_path, 250, noise)))
    assert len(made) == 250
    pointers = made.images["pointer"]  # type: ignore[attr-defined]
    assert len(np.unique(pointers)) == 100 and np.array_equal(pointers[:50], pointers[200:])
    assert all(np.array_equal(made.decode(i), made.decode(i + 100)) for i in range(150))
    assert not np.array_equal(made.decode(0), made.decode(1))


@pytest.mark.skipif(find_spec("ffcv") is None, reason="the ffcv package is not installed")
def test_the_ffcv_package_reads_the_beton(noise: Source, tmp_path: Path) -> None:
    from ffcv.reader import Reader

    reader = Reader(str(write_set("beton", tmp_path, 2000, noise)))
    assert reader.num_samples == len(reader.metadata) == len(reader.alloc_table) == 2000


def test_torchvision_lists_the_same_files(source: Source, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    folder = write_set("files", tmp_path, 1500, source)
    made = open_source(str(folder))
    listed = ImageFolder(folder).samples
    assert [(made.location(i), int(made.labels[i])) for i in range(1500)] == listed


def test_no_file_gets_more_names_than_the_disk_allows(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_sets, "LINKS", 7)
    write_set("files", tmp_path, 200, source)
    assert max(path.stat().st_nlink for path in (tmp_path / "files-200-originals").iterdir()) <= 7 + 1


def test_large_sets_are_left_to_those_that_can(capsys: pytest.CaptureFixture) -> None:
    config = scale.Config(samples=(10**8, 1000))
    rows = [(row.samples, row.contender) for row in scale.plan(config)]
    assert rows[0] == (1000, "ffcv") and rows[-1] == (10**8, "ffcv")
    assert {name for samples, name in rows if samples == 1000} == set(scale_lineup.CONTENDERS)
    assert len([row for row in rows if row[0] == 10**8]) == 1


def test_figures_are_medians_and_memory_is_counted_by_sample() -> None:
    repeats = [{"open_s": open_s, "private_bytes": 4000, "pairs_per_s": None} for open_s in (3.0, 1.0, 2.0)]
    (found,) = scale_report.results([scale_lineup.Row(contender="ffcv", samples=1000, repeats=repeats)])
    assert found["open_s"] == 2.0 and found["private_bytes_per_sample"] == 4.0 and found["pairs_per_s"] is None


def test_a_row_that_fails_says_why_and_the_others_go_on(
    photos: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = scale_lineup.Contender(kind="beton", loader="fast")
    monkeypatch.setitem(scale_lineup.CONTENDERS, "broken", broken)
    config = replace(scale.QUICK, samples=(200,), contenders=("broken",), workers=1)
    rows = scale.plan(config)
    with Progress(disable=True) as progress:
        scale.measure(rows, source, config, progress)
    assert rows[0].error and "--loader 'fast' is not known" in rows[0].error
    assert not rows[0].repeats


@pytest.mark.parametrize("measured", [{}, {"open_s": 1.0, "order_s": 0.1, "private_bytes_per_sample": 9.0}])
def test_the_picture_does_without_what_was_not_measured(measured: dict[str, float], tmp_path: Path) -> None:
    row = {"contender": "ffcv-package", "samples": 1000, "pairs_per_s": None, **measured}
    settings = {"size": 32, "batch": 256}
    machine = {"cpus": 1, "cpu": "a CPU", "memory_gb": 1, "gpus": []}
    report = {"rows": [row], "settings": settings, "machine": machine, "versions": {"torch": "2"}, "date": "2000-01-01"}
    draw_chart(report, tmp_path / "scale.png")
    with Image.open(tmp_path / "scale.png") as picture:
        assert picture.width > 800


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--contenders", "fast"], "--contenders 'fast' is not known: choose from all, ffcv"),
        (["--samples", "1000", "99"], "--samples 99: it takes at least 100"),
        (["--repeats", "0"], "--repeats 0"),
        (["--workers", "0"], "--workers 0"),
        (["--seconds", "0"], "--seconds 0"),
        (["--batch", "0"], "--batch 0"),
        (["--json", "nowhere/t.json"], "nowhere"),
        (["--plot", "t.docx"], "t.docx"),
        (["--scratch", "nowhere"], "--scratch nowhere: there is no such folder"),
        (["--samples", "1000000000000"], "are free, the largest set takes 56.0 TB"),
        (["--data", "nowhere", "--quick"], "nowhere"),
    ],
)
def test_wrong_inputs_are_refused_at_once(arguments: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        scale.main(arguments)


@pytest.mark.timeout(300)
def test_end_to_end(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Our reader and the baseline: tables, JSON and picture; nothing is left of the sets."""
    out = {"json": tmp_path / "s.json", "plot": tmp_path / "s.png"}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    written = [part for name, path in out.items() for part in (f"--{name}", str(path))]
    chosen = ["--data", str(photos), "--scratch", str(scratch), "--contenders", "ffcv", "torchvision"]
    assert scale.main(["--quick", "--samples", "200", "--workers", "1", *chosen, *written]) == 0

    report = json.loads(out["json"].read_text())
    rows = {(row["samples"], row["contender"]): row for row in report["rows"]}
    assert list(rows) == [(200, "ffcv"), (200, "torchvision")]
    for (samples, contender), row in rows.items():
        assert row["error"] is None and len(row["repeats"]) == 1
        assert row["open_s"] > 0 and row["order_s"] > 0 and row["order_us"] > 0
        assert row["mapped_bytes"] >= 0 and row["peak_bytes"] >= row["private_bytes"]
        assert row["private_bytes_per_sample"] == row["private_bytes"] / samples
        ours = [row[name] for name in ("quasi_us", "first_batch_s", "new_pairs_per_s", "pairs_per_s")]
        assert all(figure > 0 for figure in ours) if contender == "ffcv" else ours == [None] * 4
    assert report["settings"]["samples"] == [200] and report["settings"]["repeats"] == 1
    assert {"cpu", "cpus", "memory_gb"} <= report["machine"].keys() and report["versions"]["torch"]
    assert report["command"].startswith("python benchmarks/scale.py --quick")
    assert "torchvision" in capsys.readouterr().out
    assert not list(scratch.iterdir())
    with Image.open(out["plot"]) as picture:
        assert picture.width > 800
