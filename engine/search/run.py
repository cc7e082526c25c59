"""Search for a better augmentation: a recipe's probabilities and strengths, by kNN after a short training.

    python engine/search/run.py --trials 10                              # on the embedded images
    python engine/search/run.py --data cifar10 --recipe moco-cifar --add solarize clahe --trials 60 --minutes 600 \\
        --subset 10000 --epochs 20 --width 16 --batch 128 --confirm 3 --out runs/search
    python engine/train.py --data cifar10 --recipe runs/search/best.yaml

It takes every setting of engine/train.py and gives it to each trial. `space.py` says what is searched. Trial 0 is the
recipe as it stands, so that a gain is one in the same conditions; all trials have the same seed: the same first
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
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import fcntl
import math
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from penstock.engine.config import flag
from penstock.engine.defaults import check_choices
from penstock.engine.runs import Place
from penstock.engine.search.config import Config
from penstock.engine.search.report import summary
from penstock.engine.search.runner import Runner
from penstock.engine.search.search import Search
from penstock.engine.search.study import PRUNERS
from penstock.engine.signals import Interrupts
from penstock.errors import MissingExtra, UserError, run_command
from penstock.options import read_options


def main(arguments: list[str] | None = None) -> int:
    config = read_options(Config, __doc__, arguments)
    check(config)
    words = sys.argv[1:] if arguments is None else arguments
    search = Search(config, command=["python", "engine/search/run.py", *words])
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with alone(search.out), Interrupts() as interrupts:
        search.begin()
        console.print(search.subject.header, soft_wrap=True)
        with Progress(console=console, disable=not console.is_terminal, speed_estimate_period=math.inf) as progress:
            runner = Runner(search.epochs, Place(workers=config.workers), interrupts, progress)
            done = search.try_recipes(runner) and search.confirm(runner)
        report = search.write()
    if report:
        console.print(summary(report), soft_wrap=True)
    if not done:
        console.print("stopped; the same command goes on")
    return 0 if done else 128 + interrupts.received


def check(config: Config) -> None:
    """Raises UserError for what can be seen to be wrong before any data are opened."""
    check_choices(config)
    for name in ("trials", "minutes", "held_out", "prune_after"):
        if (value := getattr(config, name)) is not None and not value > 0:  # nan is not, either
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


if __name__ == "__main__":
    run_command(main)
