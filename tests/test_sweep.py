"""Whole sweeps: no run is repeated and none is lost, whether it fails, is refused, stopped or killed."""

from __future__ import annotations

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
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from penstock.engine import sweep as command
from penstock.engine.config import TrainConfig
from penstock.engine.csv_log import read_csv
from penstock.engine.in_turn import InTurn
from penstock.engine.runs import Run, is_finished, read_run
from penstock.engine.sweep import main
from penstock.engine.systems import TABLES
from penstock.errors import UserError
from tests.finished_runs import finish
from tests.stub_engine import small_images, stub_engine

SWEEP = Path(__file__).resolve().parents[1] / "engine/sweep.py"
NAMES = ("simclr-a-seed0", "moco-a-seed0")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is typed for a sweep of two runs."""
    photos = small_images(tmp_path_factory.mktemp("images") / "photos")
    cut = ["--epochs", "3", "--width", "8", "--size", "16", "--batch", "32", "--seeds", "1", "--only", "simclr-a"]
    return ["r1-subsets", "--data", str(photos), *cut, "moco-a", "--train=--optimizer adamw --hidden 16 --log-every 1"]


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
    assert main(["r2-ablation", "--subset", "1000", "--out", str(tmp_path / "cut"), "--dry-run"]) == 0
    assert "--data imagenet --subset 1000 " in capsys.readouterr().out


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
    assert main(typed) == 128 + number
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
        (["r2-ablation"], "^imagenet: there is no such folder here, .*: name .* --data path/to/imagenet$"),
    ],
)
def test_wrong_inputs_are_named_before_anything_starts(
    arguments: list[str], message: str, tmp_path: Path, tiny: list[str]
) -> None:
    words = arguments if arguments[0].startswith("r") else [*tiny, *arguments]
    with pytest.raises(UserError, match=message):
        main([*words, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_another_table_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.json").write_text('{"table": "r0"}')
    with pytest.raises(UserError, match="the table r0 lies there: choose another --out"):
        main(["r1-colors", "--data", "shapes", "--subset", "600", "--out", str(tmp_path), "--dry-run"])


def test_an_evaluation_that_would_be_refused_is_refused_before_the_training(tmp_path: Path, tiny: list[str]) -> None:
    cut = ["r4", "--data", tiny[2], "--epochs", "1", "--width", "8", "--batch", "32", "--size", "16"]
    with pytest.raises(UserError, match="--knn-k 0: this must be at least 1"):
        main([*cut, "--evaluate=--knn-k 0", "--out", str(tmp_path / "out")])


def test_the_listing_has_every_table_with_its_data_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in TABLES)
    assert re.search(r"r1-colors +What .*\n +cifar10, 12 runs × 3 seeds, 800 epochs; cost about 10 h a run", said)
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
