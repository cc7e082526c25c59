"""`auto`: measures the loaders that are installed on the data at hand, for seconds, and takes the fastest.

    python engine/train.py --loader auto

Its candidates are the loaders whose views an executor of ours makes on our rows: they give the same views in the same
order, so which of them is taken changes a run's speed and nothing else. `trials.py` tries them. A candidate that would
first have to convert (or decode) the set for longer than `PATIENCE` is not taken, only named: that is for the user to
begin.

What was measured is kept for each machine, set of images and way of loading them, in `choices/` of the cache folder:
other ranks wait for the first one and read it, and the next run begins at once.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal

from penstock import __version__
from penstock.augment.executors import choose_executor
from penstock.augment.recipe import Recipe
from penstock.augment.recipes import dump_recipe
from penstock.errors import UserError
from penstock.files import cache_folder, write_whole
from penstock.loaders.lock import locked
from penstock.loaders.make import LOADERS, missing, shard_path
from penstock.loaders.resident import allowance, in_memory
from penstock.loaders.sources.base import Source
from penstock.loaders.threads import available_cpus
from penstock.loaders.trials import Trial, image_pixels, measure, tried_batch
from penstock.machine import describe_machine, versions

SECONDS = 1.5  # for which each candidate's batches are counted, in all rounds together
PATIENCE = 30.0  # seconds that may be spent on preparing the set without being asked to
MARGIN = 1.25  # a set that comes this close to what it may take is left out: its size is estimated
CLEARLY = 1.05  # times as fast: less is within what two measurements of one loader differ by


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The loader that was taken, and why. As a text it is what the user is told.

    Attributes:
        name: the loader's.
        pairs_per_s: of each candidate that ran.
        faster: one that would be clearly faster but needs a long preparation; None where there is none.
        preparation_s: how long that would take; 0 where there is none.
        left_out: why the other loaders were not in question.
        file: what was measured is kept here; without it, it is measured anew.
        from_cache: whether it was, by an earlier call.
    """

    name: str
    pairs_per_s: Mapping[str, float]
    faster: str | None = None
    preparation_s: float = 0.0
    left_out: Mapping[str, str]
    file: Path
    from_cache: bool

    def __str__(self) -> str:
        others = sorted(set(self.pairs_per_s) - {self.name}, key=lambda name: -self.pairs_per_s[name])
        figures = ", ".join(f"{name} {self.pairs_per_s[name]:,.0f}" for name in others) or "no other candidate"
        found = f"measured before (remove {self.file} to measure anew)" if self.from_cache else "measured now"
        lines = [f"auto takes {self.name}: {self.pairs_per_s[self.name]:,.0f} images/s ({figures}), {found}"]
        if self.faster:
            ratio = self.pairs_per_s[self.faster] / self.pairs_per_s[self.name]
            wait = _duration(self.preparation_s)
            lines.append(
                f"{self.faster} would be {ratio:.1f}× as fast, after preparing the set for about {wait}:"
                f" --loader {self.faster}"
            )
        lines += [f"{name} is left out: {reason}" for name, reason in self.left_out.items()]
        return "\n".join(f"penstock: {line}" for line in lines)


def choose_loader(
    source: Source,
    *,
    recipe: Recipe,
    batch: int,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    executor: str = "auto",
    fallback: Sequence[str] = (),
    on_error: str = "stop",
    budget: int | None = None,
    cache: Path | None = None,
    seconds: float = SECONDS,
    speaks: bool = True,
) -> Choice:
    """The fastest loader for these images on this machine. The arguments are `make_loader`'s.

    Args:
        seconds: for which each candidate's batches are counted.
        speaks: say what was taken, and why, on standard error.

    Raises:
        UserError: no candidate can load this; it is what `folder` said.
    """
    options: dict[str, Any] = {
        "recipe": replace(recipe, growth=None),  # tried at the size that views grow to
        "workers": available_cpus() if workers is None else workers,
        "device": torch.device(device),
        "dtype": dtype,
        "executor": executor,
        "fallback": tuple(fallback),
        "on_error": on_error,
        "budget": budget,
    }
    pixels = image_pixels(source, on_error=on_error)
    names, left_out = candidates(source, pixels, options)
    fingerprint = source.fingerprint()
    about = _about(fingerprint, names, batch, options)
    file = _file(about, cache)
    with locked(file):
        trials = _read(file, about)
        from_cache = trials is not None
        if trials is None:
            tried = tried_batch(batch, pixels, options)
            trials = measure(names, source, batch=tried, seconds=seconds, options=options)
            _write(file, about, trials)
    where: dict[str, Any] = {"on_error": on_error, "cache": cache, "fingerprint": fingerprint}
    shards = {name: shard_path(source, name, **where) for name in names}
    taken, faster = decide(trials, {name for name, shard in shards.items() if shard is not None and shard.exists()})
    choice = Choice(
        name=taken,
        pairs_per_s={name: trial.pairs_per_s for name, trial in trials.items() if trial.failure is None},
        faster=faster,
        preparation_s=trials[faster].preparation_s if faster else 0.0,
        left_out=left_out | {name: trial.failure for name, trial in trials.items() if trial.failure is not None},
        file=file,
        from_cache=from_cache,
    )
    if speaks:
        print(choice, file=sys.stderr, flush=True)
    return choice


