"""The shard formats by their suffix: `.beton`, and `.tar` for WebDataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.errors import UserError
from penstock.loaders.beton import BetonSource, BetonWriter
from penstock.loaders.shard import ShardWriter
from penstock.loaders.sidecar import Provenance, Sidecar, sidecar_bytes, sidecar_path
from penstock.loaders.webdataset import WebDatasetSource, WebDatasetWriter, index_path

Shard = BetonSource | WebDatasetSource
SUFFIXES = {"beton": ".beton", "webdataset": ".tar"}
WRITERS: dict[str, type[ShardWriter]] = {".beton": BetonWriter, ".tar": WebDatasetWriter}


def resolve_format(destination: Path, format: str | None) -> Path:
    """The shard's path, with its suffix. Raises UserError where that and the format disagree."""
    if format is not None and format not in SUFFIXES:
        raise UserError(f"--format {format!r} is not known: choose one of {', '.join(SUFFIXES)}")
    if not destination.suffix and format:
        return destination.with_suffix(SUFFIXES[format])
    if destination.suffix not in WRITERS or (format and SUFFIXES[format] != destination.suffix):
        raise UserError(f"{destination}: a shard is called NAME.beton, or NAME.tar for WebDataset: give it such a name")
    return destination


def open_shard(path: Path, *, keep_index: bool = True) -> Shard:
    """Open a shard by its suffix; `keep_index`: see `WebDatasetSource`. Raises UserError."""
    if resolve_format(path, None).suffix == ".beton":
        return BetonSource(path)
    return WebDatasetSource(path, keep_index=keep_index)


def tables_changed(shard: Shard) -> bool:
    """Whether its tables are not those that its sidecar was written for; False where there is no sidecar."""
    return shard.sidecar is not None and shard.sidecar.shard["index_sha256"] != shard.index_sha256()


def beside(
    shard: Path, writer: ShardWriter, record: dict[str, Any], classes: tuple[str, ...], provenance: Provenance
) -> dict[Path, bytes]:
    """The files that belong beside a shard, by their paths: the sidecar, and the index where the format has one."""
    sidecar = Sidecar(classes=classes, provenance=provenance, shard=record, labels=writer.labels)
    files = {sidecar_path(shard): sidecar_bytes(sidecar)}
    return files if writer.index is None else files | {index_path(shard): writer.index}
