"""A run in a process of its own: it is carried out once, whatever happens to whom, and only with its own settings."""

from __future__ import annotations

import fcntl
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from time import sleep

import pytest

from penstock.engine.config import TrainConfig
from penstock.engine.runs import (
    Evaluation,
    Place,
    Run,
    RunFailed,
    carry_out,
    epochs_done,
    identity,
    is_at_work,
    is_finished,
    read_run,
    words_of,
)
from penstock.errors import UserError
from penstock.options import read_options
from tests.stub_engine import stub_engine

RUN = Run(name="one", config=TrainConfig(epochs=3, batch=32))


def go(run: Run, folder: Path, **others: object) -> bool:
    return carry_out(run, folder, **{"place": Place(), "stop": Event(), **others})


def words(folder: Path) -> list[str]:
    """What was typed for each of its trainings."""
    return (folder / "words.txt").read_text().splitlines()


def test_a_run_is_trained_and_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_engine(tmp_path / "engine", monkeypatch)
    evaluation = Evaluation(protocols=("knn", "finetune"), settings={"finetune.epochs": 2}, checkpoint="best")
    run, folder, seen = replace(RUN, evaluation=evaluation), tmp_path / "runs/one", list[int]()
    assert not is_finished(folder) and epochs_done(folder) == 0
    assert go(run, folder, watch=seen.append, place=Place(workers=2))
    assert is_finished(folder) and not is_at_work(folder) and seen == sorted(seen) and seen[-1] == 3
    assert words(folder) == [f"--epochs 3 --batch 32 --out {folder} --workers 2"]
    asked = f"--out {folder / 'downstream'} --protocols knn,finetune --finetune.epochs 2 --workers 2"
    assert (folder / "output.txt").read_text() == f"begins\nevaluates {asked} on best.pt\n"
    assert read_run(folder) == {**identity(run), "commits": ["a1"], "finished": True}
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "lock"}
    assert go(run, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "lock"} == written


def test_a_run_is_asked_once_to_stop_and_goes_on_from_what_it_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_engine(tmp_path / "engine", monkeypatch, seconds=0.3)
    run, folder, stop = replace(RUN, evaluation=Evaluation(protocols=("knn",))), tmp_path / "one", Event()
    assert not go(run, folder, stop=stop, watch=lambda epochs: stop.set() if epochs == 1 else None)
    assert (folder / "output.txt").read_text() == "begins\nsaved 1\n"
    assert not is_finished(folder) and epochs_done(folder) == 1
    assert not go(run, folder, stop=stop) and len(words(folder)) == 1
    monkeypatch.setattr("penstock.engine.runs.git_commit", lambda: "b2")
    assert go(run, folder)
    assert words(folder)[1:] == [f"--resume {folder / 'last.pt'}"]
    assert (folder / "output.txt").read_text().endswith("--protocols knn on last.pt\n")
    assert read_run(folder)["commits"] == ["a1", "b2"]


@pytest.mark.parametrize("checkpoint", ["2.pt", None])
def test_killed_between_the_last_line_of_the_log_and_its_checkpoint_a_run_is_trained_to_its_end(
    checkpoint: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, folder = tmp_path / "engine", tmp_path / "one"
    stub_engine(
        engine, monkeypatch, first="(out / 'epochs.csv').write_text('epoch,step,knn\\n0,0,1\\n1,1,1\\n2,2,1\\n')"
    )
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({**identity(RUN), "commits": [], "finished": False}))
    (folder / "epochs.csv").write_text("epoch,step,knn\n0,0,1\n1,1,1\n2,2,1\n3,3,1\n")
    if checkpoint:
        (folder / "last.pt").write_bytes((engine / checkpoint).read_bytes())
    assert go(RUN, folder)
    [typed] = words(folder)
    assert typed.startswith("--resume") == bool(checkpoint)


