"""Search for a better augmentation: a recipe's probabilities and strengths, by kNN after a short training.

    python engine/search.py --trials 10                                  # on the embedded images
    python engine/search.py --data cifar10 --recipe moco-cifar --add solarize clahe --trials 60 --minutes 600 \\
        --subset 10000 --epochs 20 --width 16 --batch 128 --confirm 3 --out runs/search
    python engine/train.py --data cifar10 --recipe runs/search/best.yaml

It takes every setting of engine/train.py and gives it to each trial. `search_space.py` says what is searched. Trial 0
is the recipe as it stands, so that a gain is one in the same conditions; all trials have the same seed: the same first
weights, the same order of images. Optuna's TPE (Bergstra et al. 2011) chooses the values, and trials that lag behind
are given up.

Stopped (Ctrl-C, SIGTERM) or killed, the same command goes on: no trial that is over is repeated, and the one in hand
continues. With more --trials or --minutes it goes on, too.

    OUT/best.yaml      the best recipe, to train with
    OUT/search.md      what came of it (.json: every figure; .png: its picture)
    OUT/trials.csv     a line for each trial
    OUT/trials/NNN     a trial's run, and its recipe (NNN.yaml)
    OUT/study.log      Optuna's journal

Trials are scored by training images that are held out of all of them (or by --val-data), not by the test set. Even so
the best of many is partly the luckiest: --confirm trains it and the recipe as given anew, with other seeds, and has
both judged by the data's validation split where there is one, which has chosen nothing.

Faster AutoAugment (Hataya et al. 2020, arXiv 1911.06987), which the authors of the MoCo v1 study with
`albumentations-7` name as the way to a better list, is another method: it learns a policy by gradients through relaxed
operations, so that augmented images match the density of plain ones, with a critic and a classifier that need labels.
Here the training is a black box. That costs a training a trial, but asks neither operations that have gradients nor
that augmented images look like plain ones, which contrastive views need not, and scores what is wanted: features.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import fcntl
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress
from tyro.conf import DisallowNone, Suppress

from penstock.augment import load_recipe
from penstock.augment.recipes import dump_recipe
from penstock.engine.config import TrainConfig, flag, to_dict
from penstock.engine.csv_log import read_csv
from penstock.engine.defaults import check_choices, complete
from penstock.engine.evaluate.data import labelled, open_validation
from penstock.engine.runs import OWN, PAUSE, Place, Run, RunFailed, carry_out, is_at_work
from penstock.engine.search_report import Confirmed, Subject, gather, summary, write_report
from penstock.engine.search_space import space_of
from penstock.engine.signals import Interrupts
from penstock.engine.systems.table import last_knn
from penstock.errors import MissingExtra, UserError, run_command
from penstock.files import write_whole
from penstock.loaders import Source, Subset, open_source
from penstock.loaders.convert import convert
from penstock.loaders.sources import UNLABELLED

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.study import Study
    from optuna.trial import Trial, TrialState

TRIALS = 20
HELD_OUT = 5000  # images, a fifth of smaller sets: their kNN accuracy then has a standard error of up to .7 points
RANDOM_TRIALS = 8  # before TPE has enough to go by
UNPRUNED_TRIALS = 4  # finished ones that the others are compared with
PRUNERS = ("median", "asha", "none")
REFUSED = 2  # the exit code of a run that was given what cannot work
BUDGET = ("trials", "minutes", "confirm")  # may be more when a search goes on


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Search for a better recipe. Besides every setting of a training:"""

    # Search
    trials: int | None = None
    """Recipes to try, the one given among them; default: 20, or as many as --minutes allow."""
    minutes: float | None = None
    """Begin no trial after so many minutes, those before an interruption counted."""
    add: tuple[str, ...] = ()
    """Operations that may be added behind the recipe's, in this order: solarize clahe randombrightnesscontrast …"""
    held_out: int | None = None
    """Training images to score by, which no trial trains on; default: 5,000, or a fifth of the data. With --val-data:
    none, its images score."""
    pruner: str = "median"
    """Give up a trial: median (once it is worse than half of those before it were at that epoch), asha (unless it is
    among the best third), or none."""
    prune_after: int | None = None
    """Epochs that every trial is given; default: a third of the run."""
    confirm: int = 0
    """Train the best recipe, and the one given, anew with so many other seeds each; not counted by --minutes."""

    # As a training's, but of another meaning
    out: Path | None = None
    """Where all of it goes; default: runs/search-RECIPE, where the same command goes on."""
    resume: Suppress[str | None] = None
    """No option here: a search goes on by the same command."""


