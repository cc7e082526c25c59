"""OUT/report.html: a run in one file that needs nothing beside it; written again at the end of every epoch.

Made from what the run's folder holds (config.json, the CSV logs, views.png), so it can be made anew at any time.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from penstock.augment import Recipe
from penstock.engine.csv_log import Row, read_csv
from penstock.engine.curves import chart
from penstock.engine.screen import FOUND
from penstock.files import write_whole
from penstock.loaders import Views

MARKED = 100  # points of a chart that are marked, at most
SHEET_IMAGES, GAP, SHEET_SIDE = 8, 4, 64  # images shown; pixels between views; views are enlarged to about this

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
h1 { margin-bottom: 0 } h2 { margin-top: 2.2rem; font-size: 1.15rem }
.lead { font-size: 1.1rem } .lead b { color: #0a6c74 }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 1rem }
svg { width: 100% } svg text { font: 11px system-ui, sans-serif; fill: #5b6875 }
svg .title { font-size: 13px; font-weight: 600; fill: #1c2733 } svg .end { text-anchor: end }
svg .middle { text-anchor: middle } .grid { stroke: #e3e8ec }
polyline { fill: none; stroke: #0a7f88; stroke-width: 1.8 } circle { fill: #0a7f88 }
table { border-collapse: collapse } td { padding: .1rem 1.2rem .1rem 0; vertical-align: top }
td:first-child { color: #5b6875; white-space: nowrap }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 0 2rem }
img { max-width: 100%; image-rendering: pixelated }
"""


