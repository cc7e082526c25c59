"""The JSON file beside a shard: class names, and how the shard was made. `NAME.beton` has `NAME.beton.json`.

A shard is complete without it (files written by the ffcv package have none); what it says is only believed
when it was written for that very file, which its record of the shard's length and header shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from penstock.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a shard's images come from and what was done to them."""

    source: str
    """Name of the source, such as `cifar10-train`."""
    fingerprint: str
    """The source's fingerprint at the time."""
    source_samples: int
    """Images in the source, the broken ones included."""
    options: dict[str, Any]
    """Encoding, quality and sizes asked for."""
    version: str
    """Penstock's version."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """Date and time, UTC, ISO 8601."""
    untouched: int
    """Images whose original bytes were passed through."""
    reencoded: dict[str, int]
    """Why images were not passed through, and how many for each reason."""
    skipped: list[dict[str, Any]]
    """Broken images left out: `sample` (the number in the source), `location` and `reason`."""
    part: str | None = None
    """`3/8` for the third of eight parts of the source; the counts above, but for `source_samples`, are the part's."""


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What lies beside a shard.

    Attributes:
        classes: class names, empty for an unlabelled set.
        provenance: how the shard was made.
        shard: what it was written for: `bytes`, `samples`, `header_sha256`, `index_sha256`.
        labels: positions in `classes`, for formats that would have to read the whole shard to learn them.
    """

    classes: tuple[str, ...]
    provenance: Provenance
    shard: dict[str, Any] = field(default_factory=dict)
    labels: list[int] | None = None


def sidecar_path(shard: Path) -> Path:
    return shard.with_name(shard.name + ".json")


def partial_path(path: Path) -> Path:
    """What a file beside a shard is called until the shard itself is there."""
    return path.with_name(f".{path.name}.partial")


def sidecar_bytes(sidecar: Sidecar) -> bytes:
    """The file's content."""
    return (json.dumps(asdict(sidecar), indent=1) + "\n").encode()


def read_sidecar(shard: Path, *, length: int, header_sha256: str, index_sha256: Callable[[], str]) -> Sidecar | None:
    """The sidecar of `shard`, or None where there is none.

    A conversion killed as it put its files in place leaves one under its partial name, beside the old shard or the
    new one. Which of them is there, the tables' digest tells: old and new may be alike in length and header.

    Raises:
        UserError: it cannot be read, or was written for another file.
    """
    path = sidecar_path(shard)
    killed = not path.exists()
    path = partial_path(path) if killed else path
    if not path.exists():
        return None
    try:
        read = json.loads(path.read_text())
        provenance = Provenance(**read["provenance"])
        sidecar = Sidecar(**(read | {"classes": tuple(read["classes"]), "provenance": provenance}))
        fits = (sidecar.shard["bytes"], sidecar.shard["header_sha256"]) == (length, header_sha256)
        fits = fits and (not killed or sidecar.shard["index_sha256"] == index_sha256())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not readable ({error!r}): remove it to go on without class names") from error
    if not fits and killed:
        again = f"run it again with --overwrite, or remove {path} to go on without class names"
        raise UserError(f"{shard}: the conversion that was to replace it was interrupted: {again}")
    if not fits:
        raise UserError(f"{path}: belongs to another file than {shard}, or {shard} is cut short: convert it again")
    return sidecar
