"""Where a benchmark leaves its figures: JSON and the picture drawn from it, each whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.errors import UserError
from penstock.files import write_whole

PICTURES = (".png", ".svg", ".pdf")


def check_places(*, json: Path | None, plot: Path | None) -> None:
    """Refuse, before anything is measured, what could not be written afterwards. Raises UserError."""
    for path in (json, plot):
        if path and path.is_dir():
            raise UserError(f"{path}: this is a folder; name a file in it")
        if path and not path.resolve().parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.resolve().parent}; create it, or name another file")
    if plot and plot.suffix not in PICTURES:
        raise UserError(f"--plot {plot}: the name must end in .png, .svg or .pdf")


def write_results(
    report: dict[str, Any],
    draw_chart: Callable[[dict[str, Any], Path], None],
    *,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Write the report, and its picture. Raises UserError where that fails; nothing half-written is left."""
    if json_file:
        text = json.dumps(report, indent=2) + "\n"
        write_whole(json_file, lambda path: path.write_text(text, encoding="utf-8"))
    if plot:
        write_whole(plot, lambda path: draw_chart(report, path))
