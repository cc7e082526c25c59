"""Published tables: what is cut from them and how, what is written, and that no run is repeated and none is lost."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from penstock.engine import sweep as command
from penstock.engine.config import TrainConfig
from penstock.engine.csv_log import read_csv
from penstock.engine.in_turn import InTurn
from penstock.engine.runs import Run, identity, is_finished, read_run
from penstock.engine.sweep import main
from penstock.engine.systems import TABLES
from penstock.engine.systems.plan import Cut, differences, fitting, plan
from penstock.engine.systems.results import as_csv, draw, gather, header, markdown, rich_table
from penstock.engine.systems.table import Entry, Table, last_knn
from penstock.errors import UserError
from penstock.loaders import open_source
from tests.stub_engine import small_images, stub_engine

SWEEP = Path(__file__).resolve().parents[1] / "engine/sweep.py"
NAMES = ("simclr-a-seed0", "moco-a-seed0")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is typed for a sweep of two runs."""
    photos = small_images(tmp_path_factory.mktemp("images") / "photos")
    cut = ["--epochs", "3", "--width", "8", "--size", "16", "--batch", "32", "--seeds", "1", "--only", "simclr-a"]
    return ["r1-subsets", "--data", str(photos), *cut, "moco-a", "--train=--optimizer adamw --hidden 16 --log-every 1"]


def config_of(table: str, cut: Cut, run: str) -> TrainConfig:
    return plan(TABLES[table], cut, seeds=1, only=[run])[0].runs[0].config


# What is cut


def test_in_full_a_table_is_as_published_with_its_seeds() -> None:
    cells = plan(TABLES["r1-subsets"], Cut(), seeds=3)
    assert [cell.runs[2].name for cell in cells[:2]] == ["simclr-abcde-seed2", "barlow-twins-abcde-seed2"]
    assert [run.config.seed for run in cells[0].runs] == [0, 1, 2]
    assert all(replace(cell.runs[0].config) == TrainConfig(**cell.entry.settings) for cell in cells)
    assert differences(cells, 50_000) == {}


def test_runs_and_classifiers_are_cut_in_the_same_ratio() -> None:
    demo = plan(TABLES["r2-demo"], Cut(epochs=2), seeds=1)
    assert {cell.entry.run: cell.runs[0].config.epochs for cell in demo}["symmetric-800"] == 8
    [cell, *_] = plan(TABLES["r4"], Cut(epochs=10), seeds=1)
    assert cell.runs[0].evaluation is not None
    assert cell.runs[0].evaluation.settings["probe-augmented.epochs"] == 1
    assert cell.runs[0].evaluation.settings["finetune.epochs"] == 1
    [cell, *_] = plan(TABLES["r4"], Cut(epochs=10, evaluate="--finetune.epochs 7"), seeds=1)
    assert cell.runs[0].evaluation is not None and cell.runs[0].evaluation.settings["finetune.epochs"] == "7"
    [cell, *_] = plan(TABLES["r4"], Cut(), seeds=1)
    assert cell.runs[0].evaluation == cell.entry.evaluation


def test_another_batch_changes_the_learning_rate_of_sgd_and_another_optimizer_drops_it() -> None:
    cut = config_of("r1-subsets", Cut(batch=128), "moco-abc")
    assert (cut.batch, cut.lr, cut.weight_decay) == (128, 0.01, 1e-3)
    cut = config_of("r1-subsets", Cut(batch=128, train="--optimizer adamw"), "moco-abc")
    assert (cut.optimizer, cut.lr, cut.weight_decay) == ("adamw", None, None)
    cut = config_of("r1-subsets", Cut(train="--optimizer adamw --weight-decay 0.1"), "moco-abc")
    assert (cut.lr, cut.weight_decay) == (None, 0.1)
    cut = config_of("r1-subsets", Cut(batch=128, train="--lr 0.5"), "moco-abc")
    assert cut.lr == 0.5
    cut = config_of("r1-subsets", Cut(batch=128, train="--lr 0.06"), "simclr-abc")
    assert cut.lr == 0.06, "told, though it is the published one"
    cut = config_of("r4", Cut(batch=64), "*")
    assert cut.lr == 1e-3, "Adam's stays"


def test_a_network_that_has_no_width_is_given_none() -> None:
    cut = config_of("r1-subsets", Cut(arch="convnext_tiny"), "moco-a")
    assert (cut.width, cut.stem) == (None, None)


def test_a_queue_that_is_too_long_for_the_images_becomes_the_default() -> None:
    cells = plan(TABLES["r1-subsets"], Cut(), seeds=1, only=["moco-a", "simclr-a"])
    assert fitting(cells, 8 * 4096) == cells
    assert [cell.runs[0].config.queue for cell in fitting(cells, 8 * 4096 - 1)] == [None, None]
    told = plan(TABLES["r1-subsets"], Cut(train="--queue 2048"), seeds=1, only=["moco-a"])
    assert fitting(told, 1000) == told


