"""A run's folder: where it is, and config.json, which says what the run is."""

from __future__ import annotations

import errno
import json
import os
import shlex
import time
from pathlib import Path

from penstock.counts import counted
from penstock.engine.backbones import choose_stem, takes_width
from penstock.engine.config import CompleteConfig, TrainConfig, to_dict
from penstock.engine.method import Method
from penstock.engine.precision import Precision
from penstock.errors import UserError
from penstock.files import write_whole
from penstock.loaders import Loader, Source
from penstock.machine import describe_machine, machine_line, versions


def choose_folder(config: TrainConfig, source: Source, *, resumed: bool) -> Path:
    """OUT, or a new folder under runs/. It is not made yet: a run that is refused leaves nothing behind.

    Raises:
        UserError: a finished or interrupted run lies there that was not asked to go on, or it cannot be written.
    """
    named = f"{source.name}-{config.method}-{config.loader}-{time.strftime('%Y%m%d-%H%M%S')}"
    out = config.out or Path("runs") / named
    goes_on = resumed and (
        config.resume == "auto" or Path(config.resume or "").resolve() in (out.resolve(), (out / "last.pt").resolve())
    )
    if not goes_on and (out / "last.pt").exists():
        raise UserError(
            f"--out {out}: a run lies there already: go on with it by --resume auto, or choose another --out"
        )
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES if there.is_dir() else errno.ENOTDIR)
        raise UserError(f"--out {out}: {there} cannot be written ({reason}): choose another --out")
    return out


def resume_command(out: Path) -> str:
    """What to type to go on with the run in a folder."""
    return f"python engine/train.py --resume {shlex.quote(str(out / 'last.pt'))}"


def write_about(
    out: Path, config: CompleteConfig, source: Source, *, loader: Loader, method: Method, precision: Precision
) -> dict[str, object]:
    """Write OUT/config.json: the settings, and what came of them. Returns its content."""
    parameters = sum(parameter.numel() for parameter in method.encoder.backbone.parameters())
    stem = choose_stem(config.stem, config.size)
    built = f" of width {config.width}, {stem} stem" if takes_width(config.arch) else ""
    about: dict[str, object] = {
        "source": f"{source.name}, {counted(len(source), 'image')}",
        "network": f"{config.arch}{built}, {parameters / 1e6:.1f} M parameters",
        "precision": str(precision),
        "recipe": str(loader.recipe),
        "executor": loader.executor.name if loader.executor else None,
        "resume": resume_command(out),
        "machine": {"machine": machine_line(describe_machine()), **versions()},
        "config": to_dict(config),
    }
    write_whole(out / "config.json", lambda path: path.write_text(json.dumps(about, indent=2) + "\n"))
    return about
