"""Optuna's part: the study in a search's folder, the next trial, and when one is given up.

Optuna is imported where it is used: everything else of the package can be imported without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.augment import Recipe
from penstock.augment.recipes import dump_recipe
from penstock.engine.config import flag, to_dict
from penstock.engine.csv_log import read_csv
from penstock.engine.runs import OWN
from penstock.engine.search.config import Config
from penstock.engine.search.space import Knob
from penstock.errors import UserError

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.study import Study
    from optuna.trial import Trial

RANDOM_TRIALS = 8  # before TPE has enough to go by
UNPRUNED_TRIALS = 4  # finished ones that the others are compared with
PRUNERS = ("median", "asha", "none")
BUDGET = ("trials", "minutes", "confirm")  # may be more when a search goes on


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
    """What gives up trials of so many epochs."""
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    first = config.prune_after or max(1, epochs // 3)
    match config.pruner:
        case "median":
            return MedianPruner(n_startup_trials=UNPRUNED_TRIALS, n_warmup_steps=first)
        case "asha":
            return SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)
    return NopPruner()


def settings_of(config: Config, *, held_out: int, recipe: Recipe) -> dict[str, Any]:
    """What makes a search the search it is, as plain values."""
    default, given = to_dict(Config()), to_dict(config)
    own = {name: value for name, value in given.items() if value != default[name] and name not in (*OWN, *BUDGET)}
    return own | {"held_out": held_out, "recipe": dump_recipe(recipe)}


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


def next_trial(study: Study) -> Trial:
    """The one that was in hand when the search was killed or stopped, else the next one."""
    from optuna.trial import Trial, TrialState

    for begun in study.get_trials(states=(TrialState.RUNNING,)):
        return Trial(study, begun._trial_id)
    return study.ask()


def suggest(trial: Trial, knobs: Mapping[str, Knob], seed: int) -> dict[str, float]:
    """A trial's values: those that it has, and the others.

    Seeds are of the trial, not of the process: whenever a search is killed, also between two values, nothing changes in
    what is tried. TPE draws all values of a trial together; before it begins they are drawn one by one, each by a seed
    of its own.
    """
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    over = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    together, values = len(over) >= RANDOM_TRIALS, {}
    for i, (name, knob) in enumerate(knobs.items()):
        own = int(np.random.SeedSequence([seed, trial.number, 0 if together else i]).generate_state(1)[0])
        trial.study.sampler = TPESampler(n_startup_trials=RANDOM_TRIALS, seed=own)
        values[name] = trial.suggest_float(name, knob.low, knob.high, log=knob.log)
    return values


class Judge:
    """Tells Optuna a trial's kNN accuracy as it trains.

    Attributes:
        lags: whether the trial is given up, whatever it logs after that.
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
            may_end = self.trial.number > 0 and epoch < self.epochs
            self.lags = self.lags or (may_end and self.trial.should_prune())