@pytest.mark.parametrize(
    ("table", "cut", "message"),
    [
        ("r1-subsets", {"train": "--seed 3"}, "--seed is what the sweep gives each"),
        ("r1-subsets", {"train": "--out here"}, "--out is what the sweep gives each"),
        ("r1-subsets", {"train": "--subset 100"}, "--subset is given to the sweep itself"),
        ("r1-subsets", {"train": '--recipe "a'}, "a quotation mark in it has no partner"),
        ("r4", {"evaluate": '--finetune.epochs "1'}, "a quotation mark in it has no partner"),
        ("r1-subsets", {"evaluate": "--finetune.epochs 1"}, "r1-subsets is of figures that training logs"),
        ("r4", {"evaluate": "--finetune.epochs"}, "type pairs, as in"),
    ],
)
def test_words_that_are_not_the_runs_own_are_refused(table: str, cut: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(TABLES[table], Cut(**cut), seeds=1)


def test_what_follows_from_a_cut_is_among_the_differences() -> None:
    cut = Cut(data="cifar10:.", subset=10_000, epochs=8, batch=128)
    cells = fitting(plan(TABLES["r1-subsets"], cut, seeds=1, only=["moco-a"]), 10_000)
    found = differences(cells, 10_000)
    assert found == {
        "batch": "128 for 512", "lr": "0.01 for 0.04", "queue": "1024 for 4096", "bn_splits": "4 for 8",
    }  # fmt: skip
    cells = plan(TABLES["r4"], Cut(epochs=10, evaluate="--finetune.lr 1"), seeds=1)
    found = differences(cells, 9469)
    assert found["probe-augmented.epochs"] == "1 for 100"
    assert "finetune.lr" in found


@pytest.mark.parametrize("folder", ["imagenette:/here", None])
def test_where_the_published_images_lie_changes_no_queue(
    folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "open_source", lambda *given, **options: open_source("shapes"))
    runs = command.Sweep(command.Config(data=folder, out=tmp_path), TABLES["r3"]).runs
    assert [run.config.queue for run in runs] == [16384]


def test_another_table_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.json").write_text('{"table": "r0"}')
    with pytest.raises(UserError, match="the table r0 lies there: choose another --out"):
        main(["r1-colors", "--data", "shapes", "--subset", "600", "--out", str(tmp_path), "--dry-run"])


def test_a_pattern_without_a_run_is_refused_with_their_names() -> None:
    assert {cell.entry.run for cell in plan(TABLES["r1-subsets"], Cut(), seeds=1, only=["*-ab", "simclr-a"])} == {
        "simclr-ab", "barlow-twins-ab", "moco-ab", "simclr-a"}  # fmt: skip
    with pytest.raises(UserError, match=r"--only 'byol-\*': no run of r1-subsets is called so; there are simclr-abcde"):
        plan(TABLES["r1-subsets"], Cut(), seeds=1, only=["byol-*"])


def test_what_makes_a_run_the_one_it_is_stays_what_it_was() -> None:
    """Runs that lie on disks are rendered again by later versions."""
    cut = Cut(data="cifar10:.", subset=10_000, epochs=24, width=16, stem="half", batch=128,
              train="--optimizer adamw --knn-every 4")  # fmt: skip
    [cell] = fitting(plan(TABLES["r1-subsets"], cut, seeds=1, only=["simclr-abcde"]), 10_000)
    assert cell.runs[0].name == "simclr-abcde-seed0"
    assert identity(cell.runs[0]) == {
        "settings": {
            "data": "cifar10:.", "subset": 10_000, "recipe": "abcde", "size": 32, "method": "simclr",
            "temperature": 0.5, "head": "mlp", "head_layers": 2, "hidden": 128, "dim": 128, "width": 16, "stem": "half",
            "epochs": 24, "batch": 128, "optimizer": "adamw", "schedule": "cosine", "knn_every": 4,
        },
        "evaluation": [],
    }  # fmt: skip


# What is written


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


def finish(folder: Path, knn: float, *, finished: bool = True) -> None:
    folder.mkdir(parents=True)
    (folder / "epochs.csv").write_text(f"epoch,step,knn,train_seconds\n0,0,10,\n1,5,{knn - 1},30\n2,10,{knn},30\n")
    (folder / "run.json").write_text(json.dumps({"commits": ["abc"], "finished": finished}))


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
    assert re.search(r"weak +50\.00 \(1 of 4 runs\) *\n +80\.00±0\.05", said)


def test_the_header_says_all_that_differs(tmp_path: Path) -> None:
    table = TABLES["r1-subsets"]

    def said(cut: Cut, seeds: int = 3) -> str:
        cells = plan(table, cut, seeds=seeds, only=["moco-a"])
        return header(gather(table, cells, lambda name: tmp_path / name, data="cifar10", images=50_000))

    assert said(Cut()) == "cifar10, 50,000 images, 800 epochs"
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


# Whole sweeps, their runs stubs


def test_a_sweep_writes_its_table_and_repeats_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: list[str]
) -> None:
    stub_engine(tmp_path / "engine", monkeypatch)
    typed = [*tiny, "--out", str(tmp_path / "out")]
    assert main(typed) == 0
    said = capsys.readouterr().out
    assert all(f"{name}: from epoch 0 of 3\n" in said and f"{name}: finished, 0.0 min\n" in said for name in NAMES)
    assert "photos, 64 images, 3 epochs (800 in the published table); changed: seeds 1 for 3" in said
    table = json.loads((tmp_path / "out/table.json").read_text())
    assert [row["mean"] for row in table["rows"]] == [23, 23] and table["command"].startswith(
        "python engine/sweep.py r1"
    )
    assert {"commit", "machine", "versions", "date"} <= table.keys()
    assert all((tmp_path / f"out/table.{suffix}").stat().st_size for suffix in ("md", "csv", "png"))
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/runs").rglob("*")}
    assert main(typed) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/runs").rglob("*")} == written
    with pytest.raises(UserError, match="simclr-a-seed0: this run was begun with --width 8, not 16: choose another"):
        main([*typed, "--width", "16"])


