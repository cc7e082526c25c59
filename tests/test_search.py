"""The list search: its trials, and what it leaves."""

from __future__ import annotations

import csv
import fcntl
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image

from penstock.augment import RECIPES, load_recipe
from penstock.augment.operations import Grayscale
from penstock.engine.config import TrainConfig
from penstock.engine.defaults import complete
from penstock.engine.runs import Place, Run, RunFailed, is_at_work
from penstock.engine.search import report as search_report
from penstock.engine.search import run as search
from penstock.engine.search import runner
from penstock.errors import MissingExtra, UserError
from penstock.loaders import open_source

pytest.importorskip("optuna", reason="the extra `search` is not installed")

EPOCHS = 4
EPOCH_SECONDS = 100  # that trainings log which take none


# The search, with trainings that cost nothing: the more often a view is grey, the better


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Sixty images of two classes, with as many to validate on as an own split."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 5)):
        for name in ("cats", "dogs"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


class Trainings:
    """Stands in for `carry_out`.

    Attributes:
        runs: those that were asked for, in order.
        during: called before each epoch with the run's name and the epoch.
    """

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.during: Callable[[str, int], None] = lambda name, epoch: None

    def carry_out(self, run: Run, folder: Path, *, place: Place, stop: Event, watch: Callable[[int], None]) -> bool:
        assert not is_at_work(folder)
        self.runs.append(run)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "epochs.csv"
        if not log.exists():
            log.write_text("epoch,knn,train_seconds\n0,10,\n")
        (folder / "last.pt").touch()
        for epoch in range(len(log.read_text().splitlines()) - 1, (run.config.epochs or 0) + 1):
            self.during(run.name, epoch)
            with log.open("a") as file:
                file.write(f"{epoch},{grey(run) * 50 + epoch},{EPOCH_SECONDS}\n")
            watch(epoch)
            if stop.is_set():
                return False
        return True


def grey(run: Run) -> float:
    operations = load_recipe(str(run.config.recipe)).operations()
    return sum(operation.p for operation in operations if isinstance(operation, Grayscale))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    stub = Trainings()
    monkeypatch.setattr(runner, "carry_out", stub.carry_out)
    monkeypatch.setattr(search_report, "draw", lambda report, path: path.touch())  # a second for each trial
    return stub


def words(images: Path, out: Path, *more: str) -> list[str]:
    given = ("--data", images, "--recipe", "moco-cifar", "--batch", 8, "--epochs", EPOCHS, "--out", out)
    return [*map(str, given), *more]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_best_recipe_is_written_beside_what_it_came_from(
    images: Path, trainings: Trainings, tmp_path: Path
) -> None:
    assert search.main(words(images, tmp_path, "--trials", "12", "--pruner", "none")) == 0
    given, *others = rows(tmp_path)
    assert load_recipe(str(tmp_path / "trials/000.yaml")) == RECIPES["moco-cifar"]
    assert float(given["knn"]) == 50 * 0.2 + EPOCHS and len(others) == 11
    best = load_recipe(str(tmp_path / "best.yaml"))
    report = json.loads((tmp_path / "search.json").read_text())
    assert report["best"] == max(float(row["knn"]) for row in rows(tmp_path)) > report["given"]
    assert [o.p for o in best.operations() if isinstance(o, Grayscale)] == [(report["best"] - EPOCHS) / 50]
    assert "48 images, 4 epochs" in report["header"] and report["header"] in best.about
    assert "| Grayscale.p | 0.2 |" in (tmp_path / "search.md").read_text()
    assert not list(tmp_path.glob("trials/*/last.pt"))
    assert {run.config.seed for run in trainings.runs} == {0}


def test_the_picture_shows_trials_of_every_kind(
    images: Path, trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.main(words(images, tmp_path, "--trials", "15", "--prune-after", "2"))
    report = json.loads((tmp_path / "search.json").read_text())
    assert {trial["state"] for trial in report["trials"]} == {"complete", "pruned"}
    monkeypatch.undo()
    search_report.draw(report, tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as picture:
        assert picture.size[0] > 1000


def test_images_that_score_are_none_that_were_trained_on(images: Path, trainings: Trainings, tmp_path: Path) -> None:
    search.main(words(images, tmp_path, "--trials", "1", "--subset", "40", "--held-out", "20"))
    config = trainings.runs[0].config
    trained, scoring = open_source(config.data, limit=config.subset), open_source(str(config.val_data))
    assert (
        len(scoring) == 20 and scoring.classes == trained.classes and np.bincount(scoring.labels).tolist() == [10] * 2
    )
    seen = {trained.decode(i).tobytes() for i in range(40)} | {scoring.decode(i).tobytes() for i in range(20)}
    assert len(seen) == 60


@pytest.mark.parametrize("pruner", ["median", "asha"])
def test_trials_that_lag_behind_are_stopped(images: Path, trainings: Trainings, tmp_path: Path, pruner: str) -> None:
    search.main(words(images, tmp_path, "--trials", "15", "--pruner", pruner, "--prune-after", "2"))
    pruned = [row for row in rows(tmp_path) if row["state"] == "pruned"]
    assert pruned and all(2 <= int(row["epochs"]) < EPOCHS for row in pruned)
    assert rows(tmp_path)[0]["state"] == "complete"
    for row in pruned:
        log = tmp_path / "trials" / f"{int(row['trial']):03d}" / "epochs.csv"
        assert len(log.read_text().splitlines()) == 2 + int(row["epochs"])


def test_a_trial_given_up_stays_so_whatever_it_logs_until_it_ends(
    images: Path, trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carry_out(run: Run, folder: Path, *, watch: Callable[[int], None], **how: Any) -> bool:
        finished = trainings.carry_out(run, folder, watch=watch, **how)
        if not finished:
            with (folder / "epochs.csv").open("a") as log:
                log.write(f"{EPOCHS - 1},100,{EPOCH_SECONDS}\n")
            watch(EPOCHS - 1)
        return finished

    monkeypatch.setattr(runner, "carry_out", carry_out)
    assert search.main(words(images, tmp_path, "--trials", "15", "--prune-after", "2")) == 0
    assert [row["knn"] for row in rows(tmp_path) if row["state"] == "pruned"].count("100") > 0
    assert len(rows(tmp_path)) == 15


def test_killed_in_a_trial_it_goes_on_as_if_nothing_had_been(
    images: Path, trainings: Trainings, tmp_path: Path
) -> None:
    search.main(words(images, tmp_path / "whole", "--trials", "6"))

    def kill(name: str, epoch: int) -> None:
        if (name, epoch) == ("trial-002", 3):
            raise SystemExit("killed")

    trainings.during, trainings.runs = kill, []
    with pytest.raises(SystemExit):
        search.main(words(images, tmp_path / "killed", "--trials", "6"))
    trainings.during = lambda name, epoch: None
    search.main(words(images, tmp_path / "killed", "--trials", "6"))
    assert [run.name for run in trainings.runs] == [f"trial-00{i}" for i in (0, 1, 2, 2, 3, 4, 5)]
    assert [row | {"seconds": ""} for row in rows(tmp_path / "killed")] == [
        row | {"seconds": ""} for row in rows(tmp_path / "whole")
    ]


@pytest.mark.parametrize("number", [3, 9])  # drawn at random, and by TPE
def test_killed_between_two_values_it_tries_the_same(
    number: int, images: Path, trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna.trial import Trial

    given = ("--trials", "11", "--pruner", "none")
    search.main(words(images, tmp_path / "whole", *given))
    alike = ("HorizontalFlip.p", "ColorJitter.p", "Grayscale.p")  # in their bounds: they are drawn apart all the same
    assert all(len({row[name] for name in alike}) == 3 for row in rows(tmp_path / "whole"))
    plain = Trial.suggest_float

    def suggest(trial: Trial, name: str, *rest: Any, **more: Any) -> float:
        if trial.number == number and len(trial.params) == 2:
            raise SystemExit("killed")
        return plain(trial, name, *rest, **more)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Trial, "suggest_float", suggest)
        search.main(words(images, tmp_path / "killed", *given))
    search.main(words(images, tmp_path / "killed", *given))
    assert [row | {"seconds": ""} for row in rows(tmp_path / "killed")] == [
        row | {"seconds": ""} for row in rows(tmp_path / "whole")
    ]


def test_minutes_count_what_a_killed_search_had_trained(images: Path, trainings: Trainings, tmp_path: Path) -> None:
    def kill(name: str, epoch: int) -> None:
        if (name, epoch) == ("trial-001", 3):
            raise SystemExit("killed")

    trainings.during, budget = kill, ("--trials", "4", "--minutes", "3")
    with pytest.raises(SystemExit):
        search.main(words(images, tmp_path, *budget))
    trainings.during = lambda name, epoch: None
    search.main(words(images, tmp_path, *budget))
    first, second = rows(tmp_path)  # two epochs of the second took more than three minutes
    assert (first["state"], second["state"]) == ("complete", "complete")
    assert float(second["seconds"]) >= 2 * EPOCH_SECONDS


def test_a_trial_is_not_judged_while_an_orphan_is_at_it(
    images: Path,
    trainings: Trainings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def kill(name: str, epoch: int) -> None:
        if (name, epoch) == ("trial-005", 1):
            raise SystemExit("killed")

    trainings.during, given = kill, words(images, tmp_path, "--trials", "6", "--prune-after", "1")
    with pytest.raises(SystemExit):
        search.main(given)
    folder = tmp_path / "trials/005"
    with (folder / "lock").open("w") as lock, (folder / "epochs.csv").open("a", buffering=1) as log:
        fcntl.flock(lock, fcntl.LOCK_EX)

        looks = itertools.count(1)

        def looked_at(folder: Path) -> bool:
            held = is_at_work(folder)
            if held and next(looks) % 2 == 0:  # one look says that it is waited for, the next one waits
                meanwhile()
            return held

        def end() -> None:
            log.write("3,0,100\n4,0,100\n")
            lock.close()

        monkeypatch.setattr(runner, "PAUSE", 0.01)
        monkeypatch.setattr(runner, "is_at_work", looked_at)
        log.write("1,0,100\n2,0,100\n")  # worse than all others: it would be given up
        meanwhile: Callable[[], None] = partial(os.kill, os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(search.Interrupts, "_handle", lambda self, number, frame: setattr(self, "received", number))
        assert search.main(given) == 128 + signal.SIGTERM
        assert rows(tmp_path)[5]["state"] == "running" and (folder / "last.pt").exists()
        meanwhile = end
        assert search.main(given) == 0
    row = rows(tmp_path)[5]
    assert (row["state"], row["knn"], row["epochs"]) == ("complete", "0", "4")
    assert float(row["seconds"]) >= 4 * EPOCH_SECONDS and "waiting for it" in capfd.readouterr().out


def test_stopped_by_a_signal_it_goes_on_later(
    images: Path, trainings: Trainings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainings.during = lambda name, epoch: os.kill(os.getpid(), signal.SIGTERM) if name == "trial-001" else None
    assert search.main(words(images, tmp_path, "--trials", "3")) == 128 + signal.SIGTERM
    assert "the same command goes on" in capfd.readouterr().out
    assert [row["state"] for row in rows(tmp_path)] == ["complete", "running"]
    trainings.during = lambda name, epoch: None
    assert search.main(words(images, tmp_path, "--trials", "4")) == 0  # more of them
    assert [row["state"] for row in rows(tmp_path)] == ["complete"] * 4
    assert [run.name for run in trainings.runs] == [f"trial-00{i}" for i in (0, 1, 1, 2, 3)]


def test_a_signal_during_the_last_write_comes_too_late(
    images: Path,
    trainings: Trainings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    writes, plain = itertools.count(1), search.Search.write

    def write(self: search.Search) -> dict[str, Any]:
        if next(writes) == 2:  # the first is after the trial
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self)

    monkeypatch.setattr(search.Search, "write", write)
    assert search.main(words(images, tmp_path, "--trials", "1")) == 0
    assert "stopped" not in capfd.readouterr().out and next(writes) == 3


def test_a_trial_that_fails_is_counted_and_the_first_one_ends_the_search(
    images: Path, trainings: Trainings, tmp_path: Path
) -> None:
    def diverge(name: str, epoch: int) -> None:
        if name == failing:
            raise RunFailed("the loss is not a number", 1)

    trainings.during, failing = diverge, "trial-001"
    search.main(words(images, tmp_path / "second", "--trials", "3"))
    assert [row["state"] for row in rows(tmp_path / "second")] == ["complete", "fail", "complete"]
    failing = "trial-000"
    with pytest.raises(RunFailed):
        search.main(words(images, tmp_path / "first", "--trials", "3"))


def test_minutes_end_a_search_and_the_recipe_as_given_is_always_tried(
    images: Path, trainings: Trainings, tmp_path: Path
) -> None:
    search.main(words(images, tmp_path, "--minutes", "1e-9"))
    assert [row["trial"] for row in rows(tmp_path)] == ["0"]
    assert "no other was better" in load_recipe(str(tmp_path / "best.yaml")).about


def test_the_best_is_confirmed_by_other_seeds_on_images_that_have_chosen_nothing(
    images: Path, trainings: Trainings, tmp_path: Path
) -> None:
    search.main(words(images, tmp_path, "--trials", "8", "--confirm", "2", "--pruner", "none"))
    again = trainings.runs[8:]
    assert [run.config.seed for run in again] == [1, 2, 1, 2]
    assert all(run.config.val_data is None for run in again)
    report = json.loads((tmp_path / "search.json").read_text())
    assert report["confirmed"]["queries"] == "10 images of the data's validation split"
    assert report["confirmed"]["figures"] == {
        "0": [report["given"]] * 2, str(report["best_trial"]): [report["best"]] * 2,
    }  # fmt: skip
    best = f"{report['best']:.2f} ± 0.00 % (2 seeds)"
    assert f"With other seeds, {report['confirmed']['queries']}: as given" in (tmp_path / "search.md").read_text()
    assert f"at best {best}." in (tmp_path / "search.md").read_text()


def test_a_confirmation_that_fails_is_left_out_and_tried_again(
    images: Path, trainings: Trainings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def diverge(name: str, epoch: int) -> None:
        if name.startswith("000-seed") or name.endswith("seed-1"):
            raise RunFailed("the loss is not a number", 1)

    trainings.during = diverge
    given = words(images, tmp_path, "--trials", "8", "--confirm", "2", "--pruner", "none")
    assert search.main(given) == 0
    report = json.loads((tmp_path / "search.json").read_text())
    assert report["confirmed"]["figures"] == {"0": [], str(report["best_trial"]): [report["best"]]}
    said = capfd.readouterr().out
    assert "the loss is not a number" in said and "trial 0 again, seed 1: left out" in said
    assert f"as given no figure (all runs failed), at best {report['best']:.2f} % (1 seed)." in said
    trainings.during = lambda name, epoch: None
    search.main(given)
    again = json.loads((tmp_path / "search.json").read_text())["confirmed"]["figures"]
    assert list(map(len, again.values())) == [2, 2]


@pytest.mark.parametrize(("name", "split", "shown"), [
    ("my-photos", "train", "my-photos,"), ("cifar10-train", "train", "cifar10,"),
    ("stl10-unlabeled", "unlabeled", "stl10,"),
])  # fmt: skip
def test_the_header_names_the_data_without_their_split(images: Path, name: str, split: str, shown: str) -> None:
    source = open_source(str(images))
    source.name = name
    config = complete(TrainConfig(split=split, batch=8), source=name, length=len(source), world=1)
    header = search_report.Subject.of(config, source, images=len(source), queries="").header
    assert header.startswith(f"{shown} 60 images")


def test_the_help_says_what_is_the_search_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        search.main(["--help"])
    said = capsys.readouterr().out
    assert "runs/search-RECIPE" in said and "runs/DATA-METHOD" not in said and "--resume" not in said


def test_another_search_in_the_folder_is_refused(images: Path, trainings: Trainings, tmp_path: Path) -> None:
    search.main(words(images, tmp_path / "out", "--trials", "1"))
    for more, named in ((["--seed", "1"], "--seed 0, not 1"), (["--recipe", "simclr"], "another --recipe")):
        with pytest.raises(UserError, match=named):
            search.main(words(images, tmp_path / "out", "--trials", "1", *more))
    with search.alone(tmp_path / "out"), pytest.raises(UserError, match="a search is at work there"):
        search.main(words(images, tmp_path / "out", "--trials", "1"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trials", "0"], "--trials 0: this must be more than 0"),
        (["--minutes", "-1"], "--minutes -1.0: this must be more than 0"),
        (["--minutes", "nan"], "--minutes nan: this must be more than 0"),
        (["--held-out", "99999"], "--held-out 99,999: images-train has 60 images: hold out one at least"),
        (["--held-out", "60"], "--held-out 60: images-train has 60 images: hold out one at least"),
        (["--recipe", "moco-sifar"], "'moco-sifar' is not known"),
        (["--add", "fog"], "--add 'fog' is not known: choose among horizontalflip"),
        (["--pruner", "mean"], "--pruner 'mean' is not known: choose one of median"),
        (["--subset", "50", "--held-out", "20"], "50 images to train on and 20 to hold out, but it has 60"),
        (["--knn-every", "0"], "leave it out"),
        (["--val-data", "shapes", "--held-out", "5"], "leave one of them out"),
        (["--batch", "64"], "--batch 64 is larger than the data"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(images: Path, tmp_path: Path, more: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        search.main(words(images, tmp_path / "out", *more))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_images_without_labels_are_refused(images: Path, tmp_path: Path) -> None:
    for more in ([], ["--val-data", str(images)]):
        with pytest.raises(UserError, match="needs labels, and these training images have none: choose other data"):
            search.main(words(images / "train/cats", tmp_path / "out", *more))


def test_optuna_is_asked_for(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"\.\[search\]"):
        search.main(words(images, tmp_path / "out"))


# With trainings


@pytest.mark.timeout(300)
def test_two_real_trials(images: Path, tmp_path: Path) -> None:
    small = ["--trials", "2", "--epochs", "2", "--width", "8", "--size", "16", "--workers", "1", "--add", "solarize"]
    assert search.main(words(images, tmp_path / "out", *small)) == 0
    assert [row["state"] for row in rows(tmp_path / "out")] == ["complete", "complete"]
    assert all(0 <= float(row["knn"]) <= 100 and row["epochs"] == "2" for row in rows(tmp_path / "out"))
    written = tmp_path / "out/trials/001"
    assert load_recipe(str(written / "recipe.yaml")) == load_recipe(f"{written}.yaml", size=16)
    best = load_recipe(str(tmp_path / "out/best.yaml"))
    assert (best.name, best.size) == ("moco-cifar-searched", 16) and "16 px" in best.about
