"""What is compiled before a loader's first batch: all of it, announced where it takes long."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from penstock.augment import jit
from penstock.errors import NotWritten
from penstock.loaders import pipeline
from penstock.loaders.pipeline import compile_views

# In a process of its own, where no other test has had anything compiled.
COMPILED = """
import numpy as np
from penstock.augment import draw, fused_cpu, load_recipe
from penstock.augment.draw import _draw_view
from penstock.loaders import make_loader
from penstock.loaders.sources import ImageArrays

source = ImageArrays(np.zeros((16, 20, 20, 3), np.uint8), np.zeros(16, np.int64), ("a",), "zeros")
recipe = load_recipe("albumentations-7", size=16)
options = {"recipe": recipe, "batch": 16, "workers": 1, "executor": "fused_cpu", "fallback": ["clahe"]}
with make_loader("folder", source, **options) as loader:
    assert (loader.executor.rows, loader.executor.routed) == (0, 0)
    before = [list(function.signatures) for function in (_draw_view, fused_cpu._run, fused_cpu._write)]
    for epoch in range(4):  # chunks of 4 samples, in which none, one or several views go around
        list(loader.epoch(epoch))
    after = [list(function.signatures) for function in (_draw_view, fused_cpu._run, fused_cpu._write)]
assert loader.executor.routed > 0 and all(before) and before == after, (before, after)
"""


def test_nothing_is_left_to_compile_for_the_first_batch():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_long_compilation_is_announced(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jit, "cache_folder", lambda: str(tmp_path))
    compile_views.__wrapped__(speaks=False)
    assert capsys.readouterr().err == ""
    compile_views.__wrapped__(speaks=True)
    assert capsys.readouterr().err.startswith("compiling the augmentation")


def test_what_was_compiled_before_is_not_announced(capsys):
    compile_views.__wrapped__(speaks=False)  # for sure now
    compile_views.__wrapped__(speaks=True)
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jit, "cache_folder", lambda: str(tmp_path))
    monkeypatch.setattr(pipeline, "_call_once", full)
    with pytest.raises(NotWritten, match=r"cannot be written \(No space left on device\); make room there"):
        compile_views.__wrapped__(speaks=False)
