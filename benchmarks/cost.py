"""What negatives cost: MoCo's memory and time against end-to-end training, at equal and growing batch.

    python benchmarks/cost.py --quick
    python benchmarks/cost.py                                            # some minutes on two CPU cores
    python benchmarks/cost.py --json cost.json --plot cost.png
    python benchmarks/cost.py --arch resnet50 --width 64 --size 224 --batches 8 16 32 --rounds 1

End-to-end (He et al. 2019, MoCo, arXiv 1911.05722, section 3.2) takes the other images of the batch as negatives, and
gradients flow through all views; here it is SimCLR's loss, its best-known form. More negatives need a larger batch,
with all its activations. MoCo takes negatives from a queue, as many whatever the batch. Both have MoCo v2's head,
dimensions, temperature and SGD here, and one BatchNorm over the batch. Chen et al. 2020 (MoCo v2, arXiv 2003.04297,
table 3), on 8 V100 with ResNet-50, memory a GPU, hours for 200 epochs of ImageNet:

| | batch | memory | time |
|---|---|---|---|
| MoCo | 256 | 5.0 GB | 53 h |
| end-to-end | 256 | 7.4 GB | 65 h |
| end-to-end | 4096 | 93 GB, their estimate | |

Each row is measured in every round, in a fresh process that takes steps on a batch of noise; the median counts.
`cost_probe.py` says what is memory. The smallest batch is measured with shorter queues, too. Networks and views as
small as the default make the queue dearer than it was there: its 65,536 logits are a larger part of each query's
memory. All CPUs compute, since nothing is loaded; OMP_NUM_THREADS sets another number. Hours for ImageNet are derived
from the speed of the step alone, for this network and size of views.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import os
import subprocess
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

import penstock
from penstock.benchmarks.cost_probe import ENVIRONMENT, FORGET_PEAK, METHODS, configure, negatives
from penstock.benchmarks.cost_report import draw_chart, report_of, show
from penstock.benchmarks.results import check_places, write_results
from penstock.engine.backbones import build_backbone
from penstock.engine.config import TrainConfig
from penstock.engine.defaults import check_choices
from penstock.engine.distributed import join
from penstock.engine.precision import choose_precision
from penstock.errors import UserError, run_command
from penstock.options import read_options


@dataclass(frozen=True, kw_only=True)
class Config:
    batches: tuple[int, ...] = (32, 64, 128, 256)
    """Images in a batch; each has two views."""
    queues: tuple[int, ...] = (1024, 8192, 65536)
    """Lengths of MoCo's queue, cut to a multiple of the batch. The longest is measured at every batch, the others at
    the smallest."""
    arch: str = "resnet18"
    """A network of torchvision's, or timm:NAME."""
    width: int = 16
    """Channels of a ResNet's first stage; the published networks have 64."""
    stem: str = "auto"
    """Its first layers: imagenet, half, cifar or auto."""
    size: int = 64
    """Side of a view in pixels."""
    amp: str = "auto"
    """Autocast: auto, off, bf16 or fp16."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    rounds: int = 3
    """Measurements of each row; the median counts."""
    quick: bool = False
    """A look: where nothing else is said, one round, batches of 32 and 64, queues of 1024 and 65536."""
    json: Path | None = None
    """Write all that was measured, with machine, versions and command, to this file."""
    plot: Path | None = None
    """Draw the curves into this picture (.png, .svg or .pdf)."""

    def task(self, mechanism: str, batch: int, queue: int | None) -> dict[str, Any]:
        """What a row's process is told."""
        names = ("arch", "width", "stem", "size", "amp", "device")
        about = {"mechanism": mechanism, "batch": batch, "queue": queue and queue // batch * batch}
        return about | {name: getattr(self, name) for name in names}


QUICK = Config(quick=True, batches=(32, 64), queues=(1024, 65536), rounds=1)


@dataclass(kw_only=True)
class Row:
    """A row of the table.

    Attributes:
        task: what its processes are told, see `cost_probe.configure`.
        negatives: of each query.
        repeats: what each process measured, see `cost_probe.Measured`.
        error: why nothing was measured.
    """

    task: dict[str, Any]
    negatives: int
    repeats: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.task['mechanism']}, batch {self.task['batch']}, {self.negatives:,} negatives"


