"""Train a self-supervised method.

    python engine/train.py                                      # the embedded images, a few minutes on two CPU cores
    python engine/train.py --loader dali --data path/to/images --arch resnet50
    python engine/train.py --resume runs/NAME/last.pt           # go on after an interruption
    torchrun --nproc-per-node 8 engine/train.py --data imagenet

Logs, checkpoints, recipe.yaml and report.html go to the folder --out. What is left out takes the data's own value where
they have one (shapes, CIFAR, STL-10), else the method's: OUT/config.json says what it came to.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import dataclasses
from contextlib import closing
from typing import Any

import torch
import yaml

from penstock.augment import Recipe, load_recipe
from penstock.augment.executors import split_names
from penstock.augment.recipes import dump_recipe, parse_recipe
from penstock.counts import counted
from penstock.engine.backbones import count_features
from penstock.engine.checkpoint import Position, check_same_run, load_checkpoint
from penstock.engine.config import CompleteConfig, TrainConfig, from_dict
from penstock.engine.csv_log import read_csv
from penstock.engine.data import build_evaluation, build_loader, share_cpus
from penstock.engine.defaults import check_choices, complete
from penstock.engine.distributed import Team, join
from penstock.engine.evaluate.data import labelled
from penstock.engine.folder import choose_folder, resume_command, write_about
from penstock.engine.logs import RunLog
from penstock.engine.loop import Diverged, Trainer
from penstock.engine.methods import build_method, check_views
from penstock.engine.precision import check_precision, choose_precision
from penstock.engine.report import results
from penstock.engine.runs import make_folder
from penstock.engine.screen import FOUND
from penstock.engine.signals import Interrupts
from penstock.errors import UserError, run_command
from penstock.loaders import Source, open_source
from penstock.loaders.make import check_executor, check_name, check_speed
from penstock.options import read_options

State = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    config, state = parse(arguments)
    check_choices(config)
    check_name(config.loader)
    check_executor(config.loader, config.executor, split_names(config.fallback))
    if config.recipe is not None and saved_recipe(config, state) is None:
        load_recipe(config.recipe, size=config.size)
    team = join(config.device)
    try:
        check_speed(config.executor, team.device)
        return train(config, state, team)
    except Diverged as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 1
    finally:
        team.leave()


def parse(arguments: list[str] | None = None) -> tuple[TrainConfig, State | None]:
    """The settings, and the checkpoint to go on from. Its settings hold where none are given beside --resume."""
    config = read_options(TrainConfig, __doc__, arguments)
    if config.resume is None:
        return config, None
    if config.resume == "auto" and config.out is None:
        raise UserError("--resume auto looks for OUT/last.pt: give --out too, or --resume PATH")
    path = config.out if config.resume == "auto" and config.out else Path(config.resume)
    path = path / "last.pt" if path.is_dir() or config.resume == "auto" else path
    if config.resume == "auto" and not path.exists():
        return config, None
    state = load_checkpoint(path)
    if "config" not in state:
        raise UserError(
            f"--resume {path}: this is no checkpoint of a pre-training run: name a run's folder, or its last.pt"
        )
    saved = from_dict(state["config"])
    default = dataclasses.replace(saved, out=path.parent, resume=None)
    config = read_options(TrainConfig, __doc__, arguments, default=default)
    if config.stem == "auto":  # which the run has settled
        config = dataclasses.replace(config, stem=saved.stem)
    check_same_run(path, saved, config)
    return config, state


def train(given: TrainConfig, state: State | None, team: Team) -> int:
    """One run, from its data to its report. Returns the exit code."""
    share_cpus(team)
    check_together(team, given, state)
    if state is not None:
        given = keep_parts(given, state, team.world)
    source = open_source(given.data, given.split, class_list=given.class_list, limit=given.subset)
    config = complete(given, source=source.name, length=len(source), world=team.world)
    recipe = choose_recipe(config, state)
    precision = choose_precision(config.amp, team.device)
    begun = dataclasses.replace(config, init=None) if state else config  # the checkpoint holds what --init brought
    method = build_method(begun, team)
    check_views(config, method, recipe)
    count_features(method.encoder.backbone, config.arch, recipe.smallest)  # or say that it takes no such views
    precision = check_precision(precision, config.amp, method.encoder.backbone, recipe.smallest)
    if state is not None and state["samples"] != len(source):
        was = f"{state['samples']:,} images, and {config.data} now has {len(source):,}"
        raise UserError(f"--resume: this run was trained on {was}: bring them back, or start anew with --init")
    if state is not None and state["position"]["epoch"] > config.epochs:
        done = counted(state["position"]["epoch"], "epoch")
        raise UserError(f"--resume: this run has {done} behind it, --epochs {config.epochs} is fewer: ask for more")
    out = choose_folder(config, source, resumed=state is not None) if team.leads else Path()
    config = dataclasses.replace(config, out=out)
    torch.backends.cudnn.benchmark = True  # batches have few shapes: let it find the fastest kernels
    with (
        build_loader(config, source, recipe, team, precision) as loader,
        closing(
            Trainer(config, recipe=recipe, method=method, loader=loader, team=team, precision=precision, out=out)
        ) as trainer,
    ):
        if state is not None:
            trainer.load_state_dict(state)
        if team.leads:
            trainer.evaluation = build_evaluation(config, source, recipe, team)
            make_folder(out)  # now that nothing is left to refuse
            (out / "recipe.yaml").write_text(dump_recipe(recipe))
            about = write_about(out, config, source, loader=loader, method=method, precision=precision)
            print(f"{about['network']}, {about['precision']}, on {about['source']}\n{about['recipe']}", flush=True)
            if state is not None and has_changed(config, recipe):
                print(f"{config.recipe} has changed: this run keeps {out / 'recipe.yaml'}, as it began", flush=True)
            if state is not None:
                print(where(trainer.position, config.epochs), flush=True)
            trainer.log = start_log(trainer, source, recipe, resumed=state is not None)
        with Interrupts(alone=team.world == 1, speaks=team.leads) as trainer.interrupts:
            signal = trainer.fit()
    if team.leads:
        print(summary(out, signal), flush=True)
    return 128 + signal if signal else 0


def check_together(team: Team, given: TrainConfig, state: State | None) -> None:
    """Raises UserError where this rank would go on from elsewhere than rank 0, whose disk holds another checkpoint."""
    mine = state and state["position"]
    if (first := team.of_leader(mine)) != mine:
        raise UserError(
            f"--resume {given.resume}: rank 0 finds {_place(first)} in its folder, and rank {team.rank}"
            f" {_place(mine)} in its own: put --out on a disk that all machines share"
        )


def _place(position: dict[str, int] | None) -> str:
    return f"a checkpoint of step {position['step']}" if position else "no checkpoint"


def keep_parts(given: TrainConfig, state: State, world: int) -> TrainConfig:
    """Parts of all ranks' batch that BatchNorm treats apart stay what they were: two ranks of one each become two."""
    splits = given.bn_splits
    if splits is None or splits != state["config"]["bn_splits"] or given.sync_bn:
        return given
    return dataclasses.replace(given, bn_splits=max(1, splits * state.get("world", 1) // world))


def choose_recipe(config: CompleteConfig, state: State | None) -> Recipe:
    """What is done to the images, at the run's size. A resumed run keeps its own, whatever has become of its file."""
    saved = saved_recipe(config, state)
    return at_size(config, saved or load_recipe(config.recipe))


def at_size(config: CompleteConfig, recipe: Recipe) -> Recipe:
    """The recipe at the run's size, or growing to it where the run begins with smaller views."""
    resized = recipe.resized(config.size)
    return resized.growing(config.first_size, most=config.epochs) if config.first_size else resized


def saved_recipe(config: TrainConfig, state: State | None) -> Recipe | None:
    """The checkpoint's, if the run goes on with it."""
    if state is None or state["config"]["recipe"] != config.recipe:
        return None
    return parse_recipe(yaml.safe_load(state["recipe"]))


def has_changed(config: CompleteConfig, recipe: Recipe) -> bool:
    """Whether a recipe's name, or its file, stands for another one than the run began with."""
    try:
        return at_size(config, load_recipe(config.recipe)) != recipe
    except UserError:  # the file is gone, or holds no recipe any more
        return True


def where(position: Position, epochs: int) -> str:
    """Where a resumed run goes on."""
    if position.epoch >= epochs:
        return f"finished already, after epoch {position.epoch} of {epochs}: a larger --epochs goes on"
    return f"goes on from epoch {position.epoch + 1} of {epochs}, step {position.step}"


def start_log(trainer: Trainer, source: Source, recipe: Recipe, *, resumed: bool) -> RunLog:
    """The run's logs, from where it stands; lines of an interrupted run after that are taken back."""
    config, position = trainer.config, trainer.position
    wanted = [f"no {title}" for name, title in FOUND.items() if getattr(config, f"{name}_every")]
    if trainer.evaluation is None and wanted:
        why = f"{config.data} has no validation split: name labelled images of the same classes with --val-data"
        if not len(labelled(source)):
            why = "the training images have no labels, and it takes labelled ones to train and to validate on"
        print(f"{', '.join(wanted)}: {why}", flush=True)
    return RunLog(
        trainer.out,
        recipe=recipe,
        metrics=trainer.method.metrics,
        epochs=config.epochs,
        steps=config.epochs * (len(trainer.loader) // config.accumulate),
        resumed=(position.epoch, position.step) if resumed else None,
    )


def summary(out: Path, signal: int) -> str:
    """What a run says at its end."""
    parts = [f"{title} {figure}" for title, figure in results(read_csv(out / "epochs.csv")).items()]
    lines = [", ".join(parts)] if parts else []
    if (out / "best.pt").exists():
        lines.append(f"best epoch: {out / 'best.pt'}")
    if signal:
        lines.append(f"stopped; go on with: {resume_command(out)}")
    return "\n".join([*lines, f"report: {out / 'report.html'}"])


if __name__ == "__main__":
    run_command(main)
