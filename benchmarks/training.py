"""How many pairs a second a training step takes, alone and fed by each loader, beside the usual step in the same run.

    python benchmarks/training.py --quick
    python benchmarks/training.py --json training.json --plot training.png
    python benchmarks/training.py --data cifar10 --width 16 --batch 256
    python benchmarks/training.py --data path/to/photos --arch resnet50 --batch 256       # on a GPU

The step alone takes the same batch of noise again and again: no loader can feed it faster. Fed rows say how close each
comes to that, and for how much of the time the device waited. The usual step (`training_official.py`, for MoCo v1 and
v2) has the same network, weights, queue and batch. A second table goes from it to Penstock's step, one part after the
other: what each brings on this machine.

All run in one process, unlike the rows of `throughput.py`: fed rows so train one and the same step, and on a GPU no
other process takes memory or time. All are warmed, then measured in rounds that go back and forth, each while the
threads and workers of the others sleep; the median counts. What a loader has ready by then is passed over. The learning
rate is 0: all work is done, but weights stay where they start, and no measurement depends on those before it.

On a CPU the loader's threads and the network share the cores: torch leaves one to the loader (`engine/data.share_cpus`;
OMP_NUM_THREADS sets another number), in all rows alike, also in those that load nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import warnings
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console

from penstock.augment import load_recipe
from penstock.benchmarks.photographs import photographs
from penstock.benchmarks.plan import OURS
from penstock.benchmarks.race import Clock
from penstock.benchmarks.results import check_places, write_results
from penstock.benchmarks.throughput import chosen
from penstock.benchmarks.training_chart import draw_chart
from penstock.benchmarks.training_lineup import Lineup
from penstock.benchmarks.training_report import ON_CPU, report_of, show
from penstock.benchmarks.training_steps import WITH_OFFICIAL, Setting
from penstock.engine.config import TrainConfig
from penstock.engine.data import share_cpus
from penstock.engine.defaults import CHOICES, check_choices, complete
from penstock.engine.distributed import join
from penstock.engine.precision import choose_precision
from penstock.errors import UserError, run_command
from penstock.loaders import open_source
from penstock.loaders.threads import available_cpus
from penstock.options import read_options

MODES = CHOICES["compile"][1:]  # torch.compile's


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = "shapes"
    """Images: shapes (embedded), cifar10, cifar100, stl10, imagenette, NAME:FOLDER, a folder, or a shard."""
    method: str = "moco-v2"
    """moco-v1, moco-v2, moco-v2+, simclr, barlow-twins, simsiam, byol or swav, with the data's settings."""
    arch: str = "resnet18"
    """A network of torchvision's, or timm:NAME."""
    width: int | None = None
    """Channels of a ResNet's first stage; if not given, the data's (16 for shapes, else 64)."""
    size: int | None = None
    """Side of a view in pixels; if not given, the data's."""
    batch: int | None = None
    """Images in a batch; if not given, the data's."""
    loaders: tuple[str, ...] = ("all",)
    """Our loaders to feed the step by, beside torchvision's: all, none, or some of folder, ffcv, resident, dali."""
    official: bool = True
    """Race the usual step, and what lies between it and Penstock's, too; there is one for moco-v1 and moco-v2."""
    compile: tuple[str, ...] = ("auto",)
    """Modes of torch.compile to try on Penstock's step: default, reduce-overhead, max-autotune, none, or auto: on a GPU
    the first two, on a CPU none, where compiling takes long."""
    amp: str = "auto"
    """Autocast of Penstock's step: auto, off, bf16 or fp16."""
    workers: int | None = None
    """Threads of a loader, and workers of torchvision's; if not given, one for each CPU, and as many workers as are
    fastest."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seconds: float = 2.0
    """Length of one measurement, at least."""
    rounds: int = 5
    """Measurements of each row; the median counts."""
    profile: int = 0
    """Profile so many of Penstock's steps on one batch, too: which operations take the time."""
    quick: bool = False
    """A look: where nothing else is said, one round of a fifth of a second."""
    json: Path | None = None
    """Write all that was measured, with machine, versions and command, to this file."""
    plot: Path | None = None
    """Draw the bars into this picture (.png, .svg or .pdf)."""

    def training(self) -> TrainConfig:
        """The same as `engine/train.py` would be told."""
        names = ("data", "method", "arch", "width", "size", "batch", "amp", "workers", "device")
        return TrainConfig(**{name: getattr(self, name) for name in names})


