"""Minutes until an accuracy: what a log comes to, that rows are their tables', stop and go on, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from penstock.benchmarks import time_to_accuracy
from penstock.benchmarks.time_to_accuracy import ROWS, Config, main, plan, published
from penstock.benchmarks.time_to_accuracy_report import draw_chart, figures, machine_made
from penstock.engine.checkpoint import load_checkpoint
from penstock.engine.csv_log import read_csv
from penstock.engine.runs import read_run
from penstock.engine.systems.plan import differences
from penstock.errors import UserError
from penstock.machine import git_commit
from tests.stub_engine import small_images, stub_engine

LOG = """epoch,step,knn,images_per_s,wait_share,train_seconds,knn_seconds
0,0,99,,,,30
1,5,,100,.5,90,
2,10,40,300,.1,30,6
3,15,,300,.1,30,
4,20,72,100,.1,60,12
5,25,71,300,.1,30,6
"""
TINY = ["--data", "shapes", "--subset", "128", "--width", "8", "--size", "16", "--stem", "imagenet", "--batch", "32"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "epochs.csv"
    path.write_text(LOG)
    return path


@pytest.fixture
def stubbed(tmp_path: Path) -> list[str]:
    """What is typed for all rows, where the engine is a stub."""
    photos = small_images(tmp_path / "photos")
    cut = ["--epochs", "2", "--width", "8", "--size", "16", "--batch", "32", "--compile", "off"]
    places = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "t.json"), "--plot", str(tmp_path / "t.svg")]
    return ["--data", str(photos), *cut, *places]


# What a log comes to


def test_the_target_is_reached_at_the_first_evaluation_that_has_it(log: Path) -> None:
    found = figures(read_csv(log), 71.5)
    assert found["reached"] == {"epoch": 4, "minutes": 3.5, "minutes_with_evaluation": 4.3, "knn": 72}
    assert found["reached"] == found["best"]
    assert (found["last"]["epoch"], found["last"]["knn"]) == (5, 71)
    assert figures(read_csv(log), 72)["reached"]["epoch"] == 4, "reached is not passed"
    assert figures(read_csv(log), 30)["reached"]["epoch"] == 2, "not by the untrained network"


def test_a_target_that_is_never_reached_has_no_minutes(log: Path) -> None:
    assert figures(read_csv(log), 72.01)["reached"] is None


def test_minutes_are_all_and_speeds_are_medians_over_epochs(log: Path) -> None:
    found = figures(read_csv(log), 50)
    assert (found["minutes"], found["minutes_with_evaluation"]) == (4, pytest.approx(4.9))
    assert (found["seconds_per_epoch"], found["images_per_s"], found["epochs"]) == (30, 300, 5)
    assert found["wait_share"] == pytest.approx((45 + 3 + 3 + 6 + 3) / 240), "of the time, not of the epochs"
    assert [point["epoch"] for point in found["curve"]] == [0, 2, 4, 5]


def test_a_run_that_is_not_begun_has_no_figures(tmp_path: Path) -> None:
    found = figures(read_csv(tmp_path / "epochs.csv"), 50)
    assert (found["epochs"], found["minutes"], found["curve"]) == (0, 0, [])
    assert all(found[name] is None for name in ("reached", "best", "last", "seconds_per_epoch", "wait_share"))


# What is run


def test_rows_are_their_tables_but_for_what_makes_them_faster() -> None:
    sweep = plan(Config(compile="default"))
    assert [cell.entry.row for cell in sweep.cells] == [("original",), ("albumentations-7",), ("moco",)]
    assert [cell.runs[0].config.epochs for cell in sweep.cells] == [200, 200, 800]
    assert [published(name)[1].published for name in ROWS] == [82.71, 85.01, 90.12]
    faster = {"loader": "resident for ffcv", "compile": "default for off"}
    for cell in sweep.cells:
        [name] = cell.entry.row
        changed = differences([replace(cell, entry=published(name)[1])], 50_000)
        assert changed == faster | ({"knn_every": "10 for 1"} if name == "moco" else {})


@pytest.mark.parametrize("rows", [tuple(ROWS), ("moco",)])
def test_epochs_are_cut_in_one_ratio_whichever_rows_are_trained(rows: tuple[str, ...]) -> None:
    runs = {run.name: run.config.epochs for run in plan(Config(epochs=50, rows=rows)).runs}
    every = {"cifar10-moco-cifar-seed0": 50, "cifar10-albumentations-7-seed0": 50, "moco-abcde-seed0": 200}
    assert runs == {name: epochs for name, epochs in every.items() if len(rows) == 3 or name == "moco-abcde-seed0"}


def test_only_on_a_gpu_are_networks_compiled_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu, mode in ((True, "default"), (False, "off")):
        monkeypatch.setattr(time_to_accuracy.torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert plan(Config()).runs[0].config.compile == mode
    assert plan(Config(train="--compile max-autotune --amp off")).runs[0].config.compile == "max-autotune"


def test_a_row_is_stopped_by_its_minutes_and_goes_on_with_more_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "out/runs/cifar10-moco-cifar-seed0", tmp_path / "t.json"
    words = [*TINY, "--rows", "original", "--epochs", "200", "--out", str(tmp_path / "out"), "--json", str(file)]

    def row_after(*minutes: str) -> dict[str, Any]:
        assert main([*words, "--minutes", *minutes]) == 0
        [row] = json.loads(file.read_text())["rows"]
        return row

    first = row_after("1e-6")
    assert 1 <= first["epochs"] < 200 and not first["finished"] and first["minutes"] > 0
    state = load_checkpoint(folder / "last.pt")
    assert state["position"]["epoch"] == first["epochs"] == read_csv(folder / "epochs.csv")[-1]["epoch"]
    written = (folder / "epochs.csv").stat().st_mtime_ns
    assert row_after("1e-6") == first
    assert (folder / "epochs.csv").stat().st_mtime_ns == written, "its minutes were over"
    said = capsys.readouterr().out
    assert said.count(f"original: its 1e-06 minutes are over, after {first['epochs']} of 200 epochs") == 2
    assert said.count("original: from epoch 0 of 200") == 1

    second = row_after(str(2 * first["minutes"]))
    text = file.read_text()
    assert f'; precision {second["precision"]}; executor {second["executor"]}"' in text
    assert str(tmp_path) not in text, "no path of this machine"
    log = read_csv(folder / "epochs.csv")
    assert f"original: from epoch {first['epochs']} of 200" in capsys.readouterr().out
    assert [row["epoch"] for row in log] == list(range(second["epochs"] + 1)), "no epoch is lost or trained twice"
    before, after = (sum(row.get("train_seconds", 0) for row in part) for part in (log[: first["epochs"] + 1], log))
    assert (first["minutes"], second["minutes"]) == (pytest.approx(before / 60), pytest.approx(after / 60))
    assert second["minutes"] >= 2 * first["minutes"]
    cut_short = log[first["epochs"] + 1]["train_seconds"]
    assert cut_short >= state["epoch_sums"]["seconds"], "of an epoch, the part before the stop counts"
    assert second["settings"]["loader"] == "resident" and second["commits"] == [git_commit()]


def test_a_row_that_its_orphan_has_trained_to_the_end_is_finished_whatever_its_minutes(
    stubbed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_engine(tmp_path / "engine", monkeypatch, epochs=2)
    folder, words = tmp_path / "out/runs/cifar10-moco-cifar-seed0", [*stubbed, "--rows", "original"]
    assert main(words) == 0
    note = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**note, "finished": False}))  # its parent was killed, and could not
    lines = "epoch,step,knn,images_per_s,wait_share,train_seconds\n0,0,10,,,\n1,1,21,1,0,60\n"
    (folder / "epochs.csv").write_text(lines)
    assert main([*words, "--minutes", "0.1"]) == 0
    assert "its 0.1 minutes are over, after 1 of 2 epochs" in capsys.readouterr().out
    (folder / "epochs.csv").write_text(lines + "2,2,22,1,0,60\n")
    assert main([*words, "--minutes", "0.1"]) == 0
    assert "original: finished" in capsys.readouterr().out and read_run(folder)["finished"]
    assert len((folder / "words.txt").read_text().splitlines()) == 1, "nothing was left to train"


def test_all_rows_are_reported_with_what_failed(
    stubbed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_engine(tmp_path / "engine", monkeypatch, first='if "albumentations" in out.name: sys.exit("it is broken")')
    assert main(stubbed) == 1
    said = capsys.readouterr()
    assert "it is broken" in said.err and "albumentations-7: failed" in said.out and "moco: finished" in said.out
    assert re.search(r"original +82\.71 +23\.00 +23\.00 +no +3/2", said.out)
    report = json.loads((tmp_path / "t.json").read_text())
    assert [(row["row"], row["epochs"], row["finished"]) for row in report["rows"]] == [
        ("original", 3, True), ("albumentations-7", 0, False), ("moco", 3, True)]  # fmt: skip
    assert report["rows"][1]["best"] is None and report["rows"][2]["best"]["knn"] == 23
    assert "resident for ffcv" in report["trained"] and len(report["references"]) == 4
    assert (tmp_path / "t.svg").stat().st_size > 10_000
    words = tmp_path / "out/runs/moco-abcde-seed0/words.txt"
    assert "--loader resident" in words.read_text() and "--compile" not in words.read_text()
    assert main(stubbed) == 1 and len(words.read_text().splitlines()) == 1, "what is finished is left as it is"


def test_a_look_says_that_it_is_one(
    stubbed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_engine(tmp_path / "engine", monkeypatch, epochs=2)
    assert main([*stubbed, "--quick", "--subset", "64", "--rows", "original"]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["trained"].startswith("--quick: ")
    assert "--quick: " in capsys.readouterr().out
    words = (tmp_path / "out/runs/cifar10-moco-cifar-seed0/words.txt").read_text()
    assert "--stem half" in words and "--batch 32" in words


def test_a_signal_stops_the_row_at_work_and_the_report_is_written(
    stubbed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    signal = "import os\nif 'moco-cifar' in out.name: os.kill(os.getppid(), signal.SIGTERM)"
    stub_engine(tmp_path / "engine", monkeypatch, seconds=0.3, first=signal)
    assert main(stubbed) == 143, "as engine/train.py leaves with after SIGTERM"
    said = capfd.readouterr()
    assert "the same command goes on" in said.err and "original: stopped after" in said.out
    assert "moco:" not in said.out
    assert not (tmp_path / "out/runs/moco-abcde-seed0").exists()
    assert [row["finished"] for row in json.loads((tmp_path / "t.json").read_text())["rows"]] == [False] * 3
    stub_engine(tmp_path / "engine", monkeypatch)
    assert main(stubbed) == 0
    assert read_run(tmp_path / "out/runs/cifar10-moco-cifar-seed0")["finished"]


# What is printed and drawn


def test_what_the_machine_decides_is_said_of_the_rows_that_have_begun() -> None:
    begun = [{"precision": "bfloat16", "executor": "fused_gpu"}, {"precision": "fp32", "executor": "fused_gpu"}]
    assert machine_made([*begun, {}]) == ["precision bfloat16/fp32", "executor fused_gpu"]
    assert machine_made([{}]) == []
    assert machine_made([{"precision": "fp32", "executor": None}]) == ["precision fp32"]


def test_the_picture_has_a_line_a_row_and_targets_whose_labels_keep_apart(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig

    def draw(self: Figure, path: Path) -> None:
        drawn.append(self)
        save(self, path)

    monkeypatch.setattr(Figure, "savefig", draw)
    rows = [
        {"row": name, "target": target, "epochs_planned": 9, **figures(read_csv(log), target)}
        for name, target in (("a", 71.0), ("b", 71.5), ("c", 90.0))
    ]
    about = {"machine": {"cpus": 1, "cpu": "a CPU", "memory_gb": 1, "gpus": []}, "versions": {"torch": "2"}}
    report = {**about, "rows": rows, "trained": "images", "date": "2026-01-01"}
    report["references"] = [time_to_accuracy.REFERENCES[0]._asdict()]
    draw_chart(report, tmp_path / "t.png")
    [axes] = drawn[0].axes
    assert "\nPublished, of other machines, evaluation included:\n" in drawn[0].get_supxlabel()
    curves = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    assert [np.asarray(line.get_ydata()).tolist() for line in curves] == [[99, 40, 72, 71]] * 3
    assert [np.asarray(line.get_xdata()).tolist() for line in curves] == [[0, 2, 3.5, 4]] * 3
    shown = axes.get_legend()
    assert shown is not None
    legend = [text.get_text() for text in shown.get_texts()]
    assert legend[0] == "a: 71.00 % after 3.50 min, 4 epochs; 5 of 9 epochs in 4.00 min"
    assert legend[2] == "c: 90.00 % not reached; 5 of 9 epochs in 4.00 min, best 72.00 %"
    boxes = [text.get_window_extent() for text in axes.texts if isinstance(text, Annotation)]
    assert len(boxes) == 3
    assert all(below.y1 <= above.y0 for below, above in pairwise(sorted(boxes, key=lambda box: box.y0)))
    assert all(box.x1 <= drawn[0].bbox.x1 for box in boxes)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "mocov2"], "--rows 'mocov2' is not known: choose from original, albumentations-7, moco"),
        (["--minutes", "0"], "--minutes 0: a row needs more than 0"),
        (["--minutes", "nan"], "--minutes nan: a row needs more than 0"),
        (["--epochs", "0"], "--epochs 0: it takes at least 1"),
        (["--knn-every", "0"], "--knn-every 0: it takes at least 1"),
        (["--train=--knn-every 0"], "--train has --knn-every 0"),
        (["--train=--epochs 3"], "--epochs is given to the sweep itself"),
        (["--loader", "residual"], "residual.* resident"),
        (["--plot", "x.txt"], "must end in .png"),
        (["--data", "nowhere", "--compile", "fast"], "--compile 'fast' is not known: choose one of auto, off, default"),
        ([*TINY, "--batch", "256"], "--batch 256 is larger than the data"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_inputs_are_named(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        main([*arguments, "--out", str(tmp_path / "out")])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_begun_otherwise_is_not_gone_on_with(
    stubbed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_engine(tmp_path / "engine", monkeypatch)
    assert main([*stubbed, "--rows", "original"]) == 0
    with pytest.raises(UserError, match="begun with --loader resident, not ffcv: choose another --out"):
        main([*stubbed, "--loader", "ffcv"])
