"""What an evaluation leaves in its folder: the first two files after each protocol, the others at the end.

    OUT/results.json    every figure, the settings, the machine
    OUT/per_class.csv   precision, recall, F1 and images of every class, for each classifier
    OUT/confusion.png   which classes are taken for which
    OUT/curves.png      loss and top-1 of the classifiers that were trained on augmented images, epoch by epoch
    OUT/map.png         the validation images' embeddings in the plane
    OUT/report.html     all of it in one page that needs nothing beside it

C classes.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from penstock.engine.csv_log import read_csv
from penstock.engine.evaluate.features import Features
from penstock.engine.evaluate.pictures import draw_confusions, draw_curves, draw_map, embedding_map
from penstock.engine.evaluate.protocols import Outcome
from penstock.engine.evaluate.scores import ClassReport, class_report
from penstock.engine.report import STYLE
from penstock.files import write_whole

FILES = ("results.json", "per_class.csv", "confusion.png", "curves.png", "map.png", "report.html")
MEASURES = {  # name in results.json: (name in tables, what it says)
    "top1": ("top-1, %", ""),
    "top5": ("top-5, %", ""),
    "alignment": ("alignment", "mean squared distance of two views of an image; 0: all alike"),
    "uniformity": ("uniformity", "log mean exp(−2 d²) over pairs of images; the lower, the more evenly spread"),
    "std": ("std", "of normalised embeddings times √D; about 1: spread over the sphere, 0: collapsed"),
    "centres_mean": ("class centres, mean", "mean of μₖ·μₗ over pairs of classes; the lower, the further apart"),
    "centres_max": ("class centres, nearest", "the largest μₖ·μₗ"),
    "embedding_radius": ("concentration of embeddings, radius", "from below, of the class that is least concentrated"),
    "embedding_diameter": ("concentration of embeddings, diameter", "from above"),
    "pixel_radius": ("concentration of pixels, radius", "the same between views as such: the augmentation's own"),
    "pixel_diameter": ("concentration of pixels, diameter", "from above"),
}
Networks = Mapping[str, Mapping[str, Outcome]]  # by network, trained or untrained, and by protocol
Row = tuple[str, str, dict[str, str]]  # protocol, measure, figures by column


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an evaluation found.

    Attributes:
        networks: of each network and protocol.
        classes: names, C of them.
        about: what was evaluated and how: checkpoint, network, images, settings, machine.
    """

    networks: Networks
    classes: Sequence[str]
    about: Mapping[str, Any]


def write_report(out: Path, findings: Findings, mapped: Features | None, *, seed: int) -> Path:
    """Write everything into `out`, in place of what an earlier evaluation left there; return the page's path.

    Args:
        mapped: features of the images on the map; None: no map.
    """
    write_figures(out, findings)
    reports = class_reports(findings)
    if reports:
        confusions = {name: report.confusion for name, report in reports.items()}
        write_whole(out / "confusion.png", lambda path: draw_confusions(confusions, findings.classes, path))
    logs = {name: read_csv(out / f"{name}.csv") for name in findings.networks["trained"]}
    if trained := {name: rows for name, rows in logs.items() if rows}:
        write_whole(out / "curves.png", lambda path: draw_curves(trained, path))
    if mapped is not None:
        places, labels = embedding_map(mapped.unit, seed=seed), mapped.labels.cpu().numpy()
        write_whole(out / "map.png", lambda path: draw_map(places, labels, findings.classes, path))
    return write_html(out, findings, reports)


def write_figures(out: Path, findings: Findings) -> None:
    """Write the figures there are so far, without the pictures and the page; an earlier evaluation's go."""
    write_results(out, findings)
    for name in FILES[1:]:
        (out / name).unlink(missing_ok=True)
    if reports := class_reports(findings):
        write_per_class(out, reports, findings.classes)


def class_reports(findings: Findings) -> dict[str, ClassReport]:
    """Of every protocol that classified the validation images by the trained network."""
    return {
        protocol: class_report(outcome.predicted, outcome.labels, classes=len(findings.classes))
        for protocol, outcome in findings.networks["trained"].items()
        if outcome.predicted is not None and outcome.labels is not None
    }


def table(networks: Networks) -> tuple[list[str], list[Row]]:
    """The columns and the rows in which all outcomes are shown."""
    columns = [f"{part}{suffix}" for _, suffix in _suffixes(networks) for part in ("train", "validation")]
    rows = []
    for protocol in dict.fromkeys(name for outcomes in networks.values() for name in outcomes):
        measures = next(outcomes[protocol].val for outcomes in networks.values() if protocol in outcomes)
        for measure in (name for name in measures if name in MEASURES):
            figures = {}
            for network, suffix in _suffixes(networks):
                outcome = networks[network].get(protocol)
                if outcome is not None:
                    figures[f"train{suffix}"] = _number(measure, outcome.train[measure])
                    figures[f"validation{suffix}"] = _number(measure, outcome.val[measure])
            rows.append((protocol, MEASURES[measure][0], figures))
    return columns, rows


