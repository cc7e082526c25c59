"""A stand-in for the engine's commands, which logs and saves as they do and takes no step, and images for real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from penstock.engine import runs
from penstock.engine.checkpoint import save_checkpoint

TRAIN = """import shutil, signal, sys, time
from pathlib import Path

stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
given = dict(zip(sys.argv[1:], sys.argv[2:]))
out = Path(given["--out"]) if "--out" in given else Path(given["--resume"]).parent
with (out / "words.txt").open("a") as file:
    print(*sys.argv[1:], file=file)
print("begins", flush=True)
{first}
log = out / "epochs.csv"
if not log.exists():
    log.write_text("epoch,step,knn\\n0,0,10\\n")
for epoch in range(len(log.read_text().splitlines()) - 1, {epochs} + 1):
    time.sleep({seconds})
    if stopped:
        time.sleep(0.7)
        shutil.copy(Path(__file__).parent / f"{{epoch - 1}}.pt", out / "last.pt")
        print("saved", len(stopped))
        sys.exit(143)
    with log.open("a") as file:
        file.write(f"{{epoch}},{{epoch}},{{20 + epoch}}\\n")
    shutil.copy(Path(__file__).parent / f"{{epoch}}.pt", out / "last.pt")
"""
EVALUATE = """import sys
from pathlib import Path

print("evaluates", *sys.argv[2:], "on", Path(sys.argv[1]).name)
"""


def stub_engine(
    folder: Path, patch: pytest.MonkeyPatch, *, epochs: int = 3, seconds: float = 0, first: str = ""
) -> None:
    """Have runs carried out by stubs that lie in `folder`.

    Args:
        epochs: of each run.
        seconds: that an epoch takes.
        first: what is done before the first epoch, in Python; `out` is the run's folder.
    """
    (folder / "evaluate").mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(TRAIN.format(epochs=epochs, seconds=seconds, first=first))
    (folder / "evaluate/run.py").write_text(EVALUATE)
    for epoch in range(epochs + 1):
        save_checkpoint(folder / f"{epoch}.pt", {"position": {"epoch": epoch, "consumed": 0, "step": epoch}})
    patch.setattr(runs, "ENGINE", folder)
    patch.setattr(runs, "PAUSE", 0.02)
    patch.setattr(runs, "git_commit", lambda: "a1")


def small_images(folder: Path) -> Path:
    """64 images to train on and 16 to validate on, of two classes: quicker made than `shapes`."""
    random = np.random.default_rng(0)
    for part, count in (("train", 32), ("val", 8)):
        for name in ("dark", "light"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 128, (16, 16, 3)) + 127 * (name == "light")
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{number}.png")
    return folder
