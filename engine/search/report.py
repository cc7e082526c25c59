"""What a search leaves in its folder, written anew after every trial.

OUT/best.yaml     the best recipe so far
OUT/search.json   every figure, with machine, versions and command
OUT/search.md     the best beside the recipe as given, and what was changed
OUT/search.png    kNN by trial, and which values mattered
OUT/trials.csv    a line for each trial
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from penstock.augment.recipes import dump_recipe
from penstock.counts import counted
from penstock.engine.backbones import takes_width
from penstock.engine.config import CompleteConfig
from penstock.engine.search.space import Space
from penstock.files import write_whole
from penstock.loaders import Source
from penstock.machine import provenance

if TYPE_CHECKING:
    from optuna.study import Study

Report = dict[str, Any]
Figures = Mapping[int, Sequence[float]]
ENOUGH = 8  # trials trained to their end, before something can be said of which values mattered
SHOWN_KNOBS = 12
COLOR, MUTED = "#1f6feb", "#9aa5b1"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a search is on.

    Attributes:
        header: data, epochs and network, as a line.
        queries: the images that score.
    """

    header: str
    queries: str

    @classmethod
    def of(cls, config: CompleteConfig, source: Source, *, images: int, queries: str) -> Subject:
        name = source.name.removesuffix(f"-{config.split}")
        cut = f"{name} cut to" if images < len(source) else f"{name},"
        width = f" of width {config.width}" if takes_width(config.arch) else ""
        how = f"{config.method}, {config.arch}{width}, {config.size} px, batch {config.batch}, seed {config.seed}"
        header = f"{cut} {counted(images, 'image')}, {counted(config.epochs, 'epoch')}; {how}; kNN of {queries}"
        return cls(header=header, queries=queries)


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """kNN accuracy with other seeds, per cent, by the trial's number, and of which images. Failed runs have none."""

    queries: str
    figures: Figures


def gather(study: Study, space: Space, subject: Subject, confirmed: Confirmed | None) -> Report:
    """What there is so far; trial 0 is over."""
    trials = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "knn": trial.value,
            "epochs": max(trial.intermediate_values, default=0),
            "seconds": round(trial.user_attrs.get("seconds", 0.0), 1),
            "values": trial.params,
        }
        for trial in study.get_trials(deepcopy=False)
    ]
    best, baseline = study.best_trial, study.trials[0]
    importance = _importance(study)
    values = {
        name: {"given": knob.own, "best": best.params[name], "low": knob.low, "high": knob.high,
               "importance": importance.get(name)}
        for name, knob in space.knobs.items()
    }  # fmt: skip
    return {
        "recipe": space.recipe.name, "header": subject.header, "queries": subject.queries,
        "given": baseline.value, "best": best.value, "best_trial": best.number, "values": values, "trials": trials,
        "given_line": str(space.recipe), "best_line": str(space.recipe_of(best.params)),
        "confirmed": None if confirmed is None else {"queries": confirmed.queries, "figures": dict(confirmed.figures)},
    }  # fmt: skip


