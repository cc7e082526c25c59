"""From a published table to runs: in full they are as published, and what is cut changes what follows from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from penstock.engine import sweep as command
from penstock.engine.config import TrainConfig
from penstock.engine.runs import identity
from penstock.engine.systems import TABLES
from penstock.engine.systems.plan import Cut, differences, fitting, plan
from penstock.errors import UserError
from penstock.loaders import open_source


def config_of(table: str, cut: Cut, run: str) -> TrainConfig:
    return plan(TABLES[table], cut, seeds=1, only=[run])[0].runs[0].config


def test_in_full_a_table_is_as_published_with_its_seeds() -> None:
    cells = plan(TABLES["r1-subsets"], Cut(), seeds=3)
    assert [cell.runs[2].name for cell in cells[:2]] == ["simclr-abcde-seed2", "barlow-twins-abcde-seed2"]
    assert [run.config.seed for run in cells[0].runs] == [0, 1, 2]
    assert all(replace(cell.runs[0].config) == TrainConfig(**cell.entry.settings) for cell in cells)
    assert differences(cells, 50_000) == {}


def test_runs_and_classifiers_are_cut_in_the_same_ratio() -> None:
    demo = plan(TABLES["r2-demo"], Cut(epochs=2), seeds=1)
    assert {cell.entry.run: cell.runs[0].config.epochs for cell in demo}["symmetric-800"] == 8
    [cell, *_] = plan(TABLES["r4"], Cut(epochs=10), seeds=1)
    assert cell.runs[0].evaluation is not None
    assert cell.runs[0].evaluation.settings["probe-augmented.epochs"] == 1
    assert cell.runs[0].evaluation.settings["finetune.epochs"] == 1
    [cell, *_] = plan(TABLES["r4"], Cut(epochs=10, evaluate="--finetune.epochs 7"), seeds=1)
    assert cell.runs[0].evaluation is not None and cell.runs[0].evaluation.settings["finetune.epochs"] == "7"
    [cell, *_] = plan(TABLES["r4"], Cut(), seeds=1)
    assert cell.runs[0].evaluation == cell.entry.evaluation


def test_another_batch_changes_the_learning_rate_of_sgd_and_another_optimizer_drops_it() -> None:
    cut = config_of("r1-subsets", Cut(batch=128), "moco-abc")
    assert (cut.batch, cut.lr, cut.weight_decay) == (128, 0.01, 1e-3)
    cut = config_of("r1-subsets", Cut(batch=128, train="--optimizer adamw"), "moco-abc")
    assert (cut.optimizer, cut.lr, cut.weight_decay) == ("adamw", None, None)
    cut = config_of("r1-subsets", Cut(train="--optimizer adamw --weight-decay 0.1"), "moco-abc")
    assert (cut.lr, cut.weight_decay) == (None, 0.1)
    cut = config_of("r1-subsets", Cut(batch=128, train="--lr 0.5"), "moco-abc")
    assert cut.lr == 0.5
    cut = config_of("r1-subsets", Cut(batch=128, train="--lr 0.06"), "simclr-abc")
    assert cut.lr == 0.06, "told, though it is the published one"
    cut = config_of("r4", Cut(batch=64), "*")
    assert cut.lr == 1e-3, "Adam's stays"


def test_a_network_that_has_no_width_is_given_none() -> None:
    cut = config_of("r1-subsets", Cut(arch="convnext_tiny"), "moco-a")
    assert (cut.width, cut.stem) == (None, None)


def test_a_queue_that_is_too_long_for_the_images_becomes_the_default() -> None:
    cells = plan(TABLES["r1-subsets"], Cut(), seeds=1, only=["moco-a", "simclr-a"])
    assert fitting(cells, 8 * 4096) == cells
    assert [cell.runs[0].config.queue for cell in fitting(cells, 8 * 4096 - 1)] == [None, None]
    told = plan(TABLES["r1-subsets"], Cut(train="--queue 2048"), seeds=1, only=["moco-a"])
    assert fitting(told, 1000) == told


@pytest.mark.parametrize(
    ("table", "cut", "message"),
    [
        ("r1-subsets", {"train": "--seed 3"}, "--seed is what the sweep gives each"),
        ("r1-subsets", {"train": "--out here"}, "--out is what the sweep gives each"),
        ("r1-subsets", {"train": "--subset 100"}, "--subset is given to the sweep itself"),
        ("r1-subsets", {"train": '--recipe "a'}, "a quotation mark in it has no partner"),
        ("r4", {"evaluate": '--finetune.epochs "1'}, "a quotation mark in it has no partner"),
        ("r1-subsets", {"evaluate": "--finetune.epochs 1"}, "r1-subsets is of figures that training logs"),
        ("r4", {"evaluate": "--finetune.epochs"}, "type pairs, as in"),
    ],
)
def test_words_that_are_not_the_runs_own_are_refused(table: str, cut: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(TABLES[table], Cut(**cut), seeds=1)


def test_what_follows_from_a_cut_is_among_the_differences() -> None:
    cut = Cut(data="cifar10:.", subset=10_000, epochs=8, batch=128)
    cells = fitting(plan(TABLES["r1-subsets"], cut, seeds=1, only=["moco-a"]), 10_000)
    found = differences(cells, 10_000)
    assert found == {
        "batch": "128 for 512", "lr": "0.01 for 0.04", "queue": "1024 for 4096", "bn_splits": "4 for 8",
    }  # fmt: skip
    cells = plan(TABLES["r4"], Cut(epochs=10, evaluate="--finetune.lr 1"), seeds=1)
    found = differences(cells, 9469)
    assert found["probe-augmented.epochs"] == "1 for 100"
    assert "finetune.lr" in found


@pytest.mark.parametrize("folder", ["imagenette:/here", None])
def test_where_the_published_images_lie_changes_no_queue(
    folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "open_source", lambda *given, **options: open_source("shapes"))
    runs = command.Sweep(command.Config(data=folder, out=tmp_path), TABLES["r3"]).runs
    assert [run.config.queue for run in runs] == [16384]


def test_a_pattern_without_a_run_is_refused_with_their_names() -> None:
    assert {cell.entry.run for cell in plan(TABLES["r1-subsets"], Cut(), seeds=1, only=["*-ab", "simclr-a"])} == {
        "simclr-ab", "barlow-twins-ab", "moco-ab", "simclr-a"}  # fmt: skip
    with pytest.raises(UserError, match=r"--only 'byol-\*': no run of r1-subsets is called so; there are simclr-abcde"):
        plan(TABLES["r1-subsets"], Cut(), seeds=1, only=["byol-*"])


def test_what_makes_a_run_the_one_it_is_stays_what_it_was() -> None:
    """Runs that lie on disks are rendered again by later versions."""
    cut = Cut(data="cifar10:.", subset=10_000, epochs=24, width=16, stem="half", batch=128,
              train="--optimizer adamw --knn-every 4")  # fmt: skip
    [cell] = fitting(plan(TABLES["r1-subsets"], cut, seeds=1, only=["simclr-abcde"]), 10_000)
    assert cell.runs[0].name == "simclr-abcde-seed0"
    assert identity(cell.runs[0]) == {
        "settings": {
            "data": "cifar10:.", "subset": 10_000, "recipe": "abcde", "size": 32, "method": "simclr",
            "temperature": 0.5, "head": "mlp", "head_layers": 2, "hidden": 128, "dim": 128, "width": 16, "stem": "half",
            "epochs": 24, "batch": 128, "optimizer": "adamw", "schedule": "cosine", "knn_every": 4,
        },
        "evaluation": [],
    }  # fmt: skip