def decide(trials: Mapping[str, Trial], ready: set[str]) -> tuple[str, str | None]:
    """The fastest candidate that need not be waited for, and one that is clearly faster but must be.

    Args:
        ready: those whose shard of the whole set is there already.

    Raises:
        UserError: none ran, or only such as must be waited for.
    """
    rates = {name: trial.pairs_per_s for name, trial in trials.items() if trial.pairs_per_s}
    wait = {name: 0.0 if name in ready else trials[name].preparation_s for name in rates}
    at_once = [name for name in rates if wait[name] <= PATIENCE]
    if not at_once:
        raise UserError(str(trials["folder"].failure))  # it needs no preparation, so it failed
    enough = max(rates[name] for name in at_once) / CLEARLY
    taken = min((name for name in at_once if rates[name] >= enough), key=lambda name: (wait[name], -rates[name]))
    best = max(rates, key=lambda name: rates[name])
    return taken, best if rates[best] > CLEARLY * rates[taken] else None


def candidates(source: Source, pixels: float, options: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """The loaders to try, and why the others of their kind are not.

    Args:
        pixels: of one of the source's images, on average.
    """
    ours = [name for name, info in LOADERS.items() if not info.own_augmentation and name != "auto"]
    left_out = {name: reason for name in ours if (reason := missing(name))}
    if reason := _too_large(source, pixels, options):
        left_out["resident"] = reason
    return [name for name in ours if name not in left_out], left_out


def _too_large(source: Source, pixels: float, options: Mapping[str, Any]) -> str | None:
    """Why `resident` would refuse the set; None where it would not."""
    device = options["device"]
    executor = choose_executor(options["executor"], options["recipe"], fallback=options["fallback"], device=device)
    on_gpu = executor.on_device and device.type == "cuda"
    if not on_gpu and in_memory(source) is not None:
        return None
    allowed, decoded = allowance(options["budget"], device if on_gpu else None), round(3 * pixels * len(source))
    if MARGIN * decoded <= allowed.size:
        return None
    return f"the decoded set takes {decimal(decoded)}, and {decimal(allowed.size)} is {allowed.why}"


def _about(fingerprint: str, names: Sequence[str], batch: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """All that the measurement depends on. Of the budget, only whether the set fits: `names` says it."""
    return {
        "machine": describe_machine(),
        "versions": {"penstock": __version__} | versions(),
        "set": fingerprint,
        "loaders": list(names),
        "recipe": dump_recipe(options["recipe"]),
        "batch": batch,
        "workers": options["workers"],
        "device": options["device"].type,  # ranks on GPUs that are alike share what is found
        "dtype": str(options["dtype"]),
        "executor": options["executor"],
        "fallback": list(options["fallback"]),
        "on_error": options["on_error"],
    }


def _file(about: Mapping[str, Any], cache: Path | None) -> Path:
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    return (cache or cache_folder()) / "choices" / f"{key}.json"


def _read(file: Path, about: Mapping[str, Any]) -> dict[str, Trial] | None:
    """What an earlier call found; None where there is nothing, or something damaged."""
    try:
        read = json.loads(file.read_text())
        trials = {name: Trial(**trial) for name, trial in read["trials"].items()}
        return trials if read["about"] == about and list(trials) == about["loaders"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(file: Path, about: Mapping[str, Any], trials: Mapping[str, Trial]) -> None:
    found = {name: asdict(trial) for name, trial in trials.items()}
    text = json.dumps({"about": about, "trials": found}, indent=1) + "\n"
    write_whole(file, lambda partial: partial.write_text(text))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