def _importance(study: Study) -> dict[str, float]:
    """How much each value decides whether a trial is among the best (PED-ANOVA: Watanabe et al. 2023)."""
    from optuna.importance import get_param_importances
    from optuna.trial import TrialState

    scores = {trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    return get_param_importances(study) if len(scores) >= ENOUGH else {}


def write_report(report: Report, space: Space, out: Path, *, command: str) -> None:
    """All five files, each whole."""
    texts = {
        "search.json": json.dumps({**provenance(command), **report}, indent=2, ensure_ascii=False) + "\n",
        "search.md": markdown(report),
        "trials.csv": as_csv(report),
        "best.yaml": best_yaml(report, space),
    }
    for name, text in texts.items():
        _write_text(out / name, text)
    write_whole(out / "search.png", lambda path: draw(report, path))


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def best_yaml(report: Report, space: Space) -> str:
    """The best recipe; its `about` says how it was found."""
    values = {name: value["best"] for name, value in report["values"].items()}
    number, tried = report["best_trial"], len(report["trials"])
    gain = f"kNN {report['best']:.2f} %, {report['given']:.2f} % as it was" if number else "no other was better"
    found = f"{report['recipe']}, trial {number} of {tried} of engine/search/run.py: {gain}; {report['header']}"
    return dump_recipe(replace(space.recipe_of(values), name=f"{report['recipe']}-searched", about=found))


def summary(report: Report) -> str:
    """What came of it, in some lines."""
    states = [trial["state"] for trial in report["trials"]]
    counts = ", ".join(f"{states.count(s)} {words}" for s, words in STATES.items() if s in states)
    margin = (
        f"The standard error of one figure is about {_standard_error(report):.1f} points." if _images(report) else ""
    )
    lines = [
        f"kNN {report['given']:.2f} % as given, {report['best']:.2f} % at best (trial {report['best_trial']};"
        f" {report['best'] - report['given']:+.2f}). {margin}".rstrip(),
        f"Trials: {len(states)} ({counts}); {sum(trial['seconds'] for trial in report['trials']) / 60:.1f} min.",
    ]
    if report["confirmed"]:
        lines.append(_confirmation(report))
    return "\n".join(lines)


STATES = {"complete": "trained to their end", "pruned": "given up", "fail": "failed", "running": "in hand"}


def _images(report: Report) -> int:
    """How many images score; 0 where only their name is known."""
    count = report["queries"].split()[0].replace(",", "")
    return int(count) if count.isdecimal() else 0


def _standard_error(report: Report) -> float:
    """Of an accuracy on so many images, in points."""
    share = report["best"] / 100
    return 100 * math.sqrt(share * (1 - share) / _images(report))


def _confirmation(report: Report) -> str:
    shown = {number: _mean(figures) for number, figures in report["confirmed"]["figures"].items()}
    best = report["best_trial"]
    against = f"at best {shown[best]}" if best else "which is the best"
    return f"With other seeds, {report['confirmed']['queries']}: as given {shown[0]}, {against}."


def _mean(figures: Sequence[float]) -> str:
    """With the standard deviation that other seeds are expected to have, estimated from these (divided by n - 1).

    Those of the tables of `systems/` are of their own runs alone (divided by n), as their authors publish them.
    """
    if not figures:
        return "no figure (all runs failed)"
    spread = f" ± {stdev(figures):.2f}" if len(figures) > 1 else ""
    return f"{mean(figures):.2f}{spread} % ({len(figures)} seed{'s' * (len(figures) > 1)})"


def markdown(report: Report) -> str:
    rows = [
        [name, f"{v['given']:.3g}", f"{v['best']:.3g}", f"{v['low']:.3g} … {v['high']:.3g}",
         "" if v["importance"] is None else f"{v['importance']:.2f}"]
        for name, v in report["values"].items()
    ]  # fmt: skip
    head = ["searched", "as given", "best", "within", "importance"]
    lines = ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]
    parts = [
        f"# A search from {report['recipe']}", f"{report['header']}.", summary(report), "\n".join(lines),
        f"As given: {report['given_line']}", f"Best: {report['best_line']}",
        "The best of many trials is partly the luckiest: its figure is optimistic. Importance: of a value, for being"
        " among the best trials (PED-ANOVA); known once enough of them were trained to their end.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def as_csv(report: Report) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(report["values"])
    writer.writerow(["trial", "state", "knn", "epochs", "seconds", *names])
    for trial in report["trials"]:
        values = (f"{trial['values'][name]:.6g}" if name in trial["values"] else "" for name in names)
        knn = "" if trial["knn"] is None else f"{trial['knn']:.6g}"
        writer.writerow([trial["trial"], trial["state"], knn, trial["epochs"], trial["seconds"], *values])
    return text.getvalue()


def draw(report: Report, path: Path) -> None:
    """kNN by trial; beside it, where enough trials were trained to their end, which values mattered."""
    known = {name: v["importance"] for name, v in report["values"].items() if v["importance"] is not None}
    figure = Figure(figsize=(11 if known else 7.5, 4.4), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2 if known else 1, squeeze=False, width_ratios=[3, 1.6][: 2 if known else 1])[0]
    _draw_trials(panels[0], report)
    if known:
        _draw_importance(panels[1], known)
    figure.suptitle(f"A search from {report['recipe']}\n{report['header']}", x=0.01, ha="left", fontsize=9, wrap=True)
    figure.savefig(path)


def _draw_trials(axes: Axes, report: Report) -> None:
    finished = [(trial["trial"], trial["knn"]) for trial in report["trials"] if trial["state"] == "complete"]
    pruned = [(t["trial"], t["knn"]) for t in report["trials"] if t["state"] == "pruned" and t["knn"] is not None]
    best = [max(knn for _, knn in finished[: i + 1]) for i in range(len(finished))]
    axes.axhline(report["given"], color=MUTED, linestyle="--", linewidth=1.2, label="as given")
    places = [*(number for number, _ in finished), max(trial["trial"] for trial in report["trials"])]
    axes.step(places, [*best, best[-1]], where="post", color=COLOR, linewidth=1.4, label="best so far")
    axes.plot(*zip(*finished, strict=True), "o", color=COLOR, markersize=5, label="trained to the end")
    if pruned:
        axes.plot(*zip(*pruned, strict=True), "o", color=MUTED, markerfacecolor="white", markersize=5, label="given up")
    axes.tick_params(labelsize=8)
    axes.set_xlabel("trial", fontsize=9)
    axes.set_ylabel("kNN accuracy, %", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb")
    axes.legend(frameon=False, fontsize=8)


def _draw_importance(axes: Axes, known: Mapping[str, float]) -> None:
    names = sorted(known, key=lambda name: known[name])[-SHOWN_KNOBS:]
    axes.barh(names, [known[name] for name in names], color=COLOR, height=0.6)
    axes.set_title("which values mattered", loc="left", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
