"""Which rows a table has, and what each is told: the loaders with the storages that they read, peers, ceilings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from penstock.benchmarks import peers
from penstock.benchmarks.peers import PEERS
from penstock.benchmarks.photographs import FILES, Photographs, photographs
from penstock.benchmarks.rival import Row
from penstock.benchmarks.storages import Place, place, read_once
from penstock.loaders import LOADERS, Source, missing, open_source

BASELINE, DECODE_ONLY, READ_ONLY, SYNTHETIC = "torchvision", "decode-only", "read-only", "synthetic"
STORAGES = {  # what each of our loaders is measured on; `files` stands for the set as it is
    "folder": ("files",),
    "ffcv": ("jpeg", "raw"),
    "resident": ("raw",),
    "dali": ("webdataset",),
}
OURS = tuple(name for name in STORAGES if name in LOADERS)
SMALL = ("folder", "ffcv", "resident")  # the ones that are measured on CIFAR, which is pixels and no JPEG
LARGEST, LOOKED_AT = 224, 32  # a view's side unless told; images whose size tells whether that is too large


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rows of a table have in common: see `throughput.Config`."""

    recipe: str
    size: int
    views: int | None
    batch: int
    executor: str
    fallback: tuple[str, ...]
    threads: int


@dataclass(kw_only=True)
class Table:
    """Rows that run against each other.

    Attributes:
        name: the set's.
        places: where each storage lies.
        waiting: the most CPUs' worth of time that rows used while they should rest.
    """

    name: str
    setting: Setting
    files: Photographs
    places: dict[str, Place]
    rows: list[Row]
    waiting: float = 0.0

    def task(self, row: Row) -> dict[str, Any]:
        """What `benchmarks/worker.py` reads."""
        there = self.places[row.storage] if row.storage else next(iter(self.places.values()))
        return {"loader": row.loader, "data": there.data, "limit": there.limit, **asdict(self.setting)}

    def own_rows(self) -> list[Row]:
        """The baseline's and our loaders', as far as they can run here."""
        return [row for row in self.rows if row.group in ("baseline", "ours") and not row.error]

    def within(self, cpus: int) -> Table:
        """Those rows once more, on so many CPUs."""
        rows = [replace(row, workers=cpus, repeats=[], cpu=[], memory=[], tried={}) for row in self.own_rows()]
        return replace(self, setting=replace(self.setting, threads=cpus), rows=rows)


def plan_photographs(data: str, setting: Setting, *, loaders: Sequence[str], others: Sequence[str], name: str) -> Table:
    """The table of a set of images: our loaders and the peers that are asked for, each on the storages it reads."""
    files = photographs(data, batch=setting.batch)
    own = open_source(files.data, limit=files.limit).storage
    rows = [Row(loader=BASELINE, storage="files", group="baseline", workers=setting.threads)]
    rows += [_ours(loader, storage, setting) for loader in loaders for storage in STORAGES[loader]]
    rows += [_peer(peer, storage, setting, own) for peer in others for storage in PEERS[peer].storages]
    for row in rows:
        row.storage = own if row.storage == "files" else row.storage
    return _table(name, setting, files, [*rows, *_ceilings(rows, setting)])


def plan_cifar(data: str, setting: Setting, *, loaders: Iterable[str], name: str) -> Table:
    """The table of small images that are kept as arrays."""
    files = photographs(data, batch=setting.batch)
    own = open_source(files.data, limit=files.limit).storage
    rows = [Row(loader=BASELINE, storage=own, group="baseline", workers=setting.threads)]
    for loader in (loader for loader in SMALL if loader in loaders):
        rows.append(_ours(loader, own if loader == "folder" else "raw", setting))
    return _table(name, setting, files, [*rows, *_ceilings([], setting)])


def _table(name: str, setting: Setting, files: Photographs, rows: list[Row]) -> Table:
    """The table, its shards made and read once."""
    storages = dict.fromkeys(row.storage for row in rows if row.storage and not row.error)
    places = {storage: place(storage, files, workers=setting.threads) for storage in storages}
    for there in places.values():
        read_once(there)
    return Table(name=name, setting=setting, files=files, places=places, rows=rows)


def _ours(loader: str, storage: str, setting: Setting) -> Row:
    return Row(loader=loader, storage=storage, workers=setting.threads, error=missing(loader))


def _peer(name: str, storage: str, setting: Setting, own: str) -> Row:
    error = peers.missing(name)
    if storage == "files" and own != FILES:
        error = f"it reads files, and this set is {own}"
    note = PEERS[name].note
    return Row(loader=name, storage=storage, group="peer", workers=setting.threads, note=note, error=error)


def _ceilings(rows: list[Row], setting: Setting) -> list[Row]:
    """Decoding alone for each storage of the rows that has something to decode, reading for raw; and noise."""
    storages = dict.fromkeys(row.storage for row in rows if row.storage != "arrays" and not row.error)
    names = {storage: READ_ONLY if storage == "raw" else DECODE_ONLY for storage in storages}
    found = [
        Row(loader=name, storage=storage, group="ceiling", workers=setting.threads) for storage, name in names.items()
    ]
    return [*found, Row(loader=SYNTHETIC, group="ceiling", workers=setting.threads)]


def default_size(source: Source) -> int:
    """The side of a view: 224 pixels, or that of the set's own images where they are smaller."""
    looked_at = range(0, len(source), max(1, len(source) // LOOKED_AT))
    return min(LARGEST, int(median(min(source.decode(i).shape[:2]) for i in looked_at)))
