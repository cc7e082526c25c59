"""The five systems: their tables hold what their docstrings promise, and every run of theirs is one that can be run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from penstock.augment import load_recipe
from penstock.engine.config import CompleteConfig, TrainConfig
from penstock.engine.defaults import check_choices, complete
from penstock.engine.evaluate import run as evaluation
from penstock.engine.methods.heads import NORMS, build_head
from penstock.engine.runs import words_of
from penstock.engine.search import run as search
from penstock.engine.sweep import Config as SweepConfig
from penstock.engine.systems import SYSTEMS, TABLES, Entry, Table
from penstock.engine.systems.plan import plan
from penstock.engine.systems.table import best_logistic, best_logistic_on_training, fall_of_loss
from penstock.options import read_options

LENGTHS = {"cifar10": 50_000, "cifar100": 50_000, "stl10": 5_000, "imagenet": 1_281_167, "imagenette": 9_469}
IN_WORDS = {  # what R1's docstring writes otherwise than its tables
    "subset": "augmentation", "strength": "colour strength", "SimCLR": "simclr", "Barlow Twins": "barlow-twins",
    "MoCo (later version)": "moco",
}  # fmt: skip
RUNS = {entry.run: entry for table in TABLES.values() for entry in table.entries}
each_system = pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.__name__.rpartition(".")[2])
each_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
each_run = pytest.mark.parametrize("entry", RUNS.values(), ids=RUNS)

Figures = dict[tuple[tuple[str, ...], str], tuple[float, float | None]]  # mean and std, by row and column


def completed(config: TrainConfig, data: str | None = None, length: int = 0) -> CompleteConfig:
    name = config.data if data is None else data
    return complete(config, source=f"{name}-train", length=length or LENGTHS[config.data], world=1)


# What the docstrings promise


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Header and rows of each table, without the line between them."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    tables = [[[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()] for block in blocks]
    return [[[IN_WORDS.get(name, name) for name in header], *rows] for header, _, *rows in tables]


def promised(system: ModuleType, table: Table) -> Figures:
    """The figures of the one table in the docstring that has the headings and columns of this one."""
    columns, width = {entry.column for entry in table.entries}, len(table.headings)
    [(header, *rows)] = [
        found
        for found in markdown_tables(system.__doc__ or "")
        if tuple(found[0][:width]) == table.headings and columns & set(found[0])
    ]
    return {
        (tuple(row[:width]), column): figure(cell)
        for row in rows
        for column, cell in zip(header, row, strict=True)
        if column in columns and cell
    }


def figure(cell: str) -> tuple[float, float | None]:
    """Of `89.92 ± .05`; what stands behind in brackets is left out."""
    number, _, std = cell.partition(" (")[0].partition(" ± ")
    return float(number), float(std) if std else None


@each_system
def test_a_system_promises_in_its_docstring_what_its_tables_have_as_published(system: ModuleType) -> None:
    compared = 0
    for table in system.TABLES:
        published = {
            (entry.row, entry.column): (entry.published, entry.published_std)
            for entry in table.entries
            if entry.published is not None
        }
        if published:
            found = promised(system, table)
            in_prose = {place: numbers for place, numbers in published.items() if place not in found}
            assert found == {place: numbers for place, numbers in published.items() if place in found}
            assert set(in_prose) <= {(("abcde",), "simsiam"), (("abcde",), "barlow-twins, lr .11")}
            assert all(f"{mean:.2f}" in (system.__doc__ or "") for mean, _ in in_prose.values())
            compared += len(found)
    assert compared


def commands(system: ModuleType) -> Iterator[list[str]]:
    """Those in the docstring, without their comments."""
    text = (system.__doc__ or "").replace("\\\n", " ")
    for line in re.findall(r"^ +python (engine/.+)$", text, flags=re.MULTILINE):
        yield shlex.split(line, comments=True)


@each_system
def test_the_commands_in_a_docstring_can_be_run(system: ModuleType) -> None:
    """In full, and cut: on as many images as they say."""
    whole, cut = set(), set()
    for file, *words in commands(system):
        match file:
            case "engine/sweep.py":
                config = read_options(SweepConfig, None, words)
                assert config.table is not None
                (cut if config.epochs else whole).add(config.table)
                for cell in plan(TABLES[config.table], config, seeds=1, only=config.only):
                    run = cell.runs[0].config
                    length = config.subset or LENGTHS[cell.entry.settings["data"]]
                    if config.subset:  # as engine/sweep.py does: the published one is too long for so few
                        run = replace(run, queue=None)
                    completed(run, length=length)
            case "engine/train.py":
                config = read_options(TrainConfig, None, words)
                check_choices(config)
                completed(config)
            case "engine/evaluate/run.py":
                evaluation.check(evaluation.parse(words))
            case "engine/search/run.py":
                search.check(read_options(search.Config, None, words))
            case _:
                raise AssertionError(file)
    assert whole == {table.name for table in system.TABLES}
    assert cut


# The tables as such


@each_table
def test_a_table_has_one_figure_in_each_place(table: Table) -> None:
    places = [(entry.row, entry.column) for entry in table.entries]
    assert len(set(places)) == len(places)
    assert all(len(entry.row) == len(table.headings) for entry in table.entries)
    assert table.entries


@each_system
def test_a_name_stands_for_one_run_and_a_run_has_one_name(system: ModuleType) -> None:
    """Also across a system's tables, whose runs may lie in one folder."""
    entries: list[Entry] = [entry for table in system.TABLES for entry in table.entries]
    named = {entry.run: (dict(entry.settings), entry.evaluation) for entry in entries}
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*", entry.run), entry.run  # a folder on any disk
        assert named[entry.run] == (dict(entry.settings), entry.evaluation)
    runs = list(named.values())
    assert all(run not in runs[:number] for number, run in enumerate(runs))


