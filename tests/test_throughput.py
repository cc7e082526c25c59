"""The throughput benchmark: its files, its rows, its report, and what it refuses; test_race.py has its clock."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from penstock.augment import load_recipe
from penstock.augment.executors import EXECUTORS
from penstock.benchmarks import methods, peers, race, scale, scale_report, throughput
from penstock.benchmarks.ceilings import Ceiling
from penstock.benchmarks.chart import draw_chart
from penstock.benchmarks.peers import PEERS, make_peer
from penstock.benchmarks.photographs import FEWEST, Photographs, photographs
from penstock.benchmarks.plan import OURS, STORAGES, Setting, default_size, plan_photographs
from penstock.benchmarks.report import printed, results
from penstock.benchmarks.rival import Row
from penstock.benchmarks.storages import forget, place, read_once
from penstock.benchmarks.worker import choose_recipe
from penstock.errors import UserError
from penstock.loaders import open_source
from penstock.loaders.convert import convert
from penstock.loaders.sources import ImageArrays
from penstock.machine import without_folders

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
SETTING = Setting(recipe="moco-v2", size=32, views=None, batch=2, executor="auto", fallback=(), threads=1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five photographs in two classes."""
    rng = np.random.default_rng(0)
    for i in range(5):
        path = tmp_path / "photos" / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40 + i, 48, 3), np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def few(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Photographs:
    """The five as they are, and a cache of their own."""
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    return Photographs(data=str(photos), limit=None, count=5, distinct=5)


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


def test_storages_hold_the_images_as_their_names_say(
    few: Photographs, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("penstock.benchmarks.storages", fromlist=["_"]).ENCODINGS["jpeg"], "max_side", 24)
    found = {storage: place(storage, few, workers=1) for storage in ("files", "jpeg", "raw", "webdataset")}
    assert {storage: there.open().storage for storage, there in found.items()} == {name: name for name in found}
    assert max(max(found["jpeg"].open().decode(i).shape) for i in range(5)) == 24
    assert found["webdataset"].open().encoded(0) == open_source(str(photos)).encoded(0)
    assert found["files"].bytes == sum(path.stat().st_size for path in photos.rglob("*.jpg"))
    shard = Path(found["jpeg"].data)
    written = shard.stat().st_mtime_ns
    assert place("jpeg", few, workers=1) == found["jpeg"] and shard.stat().st_mtime_ns == written  # made once
    for there in found.values():
        read_once(there)
        forget(there)


@pytest.mark.parametrize("storage", ["files", "jpeg", "raw"])
def test_a_ceiling_takes_each_image_once_an_epoch(
    few: Photographs, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ceiling = Ceiling(place(storage, few, workers=1).open(), batch=1, workers=2)
    taken: list[int] = []
    take = ceiling.take
    monkeypatch.setattr(ceiling, "take", lambda index: (take(index), taken.append(index)))
    for _ in range(2):
        assert sorted(int(i) for index in ceiling for i in index) == [0, 1, 2, 3, 4]
    assert sorted(taken) == sorted(2 * [0, 1, 2, 3, 4])
    ceiling.close()


def test_a_ceiling_decodes(few: Photographs, photos: Path) -> None:
    path = next(photos.rglob("*.jpg"))
    path.write_bytes(path.read_bytes()[:300])
    ceiling = Ceiling(open_source(str(photos)), batch=5, workers=1)
    with pytest.raises(ValueError):
        list(ceiling)
    ceiling.close()


def test_the_plan_has_each_storage_its_rows_and_its_ceiling(few: Photographs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.benchmarks.plan.photographs", lambda data, batch: few)
    table = plan_photographs(few.data, SETTING, loaders=["folder", "ffcv"], others=["albumentations"], name="photos")
    rows = [(row.group, row.loader, row.storage) for row in table.rows]
    assert rows[:4] == [
        ("baseline", "torchvision", "files"),
        ("ours", "folder", "files"),
        ("ours", "ffcv", "jpeg"),
        ("ours", "ffcv", "raw"),
    ]
    assert ("ceiling", "decode-only", "jpeg") in rows and ("ceiling", "read-only", "raw") in rows
    assert rows[-1] == ("ceiling", "synthetic", None)
    assert table.task(table.rows[3])["data"] == table.places["raw"].data
    assert [row.loader for row in table.within(1).rows] == ["torchvision", "folder", "ffcv", "ffcv"]


def test_our_rows_name_loaders_that_there_are() -> None:
    assert set(OURS) == set(STORAGES)  # one of another name would be left out in silence


@pytest.mark.parametrize(("cpus", "powers"), [(1, []), (2, [1]), (6, [1, 2, 4]), (8, [1, 2, 4])])
def test_scaling_goes_through_the_powers_of_two(cpus: int, powers: list[int]) -> None:
    assert throughput.powers_of_two(cpus) == powers


def test_a_view_is_no_larger_than_the_images(photos: Path) -> None:
    assert default_size(open_source(str(photos))) == 42  # 40 to 44 pixels high


def test_results_hold_against_the_baseline_and_the_ceiling_of_the_same_storage() -> None:
    rows = [
        Row(loader="torchvision", storage="files", workers=3, repeats=[10, 30, 20]),
        Row(loader="ffcv", storage="jpeg", workers=2, repeats=[50, 70, 60]),
        Row(loader="ffcv", storage="raw", workers=2, repeats=[80]),
        Row(loader="decode-only", storage="files", workers=2, repeats=[100]),
        Row(loader="decode-only", storage="jpeg", workers=2, repeats=[120]),
        Row(loader="read-only", storage="raw", workers=2, repeats=[800]),
        Row(loader="synthetic", workers=2, repeats=[400]),
    ]
    found = {(row["loader"], row["storage"]): row for row in results(rows)}
    assert found["torchvision", "files"]["pairs_per_s"] == 20
    assert found["torchvision", "files"]["ceiling_share"] == 0.2
    assert found["ffcv", "jpeg"]["ratio"] == 3
    assert found["ffcv", "jpeg"]["ceiling_share"] == 0.5
    assert found["ffcv", "raw"]["ceiling_share"] == 0.1
    assert found["synthetic", None]["ratio"] == 20


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("throughput.py --data /data/sets/photos --json out/t.json", "throughput.py --data photos --json out/t.json"),
        ("--cifar cifar10:/data/cifar", "--cifar cifar10:cifar"),
        ("'/data/my sets'/x 3/4", "'my sets'/x 3/4"),
        ("--data ../shared/photos ~/photos", "--data ../shared/photos ~/photos"),
    ],
)
def test_no_path_of_the_machine_is_kept(text: str, left: str) -> None:
    assert without_folders(text) == left


@pytest.mark.parametrize(
    "report_of",
    [
        lambda data, words: methods.report_of(methods.Config(methods=(), data=data), words),
        lambda data, words: scale_report.report_of(scale.Config(data=data, samples=(1000,)).settings(), words, [], 0),
    ],
)
def test_reports_say_where_they_are_from_without_a_path_of_the_machine(
    report_of: Callable[[str, list[str]], dict[str, Any]],
) -> None:
    report = report_of("cifar10:/data/cifar", ["--data", "cifar10:/data/cifar", "--json", "/out/t.json"])
    assert list(report)[:7] == ["benchmark", "date", "command", "commit", "machine", "versions", "settings"]
    name = report["benchmark"]
    assert report["command"] == f"python benchmarks/{name}.py --data cifar10:cifar --json t.json"
    assert report["settings"]["data"] == "cifar10:cifar"


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in PEERS if name != "ffcv-package"])
def test_a_peer_gives_the_views_and_labels_of_its_files(name: str, photos: Path, tmp_path: Path) -> None:
    if line := peers.missing(name):
        pytest.skip(line)
    source = open_source(str(photos))
    if PEERS[name].storages == ("webdataset",):
        convert(source, tmp_path / "photos.tar", progress=False)
        source = open_source(str(tmp_path / "photos.tar"))
    try:
        peer = make_peer(name, source, load_recipe("moco-v2", size=32), batch=5, workers=1)
    except UserError as error:
        pytest.skip(str(error))  # SPDL where there is no FFmpeg
    batch = next(iter(peer))
    peer.close()
    assert len(batch) == 5 and {view.shape for view in batch.views} == {(5, 3, 32, 32)} and len(batch.views) == 2
    assert all(view.dtype == torch.float32 for view in batch.views)
    assert not torch.equal(*batch.views)
    if name != "webdataset":  # which draws with replacement
        assert sorted(batch.label.tolist()) == [0, 0, 0, 1, 1]


