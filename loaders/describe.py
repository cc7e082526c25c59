"""What a shard holds and how it was made, as a table.

python loaders/convert.py --inspect train.beton
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.table import Table

from penstock.loaders.beton import RAW, BetonSource
from penstock.loaders.decode import image_size
from penstock.loaders.formats import Shard, tables_changed
from penstock.loaders.report import changes
from penstock.loaders.sidecar import sidecar_path
from penstock.loaders.webdataset import index_path


def describe(shard: Shard) -> Table:
    """What a shard holds and how it was made, as a table to print."""
    table = Table(title=str(shard.path), show_header=False)
    for row in [*_contents(shard), *_history(shard)]:
        table.add_row(*row)
    return table


def _contents(shard: Shard) -> Iterator[tuple[str, str]]:
    labelled = np.unique(shard.labels[shard.labels >= 0])
    yield "images", f"{len(shard)}, {shard.storage}"
    if isinstance(shard, BetonSource):
        raw = int((shard.images["mode"] == RAW).sum())
        yield "stored as", f"{len(shard) - raw} JPEG, {raw} RAW"
        height, width = shard.images["height"], shard.images["width"]
        yield "format", f"beton version 2, pages of {shard.page_size >> 20} MiB; the ffcv package opens it"
    else:
        measured = np.linspace(0, len(shard) - 1, min(len(shard), 1000)).astype(int)
        height, width = np.array([image_size(shard.encoded(i), shard.location(i)) for i in measured.tolist()]).T
        index = index_path(shard.path)
        beside = f"with {index.name}" if index.exists() else "without an index"
        yield "format", f"tar {beside}; DALI and the webdataset package open it"
    yield "checksums", "one for each image: --verify tests them" if shard.checksums else "none"
    yield "classes", f"{len(shard.classes)}: {_some(shard.classes)}" if len(labelled) else "none: unlabelled"
    yield "file", f"{shard.path.stat().st_size / 1e6:.1f} MB"
    for what, values, unit in (("height", height, "px"), ("width", width, "px"), ("bytes", shard.lengths, "")):
        smallest, median, largest = values.min(), np.median(values), values.max()
        yield what, f"min {smallest}, median {median:.0f}, max {largest} {unit}".rstrip()


def _history(shard: Shard) -> Iterator[tuple[str, str]]:
    if shard.sidecar is None:
        yield "made", f"unknown: there is no {sidecar_path(shard.path).name}, so class names are numbers"
        return
    made = shard.sidecar.provenance
    yield "made", f"{made.created} by penstock {made.version}"
    yield "source", f"{made.source}, {made.source_samples} images, fingerprint {made.fingerprint[:16]}"
    yield "options", ", ".join(f"{name} {value}" for name, value in made.options.items() if value is not None)
    yield "images", changes(made.untouched, made.reencoded)
    yield "skipped", f"{len(made.skipped)} broken" + "".join(f"\n{s['location']}: {s['reason']}" for s in made.skipped)
    if made.part:
        yield "part", f"{made.part} of the source: --join makes them one"
    changed = tables_changed(shard)
    yield "tables", "CHANGED since they were written: convert or copy it again" if changed else "as written"


def _some(names: tuple[str, ...], limit: int = 10) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