def main(arguments: list[str] | None = None) -> int:
    config = tyro.cli(Config, args=arguments, config=(DisallowNone,), description=__doc__)
    check(config)
    search = Search(config, command=["python", "engine/search.py", *(sys.argv[1:] if arguments is None else arguments)])
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with alone(search.out), Interrupts() as interrupts:
        search.begin()
        console.print(search.subject.header, soft_wrap=True)
        with Progress(console=console, disable=not console.is_terminal) as progress:
            done = search.try_recipes(interrupts, progress) and search.confirm(interrupts, progress)
        report = search.write()
    if report:
        console.print(summary(report), soft_wrap=True)
    if not done:
        console.print("stopped; the same command goes on")
    return 128 + interrupts.received if interrupts.received else 0


def check(config: Config) -> None:
    """Raises UserError for what can be seen to be wrong before any data are opened."""
    check_choices(config)
    for name in ("trials", "minutes", "held_out", "prune_after"):
        if (value := getattr(config, name)) is not None and value <= 0:
            raise UserError(f"{flag(name)} {value}: this must be more than 0")
    if config.confirm < 0:
        raise UserError(f"--confirm {config.confirm}: this must be 0 or more")
    if config.pruner not in PRUNERS:
        raise UserError(f"--pruner {config.pruner!r} is not known: choose one of {', '.join(PRUNERS)}")
    if config.knn_every == 0:
        raise UserError("--knn-every 0: kNN is what a search goes by: leave it out")
    if config.val_data is not None and config.held_out is not None:
        raise UserError("--held-out is not needed with --val-data, whose images score: leave one of them out")
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingExtra("optuna", "search") from error


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the search's folder. Raises UserError where another process does, or it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / "lock").open("w")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}): choose another --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {out}: a search is at work there: wait for it, or choose another --out") from None
        yield