QUICK = Config(quick=True, seconds=0.2, rounds=1)


def check(config: Config) -> None:
    """Refuse what cannot work before anything takes time."""
    check_choices(config.training())
    chosen("--loaders", config.loaders, OURS)
    for mode in config.compile:
        if mode not in {"auto", "none", *MODES}:
            raise UserError(f"--compile {mode!r} is not known: choose from auto, none, {', '.join(MODES)}")
    for name, least in (("rounds", 1), ("seconds", 0.1), ("profile", 0)):
        if getattr(config, name) < least:
            raise UserError(f"--{name} {getattr(config, name)}: it takes at least {least}")
    check_places(json=config.json, plot=config.plot)


def prepare(config: Config) -> Setting:
    """What all rows have in common: the data opened, the settings completed."""
    team = join(config.device)
    share_cpus(team)
    torch.backends.cudnn.benchmark = True  # as in engine/train.py, and in the usual script
    source = open_source(config.data)
    complete_config = complete(config.training(), source=source.name, length=len(source), world=1)
    files = photographs(config.data, batch=complete_config.batch)
    return Setting(
        config=replace(complete_config, lr=0.0),
        source=open_source(files.data, limit=files.limit),
        recipe=load_recipe(complete_config.recipe, size=complete_config.size),
        team=team,
        precision=choose_precision(config.amp, team.device),
        name=source.name,
        images=files.count,
        distinct=files.distinct,
    )


def modes(config: Config, setting: Setting) -> list[str]:
    """The modes of torch.compile to try."""
    if "auto" in config.compile:
        return ["default", "reduce-overhead"] if setting.team.device.type == "cuda" else []
    return [mode for mode in MODES if mode in config.compile]


def notes(config: Config, setting: Setting) -> list[str]:
    """What was left out, and on what else the figures depend."""
    found = []
    if config.official and setting.config.method not in WITH_OFFICIAL:
        found.append(f"No usual step: one is written for {' and '.join(WITH_OFFICIAL)}, and this is {config.method}.")
    if config.official and setting.precision.dtype is None:
        found.append("No row for autocast: Penstock's step computes in float32 here.")
    if not modes(config, setting):
        found.append("No row for torch.compile: --compile default adds one, which may take long to compile.")
    if setting.team.device.type == "cpu":
        found.append(ON_CPU.format(threads=torch.get_num_threads(), cpus=available_cpus()))
    return found


def settings_of(config: Config, setting: Setting) -> dict[str, Any]:
    """What was measured, as the JSON holds it: the set by name."""
    training = setting.config
    names = ("method", "arch", "width", "stem", "size", "batch", "dim", "queue", "bn_splits", "optimizer", "recipe")
    return {
        "data": setting.name,
        "images": setting.images,
        "distinct_images": setting.distinct,
        **{name: getattr(training, name) for name in names},
        "precision": str(setting.precision),
        "device": setting.team.device.type,
        "torch_threads": torch.get_num_threads(),
        "seconds": config.seconds,
        "rounds": config.rounds,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the race. Returns 1 where a row failed; one whose package is not installed is no failure."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = read_options(Config, __doc__, arguments, quick=QUICK)
    check(config)
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more workers than CPUs: it is tried
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140)
    setting = prepare(config)
    clock = Clock(console)
    with clock.progress, ExitStack() as stack:
        lineup = Lineup(setting, official=config.official, seconds=config.seconds, clock=clock, stack=stack)
        lineup.enter_fed(chosen("--loaders", config.loaders, OURS))
        lineup.enter_parts(modes(config, setting))
        lineup.race(config.rounds)
    report = report_of(
        arguments, settings_of(config, setting), rows=lineup.rows, parts=lineup.parts, notes=notes(config, setting)
    )
    if config.profile:
        report["profile"] = lineup.profile(config.profile)
    show(report, console)
    write_results(report, draw_chart, json_file=config.json, plot=config.plot)
    return int(lineup.failed)


if __name__ == "__main__":
    run_command(main)