def test_a_peer_that_lacks_an_operation_says_so(photos: Path) -> None:
    with pytest.raises(UserError, match=r"torchvision has no .*: no row for torchvision-v2"):
        make_peer(
            "torchvision-v2", open_source(str(photos)), load_recipe("albumentations-7", size=32), batch=5, workers=1
        )


def test_a_peer_of_files_refuses_arrays() -> None:
    source = ImageArrays(np.zeros((5, 32, 32, 3), np.uint8), [0] * 5, ["all"], "zeros")
    with pytest.raises(UserError, match="zeros: its images are arrays, and this row reads files"):
        make_peer("torchvision-v2", source, load_recipe("moco-v2", size=32), batch=5, workers=1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--loaders", "fast"], "--loaders 'fast' is not known: choose from all, none, folder"),
        (["--peers", "fast"], "--peers 'fast' is not known: choose from all, none, torchvision-v2"),
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
        (["--cifar", "cifar10:nowhere"], "nowhere"),
    ],
)
def test_wrong_inputs_are_refused_at_once(arguments: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        throughput.main(arguments)


@pytest.mark.parametrize(("option", "known"), [("executor", EXECUTORS), ("loaders", OURS), ("peers", PEERS)])
def test_the_help_names_every_choice(option: str, known: dict[str, Any] | tuple[str, ...]) -> None:
    (shown,) = re.findall(rf'\b{option}: .*\n    """((?:.|\n)*?)"""', inspect.getsource(throughput.Config))
    assert set(known) <= set(re.split(r"[,:.\s]+", shown))


def test_a_number_of_views_takes_the_place_of_the_recipe_s() -> None:
    assert choose_recipe("moco-v2", 32, None).count == 2
    assert choose_recipe("moco-v2", 32, 5).count == 5
    assert [group.size for group in choose_recipe("multi-crop", 64, None).groups] == [64, 27]


def _row(loader: str, storage: str | None, group: str, speed: float, **more: Any) -> Row:
    return Row(loader=loader, storage=storage, group=group, workers=2, repeats=[speed], cpu=[5.0], **more)


def test_the_picture_has_a_panel_for_each_part_of_the_report(tmp_path: Path) -> None:
    """With all parts it is taller; the table prints whatever was not measured."""
    own = [_row("torchvision", "files", "baseline", 100.0), _row("folder", "files", "ours", 600.0, memory=[900.0])]
    others = [_row("albumentations", "files", "peer", 240.0), _row("decode-only", "files", "ceiling", 1100.0)]
    failed = Row(loader="dali", storage="webdataset", workers=2, error="not installed")
    common = {"recipe": "moco-v2", "views": 2, "size": 224, "batch": 64, "data": "photos"}
    common |= {"images": 2400, "distinct_images": 400}
    table = {**common, "rows": results([*own, *others, failed])}
    machine = {"cpus": 2, "cpu": "CPU", "memory_gb": 24, "gpus": []}
    report = {"tables": [table], "scaling": [], "machine": machine, "versions": {"torch": "2"}, "date": "2026-01-01"}
    steps = [{"cpus": 1, "rows": results(own)}, {"cpus": 2, "rows": results(own)}]
    heights = []
    for part in (report, {**report, "tables": [table, table], "scaling": steps}):
        draw_chart(part, tmp_path / "t.png")
        with Image.open(tmp_path / "t.png") as picture:
            heights.append(picture.height)
    assert heights[1] > heights[0] + 200
    console = Console(width=120, record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(printed(table, machine))
        text = console.export_text()
    assert re.search(r"folder +files +2 +600 +6.00× +55% +5.0 +900", text) and "dali" in text  # of one round no ±
    assert "photos, 400 images, repeated 6 times" in text


@pytest.mark.timeout(300)
def test_end_to_end(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A loader of ours and two peers, one of which is not installed: table, JSON and picture."""
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(race, "worker_counts", lambda cpus: [1])
    out = {"json": tmp_path / "t.json", "plot": tmp_path / "t.png"}
    settings = ["--size", "32", "--batch", "16", "--seconds", "0.1", "--repeats", "2", "--workers", "1"]
    settings += ["--executor", "fused_cpu", "--fallback", "hue", "--peers", "torchvision-v2", "ffcv-package"]
    written = [part for name, path in out.items() for part in (f"--{name}", str(path))]
    assert throughput.main(["--data", str(photos), "--loaders", "folder", *settings, *written]) == 0

    report = json.loads(out["json"].read_text())
    (table,) = report["tables"]
    rows = {(row["loader"], row["storage"]): row for row in table["rows"]}
    assert list(rows) == [
        ("torchvision", "files"),
        ("folder", "files"),
        ("torchvision-v2", "files"),
        ("ffcv-package", "jpeg"),
        ("ffcv-package", "raw"),
        ("decode-only", "files"),
        ("synthetic", None),
    ]
    measured = [row for row in rows.values() if row["loader"] != "ffcv-package"]
    assert all(len(row["repeats"]) == 2 and row["pairs_per_s"] > 0 and row["ratio"] > 0 for row in measured)
    assert all(min(row["cpu"]) > 0 and min(row["memory"]) > 50 and row["start"] > 0 for row in measured)
    assert rows["folder", "files"]["executor"] == "fused_cpu" and 0.5 < rows["folder", "files"]["routed"] < 1
    assert all(row["executor"] is row["routed"] is None for key, row in rows.items() if key != ("folder", "files"))
    assert rows["ffcv-package", "raw"]["pairs_per_s"] is None
    assert PEERS["ffcv-package"].extra in rows["ffcv-package", "raw"]["error"]
    assert (table["views"], table["data"], table["images"] > table["distinct_images"]) == (2, "photos", True)
    assert table["storages"]["files"]["bytes"] > 1000
    assert {"cpu", "cpus", "memory_gb", "gpus"} <= report["machine"].keys()
    assert report["versions"]["torch"]
    assert str(tmp_path) not in out["json"].read_text()
    said = capsys.readouterr().out
    assert "make install" in said and "of the views by Albumentations" in said
    with Image.open(out["plot"]) as picture:
        assert picture.width > 800