class Search:
    """A search in its folder.

    Attributes:
        out: the folder; shard: the held-out images in it.
        images, held_out: how many are trained on, and score; none are held out with --val-data.
        space: what is searched.
        most: trials; None: as many as the minutes allow.
        training: what each trial is trained with, but for its recipe.
        subject: what it is a search on, for people.
        study: Optuna's; there after `begin`.
    """

    study: Study

    def __init__(self, config: Config, *, command: list[str]) -> None:
        self.config, self.command = config, command
        self.most = config.trials or (None if config.minutes else TRIALS)
        self.source = open_source(config.data, config.split, class_list=config.class_list)
        self.images, self.held_out = shares(config, self.source)
        training = TrainConfig(**{field.name: getattr(config, field.name) for field in fields(TrainConfig)})
        completed = complete(training, source=self.source.name, length=self.images, world=1)
        recipe = load_recipe(completed.recipe)
        self.space = space_of(recipe, config.add)
        self.out = (config.out or Path("runs") / f"search-{recipe.name.replace('/', '_')}").resolve()
        self.shard, self.epochs = self.out / "held-out.beton", completed.epochs
        self.training = replace(
            training,
            out=None,
            subset=self.images if self.images < len(self.source) else None,
            val_data=str(self.shard) if self.held_out else config.val_data,
            epochs=self.epochs,
            knn_every=config.knn_every or 1,
        )
        queries = f"{self.held_out:,} held-out training images" if self.held_out else str(config.val_data)
        self.subject = Subject.of(completed, self.source, images=self.images, queries=queries)
        self.confirmed: Confirmed | None = None

    def begin(self) -> None:
        """Open the study, new or as it was left, and write the held-out images if they are not there.

        Raises:
            UserError: another search lies in the folder.
        """
        self.study = open_study(self.out, pruner_of(self.config, self.epochs))
        check_same(self.study, self.settings(), self.out)
        if not self.study.trials:
            self.study.enqueue_trial(self.space.own)
        if self.held_out and not self.shard.exists():
            write_held_out(self.config, self.source, self.images, self.held_out, self.shard)

    def settings(self) -> dict[str, Any]:
        """What makes a search the search it is, as plain values."""
        default, given = to_dict(Config()), to_dict(self.config)
        own = {name: value for name, value in given.items() if value != default[name] and name not in (*OWN, *BUDGET)}
        return own | {"held_out": self.held_out, "recipe": dump_recipe(self.space.recipe)}

    def try_recipes(self, interrupts: Interrupts, progress: Progress) -> bool:
        """Trials, as far as the budget reaches. Returns False where it was stopped."""
        shown = progress.add_task("trials", total=self.most)
        while self._may_go_on():
            trial = self._trial()
            progress.update(shown, completed=trial.number)
            if not self._try(trial, interrupts, progress):
                return False
            progress.console.print(self._said(trial.number), soft_wrap=True)
            self.write()
        progress.update(shown, completed=len(self.study.trials))
        return True

    def _may_go_on(self) -> bool:
        over = [trial for trial in self.study.trials if trial.state.is_finished()]
        minutes = sum(trial.user_attrs.get("seconds", 0.0) for trial in over) / 60  # one in hand is begun already
        in_time = self.config.minutes is None or not over or minutes < self.config.minutes
        return in_time and (self.most is None or len(over) < self.most)

    def _trial(self) -> Trial:
        """The one that was in hand when the search was killed or stopped, else the next one.

        The sampler's seed is of the trial, not of the process: stopping changes nothing in what is tried.
        """
        from optuna.samplers import TPESampler
        from optuna.trial import Trial, TrialState

        number = len(self.study.trials)
        seed = int(np.random.SeedSequence([self.config.seed, number]).generate_state(1)[0])
        self.study.sampler = TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)
        for begun in self.study.get_trials(states=(TrialState.RUNNING,)):
            return Trial(self.study, begun._trial_id)
        return self.study.ask()

    def _try(self, trial: Trial, interrupts: Interrupts, progress: Progress) -> bool:
        """Train by a trial's recipe and tell Optuna how good it is. Returns False where it was stopped."""
        from optuna.trial import TrialState

        run, folder = self._run(trial)
        if not self._is_free(run, folder, interrupts, progress):
            return False
        # The log has what a search that was killed could not note, and what its orphan did without it
        before, began = max(trial.user_attrs.get("seconds", 0.0), logged_seconds(folder)), time.perf_counter()
        state = self._outcome(trial, run, folder, interrupts, progress)
        trial.set_user_attr("seconds", before + time.perf_counter() - began)
        if state == TrialState.RUNNING:
            return False
        self.study.tell(trial, last_knn(folder) if state == TrialState.COMPLETE else None, state=state)
        (folder / "last.pt").unlink(missing_ok=True)  # a search has many, and nobody goes on with them
        return True

    def _run(self, trial: Trial) -> tuple[Run, Path]:
        """A trial's training and its folder; its recipe is written beside that."""
        knobs = self.space.knobs
        values = {name: trial.suggest_float(name, knob.low, knob.high, log=knob.log) for name, knob in knobs.items()}
        path = self._recipe(trial.number)
        path.parent.mkdir(exist_ok=True)
        write_whole(path, lambda partial: partial.write_text(dump_recipe(self.space.recipe_of(values))))
        run = Run(name=f"trial-{path.stem}", config=replace(self.training, recipe=str(path)))
        return run, path.with_suffix("")

    def _is_free(self, run: Run, folder: Path, interrupts: Interrupts, progress: Progress) -> bool:
        """Wait for a training that outlived the search that began it, which nobody can stop, nor judge, any more.

        Returns False where the search was stopped meanwhile.
        """
        if is_at_work(folder):
            progress.console.print(f"{run.name}: an earlier search's process is still at it: waiting for it")
        while is_at_work(folder) and not interrupts.received:
            time.sleep(PAUSE)
        return not interrupts.received

    def _outcome(self, trial: Trial, run: Run, folder: Path, interrupts: Interrupts, progress: Progress) -> TrialState:
        """Train a trial as far as it gets."""
        from optuna.trial import TrialState

        judge = Judge(trial, folder, self.epochs)
        try:
            finished = self._train(run, folder, interrupts, progress, judge)
        except RunFailed as error:
            if trial.number == 0 or error.code == REFUSED:  # it is not the recipe
                raise
            progress.console.print(str(error), soft_wrap=True)
            return TrialState.FAIL
        judge.look()  # again: where nothing was left to train, nobody has looked
        return TrialState.COMPLETE if finished else TrialState.PRUNED if judge.lags else TrialState.RUNNING

    def _train(
        self, run: Run, folder: Path, interrupts: Interrupts, progress: Progress, judge: Judge | None = None
    ) -> bool:
        """Returns whether it was trained to its end."""
        stop, shown = Event(), progress.add_task(run.name, total=self.epochs)

        def watch(epochs: int) -> None:
            progress.update(shown, completed=epochs)
            if judge is not None:
                judge.look()
            if interrupts.received or (judge is not None and judge.lags):
                stop.set()

        try:
            place = Place(workers=self.config.workers)
            return carry_out(run, folder, place=place, stop=stop, watch=watch)
        finally:
            progress.remove_task(shown)

    def _recipe(self, number: int) -> Path:
        return self.out / "trials" / f"{number:03d}.yaml"

    def _said(self, number: int) -> str:
        """A trial that is over, as a line."""
        trial, best = self.study.trials[number], self.study.best_trial
        outcome = "failed" if trial.value is None else f"kNN {trial.value:.2f} %"
        early = f", given up after {trial.last_step} epochs" if trial.state.name == "PRUNED" else ""
        seconds = trial.user_attrs["seconds"]
        return f"trial {number}: {outcome}{early}, {seconds:.0f} s; best: {best.value:.2f} % (trial {best.number})"

    def confirm(self, interrupts: Interrupts, progress: Progress) -> bool:
        """The recipe as given and the best one, with other seeds. Returns False where it was stopped."""
        if not self.config.confirm:
            return True
        own = open_validation(self.config.data, val_data=None, class_list=self.config.class_list)
        training = self.training if own is None else replace(self.training, val_data=None)
        queries = self.subject.queries if own is None else f"{len(own):,} images of the data's validation split"
        figures: dict[int, list[float]] = {number: [] for number in (0, self.study.best_trial.number)}
        for number, found in figures.items():
            for seed in range(self.config.seed + 1, self.config.seed + 1 + self.config.confirm):
                config = replace(training, recipe=str(self._recipe(number)), seed=seed)
                try:
                    knn = self._again(Run(name=f"{number:03d}-seed-{seed}", config=config), interrupts, progress)
                except RunFailed as error:
                    if error.code == REFUSED:
                        raise
                    progress.console.print(f"{error}\ntrial {number} again, seed {seed}: left out", soft_wrap=True)
                    continue
                if knn is None:
                    return False
                found.append(knn)
                progress.console.print(f"trial {number} again, seed {seed}: kNN {knn:.2f} %")
        self.confirmed = Confirmed(queries=queries, figures=figures)
        return True

    def _again(self, run: Run, interrupts: Interrupts, progress: Progress) -> float | None:
        """The kNN accuracy of a confirming run, per cent; None where it was stopped."""
        folder = self.out / "confirm" / run.name
        if not self._is_free(run, folder, interrupts, progress) or not self._train(run, folder, interrupts, progress):
            return None
        (folder / "last.pt").unlink(missing_ok=True)
        if (knn := last_knn(folder)) is None:
            raise RunFailed(f"{folder}: its epochs.csv has no kNN figure", 1)
        return knn

    def write(self) -> dict[str, Any]:
        """Write what there is so far; returns it. Nothing, before the first trial is over."""
        from optuna.trial import TrialState

        if not self.study.get_trials(states=(TrialState.COMPLETE,)):
            return {}
        report = gather(self.study, self.space, self.subject, self.confirmed)
        write_report(report, self.space, self.out, command=shlex.join(self.command))
        return report


