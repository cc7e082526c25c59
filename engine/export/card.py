"""The model card: what a network is, how it was trained, how good it is, and how each file of it is loaded.

Figures are of these very weights: those of the run's epochs.csv if the checkpoint is of an epoch's end, and those of an
evaluation (the sweep's that the run is of, or a user's) whose results.json has their digest, under the images that it
was done on. Folders of this machine are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from penstock import __version__
from penstock.engine.checkpoint import load_checkpoint
from penstock.engine.config import CompleteConfig, to_dict
from penstock.engine.csv_log import read_csv
from penstock.engine.evaluate.trained import Trained, describe, digest
from penstock.engine.export.format import Format, Network
from penstock.engine.runs import DOWNSTREAM

OF_THE_MACHINE = ("out", "resume", "device", "workers", "memory_budget", "log_every", "save_every", "checkpoint_steps")
PLACES = ("data", "val_data", "class_list", "init")
PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime")
LOGGED = {  # columns of epochs.csv
    "loss": "loss",
    "knn": "kNN ({knn_features}, k {knn_k}, T {knn_temperature:g}), validation, top-1 %",
    "logistic": "logistic regression, validation, top-1 %",
}
Rows = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a network comes from.

    Attributes:
        file: its checkpoint, or weights from elsewhere.
        trained: what was found there.
        epochs: how many it was trained for; None for weights from elsewhere.
        whole: whether it is from an epoch's end: in the middle of one, no figure of the log is of these weights.
    """

    file: Path
    trained: Trained
    epochs: int | None
    whole: bool = True

    @property
    def run(self) -> CompleteConfig | None:
        return self.trained.run


def origin_of(file: Path, trained: Trained) -> Origin:
    if trained.run is None:
        return Origin(file=file, trained=trained, epochs=None)
    position = load_checkpoint(file, what="")["position"]
    return Origin(file=file, trained=trained, epochs=position["epoch"], whole=position["consumed"] == 0)


def about(origin: Origin, *, arch: str, width: int, stem: str) -> dict[str, str]:
    """What the network is and how it was trained, by names: files carry it along."""
    told = {"network": describe(arch, width, stem), "exported_by": f"penstock {__version__}"}
    run, recipe = origin.run, origin.trained.recipe
    if run is None or recipe is None:
        return {**told, "weights": origin.file.name}
    trained_by = {"method": run.method, "data": name_of(run.data), "recipe": recipe.name}
    trained_by |= {"began_with": run.init.name} if run.init else {}
    taken = {} if origin.whole else {"taken": f"in the middle of epoch {(origin.epochs or 0) + 1}"}
    return {**told, **trained_by, "epochs": f"{origin.epochs} of {run.epochs}", **taken}


def name_of(place: str) -> str:
    """`cifar10` of `cifar10:FOLDER`, and the last part of a path."""
    return Path(place.partition(":")[0]).name


def card(network: Network, origin: Origin, formats: Sequence[Format]) -> str:
    """The whole card, as Markdown."""
    run = origin.run
    parts = [
        front_matter(run),
        f"# {network.name}{f' by {run.method} on {name_of(run.data)}' if run else ''}",
        what(network),
        "## Input",
        pixels(network, known=run is not None),
        "## Files",
        *(f"### {form.about}: `{form.file}`\n\n{form.usage(network)}" for form in formats),
        "## Results",
        results(origin),
        "## Training",
        training(origin),
        "## Versions",
        versions(),
        "## Licence",
        "For whoever trained it to choose: here, and in the first lines of this file.",
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(run: CompleteConfig | None) -> str:
    """What the Hugging Face Hub reads of a card."""
    tags = ["self-supervised-learning", "penstock", *([run.method] if run else [])]
    lines = ["# license: apache-2.0", "pipeline_tag: image-feature-extraction", f"tags: [{', '.join(tags)}]"]
    return "\n".join(["---", *lines, "---"])


def what(network: Network) -> str:
    about = network.about
    trained = f", trained without labels for {about['epochs']} epochs" if "epochs" in about else ""
    began = f", from the weights of `{about['began_with']}` on" if "began_with" in about else ""
    taken = f", taken {about['taken']}" if "taken" in about else ""
    return (
        f"A backbone that makes features of images: {about['network']}{trained}{began}{taken}. It has no classifier,"
        " and the projection head of its training is left out."
    )


def pixels(network: Network, *, known: bool) -> str:
    mean, std = (", ".join(map(str, values)) for values in (network.mean, network.std))
    source = "as in training" if known else "usual for ImageNet; what it was trained with is not known here"
    return (
        f"RGB images of {network.size} × {network.size}, pixels scaled to 0 … 1, less the mean ({mean}), divided by the"
        f" standard deviation ({std}): {source}."
    )


def results(origin: Origin) -> str:
    tables = [("In training:", logged(origin)), *evaluated(origin)]
    return "\n\n".join(f"{title}\n\n{table(rows)}" for title, rows in tables if rows) or "None are known."


def table(rows: Rows) -> str:
    return "\n".join(["| measure | |", "|---|---|", *(f"| {measure} | {figure} |" for measure, figure in rows)])


def logged(origin: Origin) -> Rows:
    """What the run's log says of the checkpoint's epoch, where that is over."""
    if origin.run is None or not origin.whole:
        return []
    by_epoch = {row["epoch"]: row for row in read_csv(origin.file.parent / "epochs.csv")}
    row, first = by_epoch.get(origin.epochs or 0, {}), by_epoch.get(0, {})
    found = [(said.format(**vars(origin.run)), f"{row[name]:.4g}") for name, said in LOGGED.items() if name in row]
    if "knn" in row and "knn" in first and row is not first:
        before = f"the weights it began with (`{origin.run.init.name}`)" if origin.run.init else "the untrained network"
        found.append((f"the same kNN of {before}", f"{first['knn']:.4g}"))
    return found


def evaluated(origin: Origin) -> Iterator[tuple[str, Rows]]:
    """What each evaluation beside the checkpoint was done on, and what it found, where it is of the same weights."""
    weights = digest(origin.trained.encoder.backbone)
    for folder in (DOWNSTREAM, "evaluation"):
        path = origin.file.parent / folder / "results.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if found.get("weights") == weights and found["settings"]["features"] == "backbone":
            title = f"Evaluated at {found['settings']['size']} px on {found['images']}:"
            yield title, list(accuracies(found["figures"]["trained"]))


def accuracies(protocols: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for protocol, figures in protocols.items():
        how = f" (k {figures['k']}, T {figures['temperature']:g})" if protocol == "knn" else ""
        for measure, said in (("top1", "top-1"), ("top5", "top-5")):
            if measure in figures["validation"]:
                yield f"{protocol}{how}, validation, {said} %", f"{figures['validation'][measure]:.2f}"


def training(origin: Origin) -> str:
    """The views and the settings of the run."""
    run, recipe = origin.run, origin.trained.recipe
    if run is None or recipe is None:
        return f"The weights are those of `{origin.file.name}`; this card knows no more of them."
    settings = {name: value for name, value in to_dict(run).items() if value is not None and name not in OF_THE_MACHINE}
    settings |= {name: name_of(settings[name]) for name in PLACES if name in settings} | {"recipe": recipe.name}
    written = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
    return f"Views: `{recipe}`\n\nSettings of Penstock's `engine/train.py`:\n\n```yaml\n{written}```"


def versions() -> str:
    found = [f"penstock {__version__}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return "Exported with " + ", ".join(found) + "."
