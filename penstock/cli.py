"""The console command `penstock`: names the sub-commands and hands the rest of the line to the one that was typed.

    penstock train --loader dali

Each sub-command is a module with `main(arguments)`, imported only when it runs: `penstock --help` is instant.
"""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

from penstock import __version__
from penstock.errors import UserError, run_command

COMMANDS = {  # name: (module, what it does)
    "train": ("penstock.engine.train", "train an encoder without labels, and write its report"),
    "evaluate": ("penstock.engine.evaluate.run", "say how good a checkpoint's features are"),
    "sweep": ("penstock.engine.sweep", "reproduce a published table, in full or cut to minutes"),
    "search": ("penstock.engine.search.run", "look for a better augmentation by training with many"),
    "export": ("penstock.engine.export.run", "write a backbone for torchvision, timm, detectron2 or ONNX"),
    "convert": ("penstock.loaders.convert", "turn a set of images into shards that load faster"),
    "statistics": ("penstock.loaders.statistics", "measure the mean and std that images are normalised by"),
    "throughput": ("penstock.benchmarks.throughput", "compare the loaders on this machine"),
    "preview": ("penstock.augment.preview", "picture what a recipe makes of a photograph, by every executor"),
    "doctor": ("penstock.doctor", "say what is installed, and what to type for what is not"),
}


def usage() -> str:
    commands = "\n".join(f"  {name:<12}{about}" for name, (_, about) in COMMANDS.items())
    return (
        f"penstock {__version__}: a data-loading-first trainer for self-supervised vision models\n\n"
        f"usage: penstock COMMAND [OPTIONS]\n\n{commands}\n\n"
        "penstock COMMAND --help lists the command's options. With no options, every command works on embedded images."
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command and return its exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "--version"):
        print(__version__ if name == "--version" else usage())
        return 0
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}; there are {', '.join(COMMANDS)} (see penstock --help)")
    sys.argv[0] = f"penstock {name}"  # what the command's own --help and errors call it
    return importlib.import_module(COMMANDS[name][0]).main(rest) or 0


def command() -> NoReturn:
    """The console script."""
    run_command(main)
