"""How far each executor is from the reference, in grey levels.

    python benchmarks/parity.py        # rewrites docs/parity.md; cells of what cannot run here stay as they are

Where there is a GPU, `fused_gpu` runs there; else only with `--interpreted`. Without Albumentations, operations and
recipes that the reference has from it are passed over, and named.

On photographs that the repository draws itself (the data set `shapes`), so the figures can be had anywhere. Each
operation alone is fed what the reference made of the slots before it; whole chains run from the source image on.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass

from penstock.augment import RECIPES
from penstock.benchmarks.parity_measure import (
    INTERPRETER,
    PACKAGES,
    SIZE,
    STEPS,
    Figures,
    available,
    measure,
    photographs,
    where_fused_gpu_runs,
)
from penstock.errors import run_command
from penstock.files import write_whole
from penstock.options import read_options

PAGE = Path(__file__).resolve().parents[1] / "docs/parity.md"
COMMAND = "python benchmarks/parity.py"

ANTIALIASED = ("crop, bilinear, antialiased", "crop, cubic, antialiased")
# Why a figure is large: executor, operations, reason.
NOTES = (
    ("albumentations", ANTIALIASED, "OpenCV's resizing, which Albumentations uses, does not antialias."),
    ("albumentations", ("saturation", "gray"), "OpenCV rounds the grey value that torchvision truncates."),
    ("albumentations", ("hue",), "OpenCV's HSV has 8 bits, its hue steps of two degrees."),
    (
        "dali",
        ANTIALIASED,
        "At a crop's border DALI repeats the outermost pixels, where torch cuts its filter off there.",
    ),
    ("dali", ("crop, cubic",), "DALI's cubic kernel has a = -0.5, OpenCV's -0.75."),
    ("dali", ("saturation", "gray"), "DALI rounds the grey value that torchvision truncates."),
    ("dali", ("hue",), "DALI turns colours about the grey axis, in YIQ; torchvision shifts the hue of HSV."),
)


def render_page(figures: Figures, where: str) -> str:
    """docs/parity.md. Args: where: fused_gpu ran, as `where_fused_gpu_runs` has it."""
    return f"""# How far each executor is from the reference

Absolute differences in grey levels, 0 … 255, on the same rows and {len(photographs())} photographs that the repository
draws itself, as views of {SIZE} pixels. fused_gpu ran {where}, the others on a CPU.
`{COMMAND}` rewrites this page, on a machine with a GPU all of it; `tests/test_parity.py` holds it to the code.

## Each operation, fed what the reference made of the crop: mean / largest

An empty cell: the executor has no such operation and leaves it to Albumentations.

{_table("operation", tuple(STEPS), figures)}

{_notes()}

## Whole chains: mean / 99.9th percentile

From the source image on; rain and fog by Albumentations for every executor. CLAHE and solarize are left out: both turn
a difference of one level into many.

{_table("recipe", tuple(RECIPES), figures)}
"""


def _table(corner: str, labels: tuple[str, ...], figures: Figures) -> str:
    lines = [f"| {corner} | {' | '.join(PACKAGES)} |", "|---" * (1 + len(PACKAGES)) + "|"]
    for label in labels:
        cells = [_cell(figures.get((label, name)), _marks(name, label)) for name in PACKAGES]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(figure: tuple[float, float] | None, marks: str) -> str:
    return f"{figure[0]:.2f} / {figure[1]:.0f}{marks}" if figure else ""


def _marks(name: str, label: str) -> str:
    """The numbers of the notes on a cell."""
    notes = enumerate(NOTES, 1)
    return "".join(f" ({n})" for n, (executor, labels, _) in notes if executor == name and label in labels)


def _notes() -> str:
    return "\n".join(f"{n}. {executor}: {text}" for n, (executor, _, text) in enumerate(NOTES, 1))


def read_where(page: str) -> str:
    """Where fused_gpu ran for a page."""
    found = re.search(r"fused_gpu ran (.+), the others", page)
    return found[1] if found else INTERPRETER


def read_page(page: str) -> Figures:
    """The figures on a page."""
    figures: Figures = {}
    for line in page.splitlines():
        label, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if label in STEPS or label in RECIPES:
            for name, cell in zip(PACKAGES, cells, strict=True):
                numbers = re.match(r"([\d.]+) / (\d+)", cell)
                figures[label, name] = (float(numbers[1]), float(numbers[2])) if numbers else None
    return figures


@dataclass(frozen=True, kw_only=True)
class Config:
    interpreted: bool = False
    """Measure fused_gpu in Triton's interpreter where there is no GPU: ten minutes."""


def main(arguments: list[str] | None = None) -> int:
    config = read_options(Config, __doc__, arguments)
    names = available(interpreted=config.interpreted)
    written = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    where = where_fused_gpu_runs() if "fused_gpu" in names else read_where(written)
    page = render_page(read_page(written) | measure(names), where)
    write_whole(PAGE, lambda path: path.write_text(page, encoding="utf-8"))
    print(page)
    return 0


if __name__ == "__main__":
    run_command(main)