def save_views(views: Views, recipe: Recipe, path: Path) -> None:
    """A picture of the batch's first images, one column each, its views one below the other, colours as they were.

    Small views are shown as large as the first ones.
    """
    size = views.groups[0].shape[-1]  # the epoch's, where views grow
    side = size * max(1, round(SHEET_SIDE / size))
    grids = [group.unflatten(0, (-1, len(views)))[:, :SHEET_IMAGES].float().cpu() for group in views.groups]
    grid = torch.cat([_enlarged(grid, side) for grid in grids])  # [V, n, 3, side, side]
    mean, std = torch.tensor(recipe.mean).view(3, 1, 1), torch.tensor(recipe.std).view(3, 1, 1)
    pixels = ((grid * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    framed = functional.pad(pixels, (0, GAP, 0, GAP), value=255)
    sheet = framed.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()  # [V·(side+gap), n·(side+gap), 3]
    Image.fromarray(np.ascontiguousarray(sheet)).save(path)


def _enlarged(grid: torch.Tensor, side: int) -> torch.Tensor:
    """Views [V, n, 3, S, S] as [V, n, 3, side, side], each pixel repeated."""
    return functional.interpolate(grid.flatten(0, 1), size=(side, side)).unflatten(0, grid.shape[:2])


def write_report(out: Path) -> Path:
    """Write OUT/report.html in one go and return its path."""
    about = json.loads((out / "config.json").read_text())
    steps, epochs = read_csv(out / "steps.csv"), read_csv(out / "epochs.csv")
    config = about["config"]
    title = f"{config['method']} on {about['source']}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(about['network'])}, {_feeder(about)}</p>",
        _lead(epochs, config["epochs"]),
        f'<div class="charts">{_charts(steps, epochs)}</div>',
        _views(out / "views.png", about["recipe"]),
        f"<h2>Time</h2>{_table(_timing(steps, epochs))}",
        f"<h2>Machine</h2>{_table(about['machine'])}",
        f'<h2>Settings</h2><div class="columns">{_settings(config)}</div>',
        f"<p>Go on with it: <code>{escape(about['resume'])}</code></p>",
    ]
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    path = out / "report.html"
    write_whole(path, lambda partial: partial.write_text(page + "\n".join(body) + "</html>\n"))
    return path


def _feeder(about: dict[str, Any]) -> str:
    by = "last fed by" if about["config"]["resume"] else "fed by"  # earlier epochs may have had another loader
    loader = f"{by} the loader <b>{escape(about['config']['loader'])}</b>"
    return f"{loader}, views made by <b>{about['executor']}</b>" if about["executor"] else loader


@dataclass(frozen=True, kw_only=True)
class Found:
    """How a figure of the evaluation went, per cent.

    Attributes:
        last: of the last epoch that has one.
        best, epoch: the highest, and the first epoch with it.
        before: before the first epoch, of an untrained network or of the weights of --init, if it is known.
    """

    last: float
    best: float
    epoch: int
    before: float | None

    @staticmethod
    def of(name: str, epochs: list[Row]) -> Found | None:
        """None where no trained network was evaluated by it."""
        rows = [row for row in epochs if name in row and row["epoch"] > 0]
        if not rows:
            return None
        best = max(rows, key=lambda row: row[name])
        before = next((row[name] for row in epochs if name in row and row["epoch"] == 0), None)
        return Found(last=rows[-1][name], best=best[name], epoch=int(best["epoch"]), before=before)

    def __str__(self) -> str:
        beside = [f"best: {self.best:.2f} %, epoch {self.epoch}"] if self.best > self.last else []
        beside += [] if self.before is None else [f"before the first epoch: {self.before:.2f} %"]
        return f"{self.last:.2f} %" + (f" ({'; '.join(beside)})" if beside else "")


def results(epochs: list[Row]) -> dict[str, str]:
    """What a run ends with, as far as it is known, by what it is called: loss, kNN, logistic regression."""
    losses = [row["loss"] for row in epochs if "loss" in row]
    loss = {"loss": f"{losses[-1]:.3f}"} if losses else {}
    found = {title: Found.of(name, epochs) for name, title in FOUND.items()}
    return loss | {title: str(figure) for title, figure in found.items() if figure}


def _lead(epochs: list[Row], planned: int) -> str:
    done = max((int(row["epoch"]) for row in epochs), default=0)
    parts = [f"{title[0].upper() + title[1:]} <b>{figure}</b>" for title, figure in results(epochs).items()]
    return f'<p class="lead">{". ".join([f"Epoch {done} of {planned}", *parts])}.</p>'


def _charts(steps: list[Row], epochs: list[Row]) -> str:
    found = {
        "knn": "kNN accuracy, %", "logistic": "Logistic regression: top-1, validation images, %",
        "logistic_train": "Logistic regression: top-1, the crops it was fitted to, %",
    }  # fmt: skip
    made = []
    for name, title in found.items():
        points = [(row["epoch"], row[name]) for row in epochs if name in row]
        made.append(chart(title, points, x_label="epoch", marks=len(points) <= MARKED, floor=0.0))
    titles = {
        "loss": "Loss", "accuracy": "Contrastive accuracy: share whose positive is nearest", "lr": "Learning rate",
        "images_per_s": "Images per second (each with all its views)", "wait_share": "Share of time waiting for data",
        "std": "std of embeddings: 1 over the sphere, 0 collapsed",
    }  # fmt: skip
    floors = {"lr": 0.0, "images_per_s": 0.0, "wait_share": 0.0}
    for name in (key for key in (steps[0] if steps else {}) if key not in ("step", "epoch")):
        points = [(row["step"], row[name]) for row in steps]
        made.append(chart(titles.get(name, name), points, x_label="step", floor=floors.get(name)))
    return "".join(made)


def _views(picture: Path, recipe: str) -> str:
    if not picture.exists():
        return ""
    encoded = base64.b64encode(picture.read_bytes()).decode()
    image = f'<img alt="augmented views" src="data:image/png;base64,{encoded}">'
    return f"<h2>Views of the first batch, one column for each image</h2><p>{escape(recipe)}</p>{image}"


def _timing(steps: list[Row], epochs: list[Row]) -> dict[str, str]:
    train = sum(row.get("train_seconds", 0.0) for row in epochs)
    waited = sum(row.get("train_seconds", 0.0) * row.get("wait_share", 0.0) for row in epochs)
    facts = {"training": f"{train:,.0f} s"}
    for name, title in FOUND.items():
        if spent := [row[f"{name}_seconds"] for row in epochs if f"{name}_seconds" in row]:
            facts[title] = f"{sum(spent):,.0f} s"
    if steps and train:
        facts["images/s"] = f"{median(row['images_per_s'] for row in steps):,.0f} (median of {len(steps)} log lines)"
        facts["waiting for data"] = f"{100 * waited / train:.1f} % of the time in training"
    if routed := [row["routed"] for row in epochs if "routed" in row]:
        facts["finished by Albumentations"] = f"{100 * mean(routed):.1f} % of the views"
    return facts


def _settings(config: dict[str, object]) -> str:
    items = [(name, str(value)) for name, value in config.items() if value is not None]
    third = -(-len(items) // 3)
    return "".join(_table(dict(items[first : first + third])) for first in range(0, len(items), third))


def _table(facts: dict[str, str]) -> str:
    rows = (f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f"<table>{''.join(rows)}</table>"