def _suffixes(networks: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(name, "" if name == "trained" else f", {name}") for name in networks]


def _number(measure: str, value: float) -> str:
    return f"{value:.2f}" if measure.startswith("top") else f"{value:.3f}"


def write_results(out: Path, findings: Findings) -> None:
    figures = {
        network: {
            protocol: {"train": o.train, "validation": o.val, **o.details, "seconds": round(o.seconds, 2)}
            for protocol, o in outcomes.items()
        }
        for network, outcomes in findings.networks.items()
    }
    text = json.dumps({**findings.about, "figures": figures}, indent=2, ensure_ascii=False) + "\n"
    write_whole(out / "results.json", lambda path: path.write_text(text, encoding="utf-8"))


def write_per_class(out: Path, reports: Mapping[str, ClassReport], classes: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["protocol", "class", "precision", "recall", "f1", "images"])
    for protocol, report in reports.items():
        figures = zip(classes, report.precision, report.recall, report.f1, report.support, strict=True)
        writer.writerows([protocol, name, *(f"{x:.6f}" for x in (p, r, f)), int(n)] for name, p, r, f, n in figures)
    write_whole(out / "per_class.csv", lambda path: path.write_text(text.getvalue(), encoding="utf-8"))


def write_html(out: Path, findings: Findings, reports: Mapping[str, ClassReport]) -> Path:
    """Write OUT/report.html from what was found and the pictures in OUT; return its path."""
    about = findings.about
    title = f"Evaluation of {about['checkpoint']}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(about['network'])}<br>{escape(about['images'])}</p>",
        _table_of(findings.networks),
        _picture(out / "confusion.png", "Which classes are taken for which (validation images, per cent)"),
        _picture(out / "curves.png", "Classifiers trained on augmented images, epoch by epoch"),
        _picture(out / "map.png", "Map of the validation images' embeddings"),
        _per_class(reports, findings.classes),
        _said_of_measures(findings.networks),
        f"<h2>Settings</h2><pre>{escape(json.dumps(about['settings'], indent=1, ensure_ascii=False))}</pre>",
        f"<h2>Machine</h2><p>{escape(', '.join(f'{k} {v}' for k, v in about['machine'].items()))}</p>",
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    page = f"{head}<style>{STYLE}{MORE}</style>" + "\n".join(body) + "</html>\n"
    write_whole(out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    return out / "report.html"


MORE = """
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; padding-left: 1.2rem }
th { text-align: left; font-weight: 600; padding: .1rem 1.2rem .3rem 0; border-bottom: 1px solid #e3e8ec }
img { image-rendering: auto } pre { font-size: 12px; line-height: 1.35; columns: 2; white-space: pre-wrap }
.scroll { max-height: 32rem; overflow: auto }
"""


def _table_of(networks: Networks) -> str:
    columns, rows = table(networks)
    body, last = [], ""
    for protocol, measure, figures in rows:
        cells = [figures.get(column, "") for column in columns]
        body.append([protocol if protocol != last else "", measure, *cells])
        last = protocol
    return _html_table(["protocol", "measure", *columns], body, words=2)


def _html_table(head: Sequence[str], body: Sequence[Sequence[str]], *, words: int) -> str:
    """The first columns hold words, the others figures."""
    kinds = ["" if i < words else ' class="n"' for i in range(len(head))]
    top = "".join(f"<th{kind}>{escape(cell)}</th>" for kind, cell in zip(kinds, head, strict=True))
    rows = ("".join(f"<td{k}>{escape(c)}</td>" for k, c in zip(kinds, row, strict=True)) for row in body)
    return f"<table><tr>{top}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _picture(path: Path, title: str) -> str:
    if not path.exists():
        return ""
    encoded = base64.b64encode(path.read_bytes()).decode()
    return f'<h2>{escape(title)}</h2><img alt="{escape(title)}" src="data:image/png;base64,{encoded}">'


def _per_class(reports: Mapping[str, ClassReport], classes: Sequence[str]) -> str:
    """One table: for each class its images, and precision, recall and F1 by every classifier."""
    if not reports:
        return ""
    head = ["class", "images", *(f"{name} {what}" for name in reports for what in ("precision", "recall", "F1"))]
    support = next(iter(reports.values())).support
    body = []
    for k, name in enumerate(classes):
        figures = [f"{100 * x[k]:.1f}" for r in reports.values() for x in (r.precision, r.recall, r.f1)]
        body.append([name, f"{support[k]:,}", *figures])
    return f'<h2>Class by class, per cent</h2><div class="scroll">{_html_table(head, body, words=1)}</div>'


def _said_of_measures(networks: Networks) -> str:
    used = {measure for outcomes in networks.values() for outcome in outcomes.values() for measure in outcome.val}
    body = [MEASURES[name] for name in MEASURES if name in used and MEASURES[name][1]]
    return f"<h2>What is measured</h2>{_html_table(['measure', ''], body, words=2)}" if body else ""
