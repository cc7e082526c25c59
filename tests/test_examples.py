"""The examples run as their docstrings say; a run in plain PyTorch that is stopped and gone on with ends the same."""

from __future__ import annotations

import os
import pickle
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.augment import load_recipe
from penstock.loaders import make_loader, open_source

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(ROOT.glob("docs/examples/*.py"))
NEEDS = {"lightly_loop": "lightly", "solo_learn_loop": "lightning"}
IMAGES, BATCH = 24, 8
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / f"{i}.jpg")
    return folder


def attempt(example, *arguments):
    package = NEEDS.get(example.stem)
    if package and find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -e '.[examples]' in a clone brings it")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(example), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def run(example, *arguments):
    """What it prints."""
    done = attempt(example, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def losses(text):
    return [float(number) for number in re.findall(r"loss:? (\d+\.\d+)", text)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example, photos):
    options = ["--data", photos, "--size", 16, "--batch", BATCH, "--epochs", 2]
    found = losses(run(example, *options))
    assert found and all(map(np.isfinite, found))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_a_wrong_path_is_said_in_one_line(example, tmp_path):
    done = attempt(example, "--data", tmp_path)  # an empty folder
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len(said) == 1 and said[0].startswith(f"penstock: {tmp_path}: no images here")


def test_there_are_examples_for_each_package():
    assert {path.stem for path in EXAMPLES} == {"plain_pytorch", *NEEDS}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_read_on_one_page(example):
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 80


def test_the_plain_loop_goes_on_where_it_was_stopped(photos, tmp_path):
    """In the middle of the second epoch."""
    train = runpy.run_path(str(ROOT / "docs/examples/plain_pytorch.py"))["main"]
    options = {"data": str(photos), "size": 16, "batch": BATCH, "epochs": 2}
    train(**options, checkpoint=tmp_path / "new" / "whole.pt")
    train(**options, checkpoint=tmp_path / "parts.pt", steps=4)
    state = torch.load(tmp_path / "parts.pt")["batches"]
    assert (state["epoch"], state["consumed"]) == (1, BATCH)
    train(**options, checkpoint=tmp_path / "parts.pt")
    whole, parts = torch.load(tmp_path / "new" / "whole.pt"), torch.load(tmp_path / "parts.pt")
    assert whole["batches"] == parts["batches"]
    for name, weight in whole["model"].items():
        torch.testing.assert_close(parts["model"][name], weight)


def test_the_adapter_gives_solo_learns_batches(photos):
    if find_spec("lightning") is None:
        pytest.skip("lightning is not installed: pip install -e '.[examples]' in a clone brings it")
    SoloBatches = runpy.run_path(str(ROOT / "docs/examples/solo_learn_loop.py"))["SoloBatches"]
    recipe = load_recipe("multi-crop", size=32)
    with make_loader("folder", open_source(str(photos)), recipe=recipe, batch=BATCH, workers=1) as loader:
        batches = SoloBatches(loader)
        index, crops, label = next(iter(batches))
        assert len(batches) == IMAGES // BATCH and index.shape == label.shape == (BATCH,)
        assert len(crops) == recipe.count and {len(crop) for crop in crops} == {BATCH}
        again = next(loader.epoch(0)).groups[1]
        assert torch.equal(crops[3], again[BATCH : 2 * BATCH])  # the second small crop of each image


def test_a_loop_that_counts_its_batches_gets_whole_epochs(photos):
    """As Lightning does, which never learns that an epoch has ended."""
    recipe = load_recipe("moco-v2", size=32)
    with make_loader("folder", open_source(str(photos)), recipe=recipe, batch=BATCH, workers=1) as loader:
        first, second = ([views.index.tolist() for views in islice(loader, len(loader))] for _ in range(2))
        assert len(first) == len(second) == IMAGES // BATCH and first != second
        assert pickle.loads(pickle.dumps(loader.state_dict()))["epoch"] == 2