# Their runs


@each_run
def test_a_run_can_be_trained_as_published(entry: Entry) -> None:
    config = TrainConfig(**entry.settings)
    check_choices(config)
    found = completed(config)
    assert load_recipe(found.recipe, size=found.size).groups[0].views == slice(0, 2)
    for name, value in entry.settings.items():
        assert getattr(found, name) == value, name


@each_run
def test_a_run_is_typed_as_it_is_meant(entry: Entry) -> None:
    config = TrainConfig(**entry.settings)
    assert read_options(TrainConfig, None, words_of(config)) == config


@each_run
def test_a_run_keeps_its_settings_on_other_images(entry: Entry) -> None:
    """What engine/defaults.py has for a set of data is never asked for."""
    config = TrainConfig(**entry.settings)
    assert completed(config) == completed(config, "cifar10") == completed(config, "photos")


@pytest.mark.parametrize("entry", [entry for entry in RUNS.values() if entry.evaluation], ids=lambda entry: entry.run)
def test_an_evaluation_is_typed_as_it_is_meant(entry: Entry) -> None:
    assert entry.evaluation is not None
    config = evaluation.parse(entry.evaluation.words(Path("runs/some")))
    assert tuple(evaluation.check(config)) == entry.evaluation.protocols
    assert config.checkpoint.name == f"{entry.evaluation.checkpoint}.pt"
    assert entry.evaluation.checkpoint == "last" or entry.settings["keep_best"]
    for name, value in entry.evaluation.settings.items():
        assert getattr(config, name.replace("-", "_")) == value


@pytest.mark.parametrize(
    ("run", "settings"),
    [
        ("cifar10-moco-cifar", {"bn_splits": 8, "symmetric": False, "warmup_epochs": 0.0, "sync_bn": False}),
        ("stl10-moco-cifar", {"bn_splits": 8, "split": "train"}),
        ("moco-abcde", {"bn_splits": 8, "warmup_epochs": 0.0, "knn_k": 200, "knn_temperature": 0.1, "knn_every": 1}),
        ("moco-t0.07-200", {"bn_splits": 8, "drops": (0.6, 0.8), "sgd_momentum": 0.9}),
        ("simclr-8192-200", {"lr": 9.6, "warmup_epochs": 10.0}),
        ("symmetric-200", {"symmetric": True, "queue": 4096}),
        ("imagenette", {"lr": 0.03, "bn_splits": 1, "queue": 16384, "final_lr": 5e-7}),
        ("imagenette-pool-14", {"bn_splits": 8, "lr": 1e-3, "weight_decay": 1e-4}),
    ],
)
def test_what_is_left_to_the_method_comes_to_what_is_published(run: str, settings: dict[str, object]) -> None:
    found = vars(completed(TrainConfig(**RUNS[run].settings)))
    assert {name: found[name] for name in settings} == settings


@pytest.mark.parametrize(
    ("run", "features", "layers"),
    [
        ("cifar10-moco-cifar", 512, ["Linear 512-128"]),
        ("moco-abcde", 512, ["Linear 512-512", "ReLU", "Linear 512-128"]),
        ("moco-t0.07-200", 2048, ["Linear 2048-128"]),
        ("moco-mlp-t0.2-200", 2048, ["Linear 2048-2048", "ReLU", "Linear 2048-128"]),
        ("imagenette", 2048, ["Linear 2048-2048", "ReLU", "Linear 2048-128"]),
        ("imagenette-pool-14", 2048, ["Linear 2048-512", "BatchNorm1d", "ReLU", "Linear 512-128"]),
    ],
)
def test_heads_are_as_published(run: str, features: int, layers: list[str]) -> None:
    config = completed(TrainConfig(**RUNS[run].settings))
    hidden, norm = config.hidden or features, NORMS[config.head]
    head = build_head(features, layers=config.head_layers, hidden=hidden, dim=config.dim, norm=norm)
    shown = [
        f"Linear {layer.in_features}-{layer.out_features}" if isinstance(layer, nn.Linear) else type(layer).__name__
        for layer in head
    ]
    assert shown == layers


# Scores


def test_scores_of_a_log(tmp_path: Path) -> None:
    """The line before the first epoch counts for none of them."""
    assert [score(tmp_path) for score in (best_logistic, best_logistic_on_training, fall_of_loss)] == [None] * 3
    (tmp_path / "epochs.csv").write_text(
        "epoch,loss,logistic,logistic_train\n0,9,95,99\n1,4,50,60\n2,8,70,90\n3,6,,\n4,2,65,95\n"
    )
    assert best_logistic(tmp_path) == 70
    assert best_logistic_on_training(tmp_path) == 90
    assert fall_of_loss(tmp_path) == 4