def check(config: Config) -> None:
    """Refuse what cannot work before anything takes time."""
    if config.rounds < 1:
        raise UserError(f"--rounds {config.rounds}: it takes at least 1")
    check_places(json=config.json, plot=config.plot)
    for batch in config.batches:
        if batch < 2:
            raise UserError(f"--batches {batch}: an image needs others to be told from: use 2 or more")
    if min(config.queues) < min(config.batches) or max(config.queues) < max(config.batches):
        raise UserError(
            f"--queues {' '.join(map(str, config.queues))}: the shortest must hold the keys of the smallest batch"
            f" ({min(config.batches)}), the longest those of the largest ({max(config.batches)}): use longer ones"
        )
    check_choices(TrainConfig(arch=config.arch, width=config.width, stem=config.stem, size=config.size, amp=config.amp))
    with torch.device("meta"):  # only whether there is such a network
        build_backbone(config.arch, width=config.width, stem=config.stem, size=config.size)
    device = join(config.device).device
    choose_precision(config.amp, device)
    if device.type == "cpu" and not os.access(FORGET_PEAK, os.W_OK):
        raise UserError(f"{FORGET_PEAK} cannot be written here, which a CPU's peak memory is measured with: use Linux")


def plan(config: Config) -> list[Row]:
    """The table's rows: both mechanisms batch by batch, then MoCo with shorter queues."""
    batches, queues = sorted(set(config.batches)), sorted(set(config.queues))
    tasks = [
        config.task(mechanism, batch, queues[-1] if mechanism == "moco" else None)
        for batch in batches
        for mechanism in METHODS
    ]
    tasks += [config.task("moco", batches[0], queue) for queue in queues[:-1]]
    return [Row(task=task, negatives=negatives(configure(task))) for task in tasks]


def measure(rows: list[Row], rounds: int, progress: Progress) -> None:
    """Measure each row once a round, in rounds that go back and forth."""
    task = progress.add_task("", total=rounds * sum(row.task["batch"] for row in rows))
    for turn in range(rounds):
        for row in rows if turn % 2 == 0 else rows[::-1]:
            progress.update(task, description=str(row))
            measure_once(row)
            progress.advance(task, row.task["batch"])


def measure_once(row: Row) -> None:
    """Have a process measure a row, unless one has failed at it."""
    if row.error:
        return
    own = {"PYTHONPATH": str(Path(penstock.__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "penstock.benchmarks.cost_probe", json.dumps(row.task)],
        capture_output=True,
        text=True,
        env={**os.environ, **own, **ENVIRONMENT},
    )
    if done.returncode == 0:
        row.repeats.append(json.loads(done.stdout))
    elif done.returncode < 0:
        row.error = f"its process was ended by signal {-done.returncode}: for 9, memory ran out"
    else:
        said = done.stderr.strip().splitlines() or [f"its process ended with code {done.returncode}"]
        row.error = said[-1].removeprefix("penstock: ")


def settings_of(config: Config, rows: list[Row]) -> dict[str, Any]:
    """What was measured, as the JSON holds it."""
    names = ("batches", "queues", "arch", "width", "stem", "size", "rounds", "quick")
    done = next((row.repeats[0] for row in rows if row.repeats), {})
    return {name: getattr(config, name) for name in names} | {
        name: done.get(name) for name in ("device", "precision", "threads")
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and report. Returns 1 where a row failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = read_options(Config, __doc__, arguments, quick=QUICK)
    check(config)
    rows = plan(config)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    with Progress(console=console, transient=True) as progress:
        measure(rows, config.rounds, progress)
    report = report_of(arguments, settings_of(config, rows), [vars(row) for row in rows])
    show(report, console)
    write_results(report, draw_chart, json_file=config.json, plot=config.plot)
    return int(any(row.error for row in rows))


if __name__ == "__main__":
    run_command(main)
