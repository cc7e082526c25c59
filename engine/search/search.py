"""A search in its folder: trial after trial, then the best recipe once more with other seeds."""

from __future__ import annotations

import shlex
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.augment import load_recipe
from penstock.augment.recipes import dump_recipe
from penstock.counts import counted
from penstock.engine.config import TrainConfig
from penstock.engine.csv_log import read_csv
from penstock.engine.defaults import complete
from penstock.engine.evaluate.data import open_validation
from penstock.engine.runs import REFUSED, Run, RunFailed
from penstock.engine.search.config import Config
from penstock.engine.search.held_out import shares, write_held_out
from penstock.engine.search.report import Confirmed, Subject, gather, write_report
from penstock.engine.search.runner import Runner
from penstock.engine.search.space import space_of
from penstock.engine.search.study import Judge, check_same, next_trial, open_study, pruner_of, settings_of, suggest
from penstock.engine.systems.table import last_knn
from penstock.files import write_whole
from penstock.loaders import open_source

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial, TrialState

TRIALS = 20


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
        recipe = load_recipe(completed.recipe, size=completed.size)
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
        settings = settings_of(self.config, held_out=self.held_out, recipe=self.space.recipe)
        check_same(self.study, settings, self.out)
        if not self.study.trials:
            self.study.enqueue_trial(self.space.own)
        if self.held_out and not self.shard.exists():
            write_held_out(self.config, self.source, self.images, self.held_out, self.shard)

    def try_recipes(self, runner: Runner) -> bool:
        """Trials, as far as the budget reaches. Returns False where it was stopped."""
        shown = runner.progress.add_task("trials", total=self.most)
        while self._may_go_on():
            trial = next_trial(self.study)
            runner.progress.update(shown, completed=trial.number)
            if not self._try(trial, runner):
                return False
            runner.say(self._said(trial.number))
            self.write()
        runner.progress.update(shown, completed=len(self.study.trials))
        return True

    def _may_go_on(self) -> bool:
        over = [trial for trial in self.study.trials if trial.state.is_finished()]
        minutes = sum(trial.user_attrs.get("seconds", 0.0) for trial in over) / 60  # one in hand is begun already
        in_time = self.config.minutes is None or not over or minutes < self.config.minutes
        return in_time and (self.most is None or len(over) < self.most)

    def _try(self, trial: Trial, runner: Runner) -> bool:
        """Train by a trial's recipe and tell Optuna how good it is. Returns False where it was stopped."""
        from optuna.trial import TrialState

        run, folder = self._run(trial)
        if not runner.is_free(run, folder):
            return False
        # The log has what a search that was killed could not note, and what its orphan did without it
        before, began = max(trial.user_attrs.get("seconds", 0.0), logged_seconds(folder)), time.perf_counter()
        state = self._outcome(trial, run, folder, runner)
        trial.set_user_attr("seconds", before + time.perf_counter() - began)
        if state == TrialState.RUNNING:
            return False
        self.study.tell(trial, last_knn(folder) if state == TrialState.COMPLETE else None, state=state)
        (folder / "last.pt").unlink(missing_ok=True)  # a search has many, and nobody goes on with them
        return True

    def _run(self, trial: Trial) -> tuple[Run, Path]:
        """A trial's training and its folder; its recipe is written beside that."""
        values = suggest(trial, self.space.knobs, self.config.seed)
        path = self._recipe(trial.number)
        path.parent.mkdir(exist_ok=True)
        write_whole(path, lambda partial: partial.write_text(dump_recipe(self.space.recipe_of(values))))
        run = Run(name=f"trial-{path.stem}", config=replace(self.training, recipe=str(path)))
        return run, path.with_suffix("")

    def _outcome(self, trial: Trial, run: Run, folder: Path, runner: Runner) -> TrialState:
        """Train a trial as far as it gets."""
        from optuna.trial import TrialState

        judge = Judge(trial, folder, self.epochs)
        try:
            finished = runner.train(run, folder, judge)
        except RunFailed as error:
            if trial.number == 0 or error.code == REFUSED:  # it is not the recipe
                raise
            runner.say(str(error))
            return TrialState.FAIL
        judge.look()  # again: where nothing was left to train, nobody has looked
        return TrialState.COMPLETE if finished else TrialState.PRUNED if judge.lags else TrialState.RUNNING

    def _recipe(self, number: int) -> Path:
        return self.out / "trials" / f"{number:03d}.yaml"

    def _said(self, number: int) -> str:
        """A trial that is over, as a line."""
        trial, best = self.study.trials[number], self.study.best_trial
        outcome = "failed" if trial.value is None else f"kNN {trial.value:.2f} %"
        early = f", given up after {counted(trial.last_step or 0, 'epoch')}" if trial.state.name == "PRUNED" else ""
        seconds = trial.user_attrs["seconds"]
        return f"trial {number}: {outcome}{early}, {seconds:.0f} s; best: {best.value:.2f} % (trial {best.number})"

    def confirm(self, runner: Runner) -> bool:
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
                    knn = self._again(Run(name=f"{number:03d}-seed-{seed}", config=config), runner)
                except RunFailed as error:
                    if error.code == REFUSED:
                        raise
                    runner.say(f"{error}\ntrial {number} again, seed {seed}: left out")
                    continue
                if knn is None:
                    return False
                found.append(knn)
                runner.say(f"trial {number} again, seed {seed}: kNN {knn:.2f} %")
        self.confirmed = Confirmed(queries=queries, figures=figures)
        return True

    def _again(self, run: Run, runner: Runner) -> float | None:
        """The kNN accuracy of a confirming run, per cent; None where it was stopped."""
        folder = self.out / "confirm" / run.name
        if not runner.is_free(run, folder) or not runner.train(run, folder):
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


def logged_seconds(folder: Path) -> float:
    """What a run's epochs took, as it has logged them: training and evaluations."""
    rows = read_csv(folder / "epochs.csv")
    return sum(value for row in rows for name, value in row.items() if name.endswith("_seconds"))