def test_a_run_whose_training_is_over_is_evaluated_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_engine(tmp_path / "engine", monkeypatch)
    run, folder = replace(RUN, evaluation=Evaluation(protocols=("knn",))), tmp_path / "one"
    evaluate = tmp_path / "engine/evaluate/run.py"
    whole = evaluate.read_text()
    evaluate.write_text("import sys; sys.exit(143)")
    with pytest.raises(RunFailed, match="ended with SIGTERM"):
        go(run, folder)
    assert not is_finished(folder)
    evaluate.write_text(whole)
    assert go(run, folder) and len(words(folder)) == 1


def test_who_is_at_a_run_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a training whose sweep was killed is: it has inherited the lock."""
    stub_engine(tmp_path / "engine", monkeypatch)
    folder, waits, stop = tmp_path / "one", list[int](), Event()
    folder.mkdir()
    seen: list[int] = []
    with ThreadPoolExecutor() as pool:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert is_at_work(folder)
            stopped = pool.submit(go, RUN, folder, stop=stop, waits=lambda: stop.set())
            assert stopped.result() is False
            (folder / "run.json").write_text(json.dumps({**identity(RUN), "commits": ["its"], "finished": False}))
            done = pool.submit(go, RUN, folder, watch=seen.append, waits=lambda: waits.append(1))
            (folder / "epochs.csv").write_text("epoch,step,knn\n0,0,1\n1,1,1\n2,2,1\n3,3,1\n")
            while 3 not in seen and not done.done():
                sleep(0.01)
            (folder / "last.pt").write_bytes((tmp_path / "engine/3.pt").read_bytes())
            assert not done.done() and not (folder / "output.txt").exists()
        assert done.result() and waits == [1]
    assert not (folder / "words.txt").exists() and read_run(folder)["commits"] == ["its", "a1"]


@pytest.mark.parametrize(
    ("does", "code", "message"),
    [
        ("print('penstock: --queue 7 is wrong', flush=True); sys.exit(2)", 2, r"one: --queue 7 is wrong$"),
        ("raise ValueError('what it is')", 1, r"(?s)one: the run ended with code 1; .*output.txt has:.*what it is$"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, r"(?s)one: the run ended with SIGKILL; .*\nbegins$"),
    ],
)
def test_a_run_that_fails_says_how(
    does: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_engine(tmp_path / "engine", monkeypatch, first=does)
    with pytest.raises(RunFailed, match=message) as failed:
        go(RUN, tmp_path / "one")
    assert failed.value.code == code and not is_finished(tmp_path / "one") and not is_at_work(tmp_path / "one")


def test_another_run_in_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_engine(tmp_path / "engine", monkeypatch)
    folder = tmp_path / "one"
    assert go(RUN, folder)
    for change, message in (
        ({"batch": 64}, r"begun with --batch 32, not 64: choose another --out"),
        ({"temperature": 0.1}, r"begun with --temperature None, not 0.1"),
    ):
        with pytest.raises(UserError, match=message):
            go(replace(RUN, config=replace(RUN.config, **change)), folder)
    with pytest.raises(UserError, match=r"evaluated by nothing, not by last.pt .*--protocols knn"):
        go(replace(RUN, evaluation=Evaluation(protocols=("knn",))), folder)
    elsewhere = replace(RUN.config, device="cpu", workers=1, out=Path("x"))
    assert go(replace(RUN, config=elsewhere), folder), "where a run is carried out is not what it is"
    (folder / "run.json").unlink()
    with pytest.raises(UserError, match="not begun from here: choose another --out"):
        go(RUN, folder)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/runs/one: cannot be made \(Not a directory\): choose another --out$"):
        go(RUN, tmp_path / "file/runs/one")


def test_settings_are_typed_as_they_are_read() -> None:
    config = TrainConfig(mochi=(4, 2, 2), drops=(0.5,), symmetric=True, sync_bn=False, data="cifar10:a b", lr=1e-5)
    assert read_options(TrainConfig, None, words_of(config)) == config
    assert words_of(TrainConfig()) == []


def test_a_place_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    place = Place(workers=3, gpu=1)
    assert place.words() == ["--workers", "3"]
    assert {**place.environment(), "OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "1"} == place.environment()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert place.environment()["CUDA_VISIBLE_DEVICES"] == "5"
    assert Place().words() == [] and Place().environment()["CUDA_VISIBLE_DEVICES"] == "4,5"