class Judge:
    """Tells Optuna a trial's kNN accuracy as it trains.

    Attributes:
        lags: whether the trial was given up.
    """

    def __init__(self, trial: Trial, folder: Path, epochs: int) -> None:
        self.trial, self.folder, self.epochs = trial, folder, epochs
        self.reported = set(trial.study.trials[trial.number].intermediate_values)
        self.lags = False

    def look(self) -> None:
        """Report epochs that are over; the first trial, and one that has come to its last epoch, are not given up."""
        rows = {int(row["epoch"]): row["knn"] for row in read_csv(self.folder / "epochs.csv") if "knn" in row}
        for epoch in sorted(rows.keys() - self.reported - {0}):  # 0: the untrained network
            self.trial.report(rows[epoch], epoch)
            self.reported.add(epoch)
            self.lags = self.trial.number > 0 and epoch < self.epochs and self.trial.should_prune()


def logged_seconds(folder: Path) -> float:
    """What a run's epochs took, as it has logged them: training and evaluations."""
    rows = read_csv(folder / "epochs.csv")
    return sum(value for row in rows for name, value in row.items() if name.endswith("_seconds"))


def shares(config: Config, source: Source) -> tuple[int, int]:
    """How many images are trained on, and how many held out.

    Raises:
        UserError: no labels, or not enough images.
    """
    if config.val_data is not None:
        queries = open_validation(config.data, val_data=config.val_data, class_list=config.class_list)
        if not len(labelled(source)) or queries is None or not len(queries):
            raise UserError(f"--data {config.data}, --val-data {config.val_data}: kNN, the score, needs labels of both")
        return config.subset or len(source), 0
    if config.split != "train":
        raise UserError(
            f"--split {config.split}: without labels, none of it can be held out: name labelled images with --val-data"
        )
    if (source.labels == UNLABELLED).any():
        raise UserError(
            f"--data {config.data}: kNN, the score, needs labels, and not all of these images have one: choose other"
            " data, or name labelled images of the same classes with --val-data"
        )
    held_out = config.held_out or min(HELD_OUT, len(source) // 5)
    images = config.subset or len(source) - held_out
    if not 0 < held_out <= len(source) - images or images < 1:
        raise UserError(
            f"{source.name}: {images:,} images to train on and {held_out:,} to hold out, but it has {len(source):,}:"
            " use a smaller --subset or --held-out"
        )
    return images, held_out


def write_held_out(config: Config, source: Source, images: int, held_out: int, path: Path) -> None:
    """A shard of training images, of all classes alike, that are not among the `images` trained on."""

    def chosen(limit: int) -> Any:
        cut = open_source(config.data, config.split, class_list=config.class_list, limit=limit)
        assert isinstance(cut, Subset)
        return cut.indices

    outside = np.setdiff1d(chosen(images + held_out), chosen(images))  # a smaller choice lies within a larger one
    convert(Subset(source, outside), path, workers=config.workers, on_error=config.on_error, progress=False)


def open_study(out: Path, pruner: BasePruner) -> Study:
    """Optuna's study in a folder, new or as it was left."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(out / "study.log")))
    return optuna.create_study(
        study_name="search", storage=storage, direction="maximize", pruner=pruner, load_if_exists=True
    )


def pruner_of(config: Config, epochs: int) -> BasePruner:
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    first = config.prune_after or max(1, epochs // 3)
    match config.pruner:
        case "median":
            return MedianPruner(n_startup_trials=UNPRUNED_TRIALS, n_warmup_steps=first)
        case "asha":
            return SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)
    return NopPruner()


def check_same(study: Study, settings: dict[str, Any], out: Path) -> None:
    """Raises UserError where a search with other settings lies in the folder."""
    was = study.user_attrs.get("settings")
    if was is None:
        study.set_user_attr("settings", settings)
        return
    default = to_dict(Config())
    for name in sorted(was.keys() | settings.keys()):
        before, asked = was.get(name, default[name]), settings.get(name, default[name])
        if before != asked:
            difference = "another --recipe" if name == "recipe" else f"{flag(name)} {before}, not {asked}"
            raise UserError(f"--out {out}: the search there was begun with {difference}: choose another --out")


if __name__ == "__main__":
    run_command(main)
