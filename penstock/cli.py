"""The console command `penstock`: names the sub-commands and hands the rest of the line to the one that was typed.

    penstock train --loader dali
    penstock benchmark throughput --quick

Each sub-command is a module with `main(arguments)`, imported only when it runs: `penstock --help` is instant.
"""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

from penstock import __version__
from penstock.errors import UserError, run_command

Commands = dict[str, tuple["str | Commands", str]]  # name: (its module, or commands of its own; what it does)
BENCHMARKS: Commands = {
    "throughput": ("penstock.benchmarks.throughput", "pairs a second of each loader, beside other packages"),
    "augment": ("penstock.benchmarks.augment", "how long each operation and recipe takes, by each executor"),
    "training": ("penstock.benchmarks.training", "how fast a step is, and who keeps it waiting"),
    "methods": ("penstock.benchmarks.methods", "whether every method learns, and what it costs"),
    "cost": ("penstock.benchmarks.cost", "what negatives cost in memory and time"),
    "scale": ("penstock.benchmarks.scale", "what a set costs as it grows to 100 million samples"),
    "parity": ("penstock.benchmarks.parity", "how far each executor is from the reference; rewrites docs/parity.md"),
    "time-to-accuracy": ("penstock.benchmarks.time_to_accuracy", "how soon a published accuracy is reached"),
}
COMMANDS: Commands = {
    "train": ("penstock.engine.train", "train an encoder without labels, and write its report"),
    "evaluate": ("penstock.engine.evaluate.run", "say how good a checkpoint's features are"),
    "sweep": ("penstock.engine.sweep", "reproduce a published table, in full or cut to minutes"),
    "search": ("penstock.engine.search.run", "look for a better augmentation by training with many"),
    "export": ("penstock.engine.export.run", "write a backbone for torchvision, timm, detectron2 or ONNX"),
    "convert": ("penstock.loaders.convert", "turn a set of images into shards that load faster"),
    "statistics": ("penstock.loaders.statistics", "measure the mean and std that images are normalised by"),
    "benchmark": (BENCHMARKS, "measure loaders, augmentation or training on this machine; alone, lists what there is"),
    "recipe": ("penstock.augment.show", "print a recipe as YAML, to begin your own with; alone, lists them"),
    "preview": ("penstock.augment.preview", "picture what a recipe makes of a photograph, by every executor"),
    "doctor": ("penstock.doctor", "say what is installed, and what to type for what is not"),
}


def usage(typed: str, commands: Commands) -> str:
    """What `typed` can be followed by."""
    listed = "\n".join(f"  {name:<18}{about}" for name, (_, about) in commands.items())
    return (
        f"penstock {__version__}: a data-loading-first trainer for self-supervised vision models\n\n"
        f"usage: {typed} COMMAND [OPTIONS]\n\n{listed}\n\n"
        f"{typed} COMMAND --help lists the command's options. With none of them, most work on embedded images."
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(__version__)
        return 0
    return run("penstock", COMMANDS, arguments)


def run(typed: str, commands: Commands, words: list[str]) -> int:
    """Run what `words` name of the commands of `typed`."""
    name, *rest = words or ["--help"]
    if name in ("-h", "--help"):
        print(usage(typed, commands))
        return 0
    if name not in commands:
        raise UserError(f"there is no `{typed} {name}`; there are {', '.join(commands)} (see {typed} --help)")
    what = commands[name][0]
    if isinstance(what, dict):
        return run(f"{typed} {name}", what, rest)
    sys.argv[0] = f"{typed} {name}"  # what the command's own --help and errors call it
    return importlib.import_module(what).main(rest) or 0


def command() -> NoReturn:
    """The console script."""
    run_command(main)