def test_a_dry_run_prints_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "no images"))
    monkeypatch.setattr(command, "check_same", lambda run, folder: None)
    finish(tmp_path / "out/runs/simclr-a-seed0", 60)
    assert main(["r1-subsets", "--only", "simclr-a", "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    first, typed, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "# simclr-a-seed0: finished" and second == "# simclr-a-seed1: 0 of 800 epochs"
    assert typed.startswith("python engine/train.py --data cifar10 ") and typed.endswith("runs/simclr-a-seed0")


def test_runs_that_fail_are_named_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: list[str]
) -> None:
    diverges = "if 'simclr' in str(out): print('penstock: the loss is nan: try --lr below 1'); sys.exit(1)"
    stub_engine(tmp_path / "engine", monkeypatch, first=diverges)
    typed = [*tiny, "--out", str(tmp_path / "out")]
    assert main(typed) == 1
    said = capsys.readouterr()
    assert "simclr-a-seed0: failed\n" in said.out and "moco-a-seed0: finished" in said.out
    assert f"penstock: {tmp_path}/out/runs/simclr-a-seed0: the loss is nan: try --lr below 1\n" in said.err
    assert "penstock: 1 of 2 runs failed; try them again with: python engine/sweep.py r1-subsets" in said.err
    assert [row["mean"] for row in json.loads((tmp_path / "out/table.json").read_text())["rows"]] == [None, 23]
    stub_engine(tmp_path / "engine", monkeypatch)
    assert main(typed) == 0
    assert capsys.readouterr().out.startswith("1 of 2 runs are finished\nsimclr-a-seed0: from epoch 0 of 3\n")


def test_a_run_that_is_refused_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: list[str]) -> None:
    refused = "if 'simclr' in str(out): print('penstock: --loader dali: there is none'); sys.exit(2)"
    stub_engine(tmp_path / "engine", monkeypatch, seconds=0.5, first=refused)
    with pytest.raises(UserError, match=r"simclr-a-seed0: --loader dali: there is none$"):
        main([*tiny, "--out", str(tmp_path / "out"), "--jobs", "2"])
    moco = tmp_path / "out/runs/moco-a-seed0"
    assert not is_finished(moco) and (moco / "output.txt").read_text() in ("begins\nsaved 1\n", "begins\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_runs_save_and_the_message_says_how_to_go_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tiny: list[str]
) -> None:
    stub_engine(tmp_path / "engine", monkeypatch, seconds=0.5)
    typed = [*tiny, "--out", str(tmp_path / "out")]
    running = tmp_path / "out/runs" / NAMES[0] / "output.txt"

    def ask() -> None:
        while not (running.exists() and running.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    asker = threading.Thread(target=ask)
    asker.start()
    assert main(typed) == 130
    asker.join()
    assert running.read_text() == "begins\nsaved 1\n"
    assert not (tmp_path / "out/runs" / NAMES[1]).exists()
    assert "penstock: stopped; go on with: python engine/sweep.py r1-subsets --data " in capfd.readouterr().err


def test_a_terminal_has_a_bar_for_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_engine(tmp_path / "engine", monkeypatch, seconds=0.2)
    console = Console(force_terminal=True, file=io.StringIO(), width=100)
    runs = [Run(name=name, config=TrainConfig(epochs=3)) for name in ("one", "two")]
    ended: list[int] = []
    turn = InTurn(runs, lambda name: tmp_path / name, jobs=2, console=console, finished=lambda: ended.append(1))
    assert turn.carry_out() and turn.failed == {} and ended == [1, 1]
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 runs, epochs" in said and "100%" in said and "from epoch" not in said
    assert turn.progress.tasks[0].completed == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["r9"], "there is no table 'r9'; there are r0, "),
        (["r4", "--jobs", "0"], "--jobs 0: it takes at least 1"),
        (["r1-subsets", "--seeds", "0"], "--seeds 0: it takes at least 1"),
        (["--batch", "7", "--train=--bn-splits 2"], "--bn-splits 2 does not divide the batch"),
        (["--train=--recipe no-such"], "no-such"),
    ],
)
def test_wrong_inputs_are_named_before_anything_starts(
    arguments: list[str], message: str, tmp_path: Path, tiny: list[str]
) -> None:
    words = arguments if arguments[0].startswith("r") else [*tiny, *arguments]
    with pytest.raises(UserError, match=message):
        main([*words, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_evaluation_that_would_be_refused_is_refused_before_the_training(tmp_path: Path, tiny: list[str]) -> None:
    cut = ["r4", "--data", tiny[2], "--epochs", "1", "--width", "8", "--batch", "32", "--size", "16"]
    with pytest.raises(UserError, match="--knn-k 0: this must be at least 1"):
        main([*cut, "--evaluate=--knn-k 0", "--out", str(tmp_path / "out")])


def test_the_listing_has_every_table_with_its_data_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in TABLES)
    assert re.search(r"r1-colors .* cifar10 +12 × 3 +800 ", said)
    assert "97 h + 5 h on a GPU" in said


# Killed


@pytest.fixture
def started() -> Iterator[list[psutil.Process]]:
    """Processes that end with the test, however it ends."""
    processes: list[psutil.Process] = []
    yield processes
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.timeout(600)  # six processes that start one after the other
def test_killed_in_mid_sweep_no_run_is_repeated_and_none_is_lost(
    tmp_path: Path, tiny: list[str], started: list[psutil.Process]
) -> None:
    """First the sweep alone, whose training lives on and is waited for; then all of it, in the second run."""
    first, second = (tmp_path / "out/runs" / name for name in NAMES)
    words = [str(SWEEP), *tiny, "--batch", "8", "--epochs", "4", "--out", str(tmp_path / "out")]
    said = tmp_path / "said.txt"

    def start_until(epoch: int, folder: Path) -> tuple[subprocess.Popen[bytes], psutil.Process]:
        """A sweep, and its training when so many epochs of the run in the folder are saved."""
        with said.open("a") as output:
            sweep = subprocess.Popen([sys.executable, *words], stdout=output, stderr=output, start_new_session=True)
        started.append(psutil.Process(sweep.pid))
        resume_orphan(sweep)
        while not (folder / "last.pt").exists() or len(read_csv(folder / "epochs.csv")) < epoch + 1:
            assert sweep.poll() is None, said.read_text()
            time.sleep(0.01)
        started.extend(psutil.Process(sweep.pid).children())
        return sweep, started[-1]

    orphans: list[psutil.Process] = []

    def resume_orphan(sweep: subprocess.Popen[bytes]) -> None:
        """When it is waited for."""
        while orphans and "waiting" not in said.read_text():
            assert sweep.poll() is None, said.read_text()
            time.sleep(0.01)
        for orphan in orphans:
            orphan.resume()

    sweep, training = start_until(1, first)
    training.suspend()
    orphans.append(training)
    sweep.kill()
    sweep.wait()
    assert not is_finished(first)
    sweep, training = start_until(2, second)
    training.kill()
    sweep.kill()
    sweep.wait()
    assert f"{NAMES[0]}: waiting for those who are at it\n" in said.read_text()
    written = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert is_finished(first) and not is_finished(second)
    assert main(words[1:]) == 0

    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == written
    for folder in (first, second):
        assert [row["step"] for row in read_csv(folder / "steps.csv")] == list(range(1, 33))
        assert [row["epoch"] for row in read_csv(folder / "epochs.csv")] == [0, 1, 2, 3, 4]
        assert (folder / "output.txt").read_text().count("epoch 1/4") == 1
        assert read_run(folder)["finished"]
    assert all(row["mean"] is not None for row in json.loads((tmp_path / "out/table.json").read_text())["rows"])
