"""A classifier's run, stopped, goes on as if it never had been; a finished one, or another one, is left as it is."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.augment import RECIPES
from penstock.engine.checkpoint import load_checkpoint
from penstock.engine.csv_log import read_csv
from penstock.engine.evaluate.classify import ClassifierResult
from penstock.engine.evaluate.linear import LinearClassifier
from penstock.engine.evaluate.supervised import Stopped, Training
from penstock.errors import UserError
from tests.tiny_classifier import FEATURES, SIZE, TINY, TRAIN, fit, images, tiny_backbone

pytestmark = pytest.mark.usefixtures("one_thread", "quick_checkpoints")
SPEED = ("images_per_s", "wait_share")
RUNS = {
    "probe": replace(TINY, schedule="cosine", warmup_epochs=0.5),
    "finetune": replace(TINY, finetune=True, optimizer="adam", lr=0.01, weight_decay=1e-3, label_smoothing=0.1),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClassifierResult]:
    """Uninterrupted runs."""
    return {
        name: fit(config, tmp_path_factory.mktemp(name), tiny_backbone(dropout=0.3)) for name, config in RUNS.items()
    }


@pytest.mark.parametrize(
    ("place", "call", "taken"), [("_step", 2, 2), ("_step", 4, 4), ("_step", 7, 7), ("_validate", 2, 4)]
)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_stopped_ends_bit_for_bit_where_another_does(
    name: str,
    place: str,
    call: int,
    taken: int,
    whole: dict[str, ClassifierResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a signal in a step within an epoch, in its last one, and while validating; no step is taken twice."""
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        count_calls(patch, place, signal_at=call)
        fit(RUNS[name], tmp_path, tiny_backbone(dropout=0.3))
    assert stopped.value.signal == signal.SIGTERM
    calls = count_calls(monkeypatch, "_step")
    resumed, expected = fit(RUNS[name], tmp_path, tiny_backbone(dropout=0.3)), whole[name]
    assert len(calls) == RUNS[name].epochs * (len(TRAIN) // RUNS[name].batch) - taken
    assert_equal(load_checkpoint(resumed.last_weights), load_checkpoint(expected.last_weights))
    assert_equal(load_checkpoint(resumed.best_weights), load_checkpoint(expected.best_weights))
    assert without_speed(read_csv(resumed.log)) == without_speed(read_csv(expected.log))
    assert resumed.train == expected.train and resumed.last.predicted.equal(expected.last.predicted)


def count_calls(patch: pytest.MonkeyPatch, name: str, *, signal_at: int | None = None) -> list[int]:
    """Holds a number for each call of a method of Training's; at one of them a signal comes."""
    calls, original = [], getattr(Training, name)

    def counted(self: Training, *arguments: Any) -> Any:
        calls.append(len(calls) + 1)
        if len(calls) == signal_at:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *arguments)

    patch.setattr(Training, name, counted)
    return calls


def assert_equal(ours: Any, theirs: Any, place: str = "") -> None:
    """Of nests of dictionaries and lists, bit for bit."""
    if isinstance(ours, dict | list | tuple):
        pairs = [(key, value) for key, value in (ours.items() if isinstance(ours, dict) else enumerate(ours))]
        assert len(ours) == len(theirs), place
        for key, value in pairs:
            assert_equal(value, theirs[key], f"{place}/{key}")
    else:
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs, place


def without_speed(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in SPEED} for row in rows]


def test_a_finished_run_gives_its_result_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fit(TINY, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", None)  # no step is taken
        again = fit(replace(TINY, workers=2, val_every=5), tmp_path)
    assert again.train == first.train and again.best.predicted.equal(first.best.predicted)
    assert [row["epoch"] for row in read_csv(again.log)] == [0, 1, 2, 3]
    anew = fit(replace(TINY, lr=0.1), tmp_path, resume=False)
    assert anew.train != first.train and len(read_csv(anew.log)) == 4


def test_a_run_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    short = replace(TINY, epochs=1)
    fit(short, tmp_path)
    other = tiny_backbone()
    other[1].running_mean += 1
    start = LinearClassifier(weight=torch.zeros(3, FEATURES), bias=torch.zeros(3))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"config": replace(short, lr=0.25)}, "trained with --probe-augmented.lr 0.5, not 0.25: choose another --out"),
        ({"config": replace(short, epochs=2)}, "--probe-augmented.epochs 1, not 2"),
        ({"backbone": other}, "a backbone with the digest"),
        ({"start": start}, "given weights at the start: False, not True"),
        ({"train": images(71)}, "so many training images: 72, not 71"),
        ({"like": RECIPES["moco-cifar"].resized(SIZE)}, "the recipe probe"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            fit(**{"config": short, "out": tmp_path} | options)


def test_a_file_that_is_no_checkpoint_is_named_as_it_lies(tmp_path: Path) -> None:
    (tmp_path / "probe-augmented-last.pt").write_text("no checkpoint")
    with pytest.raises(UserError, match=rf"^{tmp_path}/probe-augmented-last.pt: this is no checkpoint"):
        fit(TINY, tmp_path)
