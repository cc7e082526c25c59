"""The cost benchmark: what counts as memory, what its rows hold, what it reports, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from penstock.benchmarks import cost
from penstock.benchmarks.cost_probe import Memory, configure
from penstock.benchmarks.cost_report import draw_chart, extrapolated, figures, show
from penstock.errors import UserError

MB = 1_000_000
TINY = ["--width", "8", "--size", "64", "--stem", "imagenet", "--amp", "off", "--device", "cpu", "--quick"]


def test_both_mechanisms_differ_in_nothing_but_where_negatives_come_from() -> None:
    rows = cost.plan(cost.Config(batches=(64, 32), queues=(65536, 1000)))
    found = [(row.task["mechanism"], row.task["batch"], row.negatives) for row in rows]
    assert found == [
        ("moco", 32, 65536), ("end-to-end", 32, 62), ("moco", 64, 65536), ("end-to-end", 64, 126), ("moco", 32, 992),
    ]  # fmt: skip
    moco, other = (vars(configure(row.task)) for row in rows[:2])
    differ = {name for name in moco if moco[name] != other[name]}
    assert differ == {"method", "queue", "momentum", "momentum_schedule", "sync_bn"}  # one rank: nothing to share
    assert (moco["lr"], moco["temperature"], moco["head"], moco["dim"]) == (0.0, 0.2, "mlp", 128)


@pytest.mark.skipif(not cost.FORGET_PEAK.exists(), reason="no /proc: peak memory is counted on Linux")
def test_the_peak_is_counted_though_it_is_over() -> None:
    memory = Memory(torch.device("cpu"))
    kept = torch.ones(12 * MB)
    memory.forget_peak()
    passing = torch.ones(30 * MB)
    del passing
    assert memory.peak == pytest.approx(4 * 42 * MB, rel=0.1)
    assert memory.now == pytest.approx(4 * len(kept), rel=0.2)
    memory.forget_peak()
    assert memory.peak == pytest.approx(4 * 12 * MB, rel=0.2)


@pytest.mark.skipif(not cost.FORGET_PEAK.exists(), reason="no /proc: peak memory is counted on Linux")
def test_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "c.json", tmp_path / "c.png"
    words = ["--batches", "8", "64", "--queues", "4096", "--json", str(out[0]), "--plot", str(out[1])]
    assert cost.main([*TINY, *words]) == 0

    report = json.loads(out[0].read_text())
    rows = {(row["mechanism"], row["batch"]): row for row in report["rows"]}
    assert list(rows) == [("moco", 8), ("end-to-end", 8), ("moco", 64), ("end-to-end", 64)]
    for row in rows.values():
        assert row["error"] is None and row["memory_mb"] > row["held_mb"] > 0
        assert row["pairs_per_s"] == pytest.approx(row["batch"] / row["step_seconds"])
    few, many = rows["end-to-end", 8], rows["end-to-end", 64]
    grown = (many["memory_mb"] - many["held_mb"]) / (few["memory_mb"] - few["held_mb"])
    assert 5 < grown < 10  # eight times the activations, beside which gradients stay as they are
    held = rows["moco", 8]["held_mb"] - few["held_mb"]
    assert held > 4096 * 128 * 4 / MB  # the queue, and the key encoder
    assert many["over_moco"] == many["memory_mb"] / rows["moco", 64]["memory_mb"]
    assert report["settings"]["threads"] == 1 and report["settings"]["precision"] == "fp32"
    assert report["settings"]["quick"] and all(len(row["repeats"]) == 1 for row in rows.values())
    assert report["command"].startswith("python benchmarks/cost.py --width 8")
    assert str(tmp_path) not in out[0].read_text()
    said = capsys.readouterr().out
    assert "--quick: resnet18 of width 8" in said and "2003.04297" in said
    with Image.open(out[1]) as picture:
        assert picture.width > 1000


# The report, of figures that nobody measured.


def row(mechanism: str, batch: int, peaks: list[float], queue: int | None = None, **more: Any) -> dict[str, Any]:
    repeats = [{"peak_bytes": peak * MB, "held_bytes": 5 * MB, "step_seconds": 0.5} for peak in peaks]
    task = {"mechanism": mechanism, "batch": batch, "queue": queue}
    return {"task": task, "negatives": queue or 2 * batch - 2, "repeats": repeats, "error": None, **more}


ROWS = [
    row("moco", 128, [300, 320, 310], 1024),
    row("end-to-end", 128, [310, 310, 310]),
    row("moco", 256, [600, 500, 550], 1024),
    row("end-to-end", 256, [770, 770, 770]),
    row("moco", 128, [250, 250, 250], 256),
]


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    settings = {
        "batches": [128, 256], "queues": [256, 1024], "arch": "resnet18", "width": 16, "stem": "auto", "size": 64,
        "rounds": 3, "quick": False, "device": "cpu", "precision": "bfloat16", "threads": 2,
    }  # fmt: skip
    machine = {"cpus": 2, "cpu": "CPU", "memory_gb": 24, "gpus": []}
    about = {"settings": settings, "machine": machine, "versions": {"torch": "2"}, "date": "2026-01-01"}
    return about | {"rows": figures(rows), "extrapolated": extrapolated(figures(rows), 1024)}


def test_figures_are_medians_and_held_against_moco_s_at_the_same_batch_and_the_longest_queue() -> None:
    found = figures(ROWS)
    assert [each["memory_mb"] for each in found] == [310, 310, 550, 770, 250]
    assert found[2]["spread"] == pytest.approx(50 / 550)
    assert [each["over_moco"] for each in found[1::2]] == [1.0, 1.4]
    assert found[3]["pairs_per_s"] == 512
    assert found[3]["imagenet_hours"] == pytest.approx(200 * 1_281_167 / 512 / 3600)


def test_times_that_differ_are_told_and_one_measurement_has_no_spread(capsys: pytest.CaptureFixture[str]) -> None:
    restless, single = row("moco", 128, [300, 300], 1024), row("end-to-end", 128, [310])
    restless["repeats"][1]["step_seconds"] = 1.5
    found = report([restless, single])
    assert [(each["spread"], each["seconds_spread"]) for each in found["rows"]] == [(0, 0.5), (None, None)]
    show(found, Console(width=160, highlight=False))
    said = capsys.readouterr().out
    assert re.search(r"\| +310 \| +\| +5 \| +1\.03× \| +0\.5 \| +\| +256 \|", said)
    assert "Times differ by up to ±50%" in said


def test_published_figures_stand_where_they_belong() -> None:
    found = figures([*ROWS, row("moco", 256, [1], 256)])
    assert [each["published"] and each["published"]["gb_a_gpu"] for each in found] == [None, None, 5.0, 7.4, None, None]
    (estimate,) = [each for each in report(ROWS)["extrapolated"] if each["batch"] == 4096]
    assert estimate["published"]["estimate"] and estimate["published"]["gb_a_gpu"] == 93


def test_beyond_the_largest_batch_memory_goes_on_in_a_straight_line() -> None:
    found = {each["batch"]: each for each in report(ROWS)["extrapolated"]}
    assert found[4096]["memory_mb"] == pytest.approx(770 + (4096 - 256) * (770 - 310) / 128)
    assert found[513]["negatives"] == 1024  # as many as MoCo's queue holds
    assert extrapolated(figures(ROWS[:2]), 1024) == []


def test_the_table_is_markdown_and_names_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    failed = row("end-to-end", 512, [], error="no room in /opt/some/place")
    show(report([*ROWS, failed]), Console(width=160, highlight=False))
    said = capsys.readouterr().out
    assert re.search(r"\| end-to-end \| +256 \| +510 \| +770 \| +0\.0% \| +5 \| +1\.40× \| .* 7\.4 \| +65 \|", said)
    assert re.search(r"\| end-to-end \| +4,096 \| +8,190 \| ≈ 14,570 \|.* 93 \(estimate\) \|", said)
    assert "end-to-end, batch 512: no room in place" in said and "Times differ" not in said


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[1:2], [*ROWS, row("moco", 512, [], 1024, error="no")]])
def test_the_picture_is_drawn_of_what_there_is(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    draw_chart(report(rows), tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_of_nothing_there_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to draw"):
        draw_chart(report([row("moco", 8, [], 16, error="no")]), tmp_path / "c.png")


# What goes wrong.


def test_a_process_that_fails_leaves_its_reason_and_is_not_started_again() -> None:
    task = cost.Config(amp="fp16", device="cpu").task("end-to-end", 8, None)
    failing = cost.Row(task=task, negatives=14)
    cost.measure_once(failing)
    said = failing.error
    assert said and said.startswith("--amp fp16 needs a GPU") and failing.repeats == []
    failing.task = {}  # with which no process could be started
    cost.measure_once(failing)
    assert failing.error == said


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--batches", "1"], "--batches 1: an image needs others"),
        (["--queues", "64"], "--queues 64: the shortest must hold .*use longer ones"),
        (["--queues", "16", "65536"], "--queues 16 65536: the shortest must hold"),
        (["--arch", "resnet19"], "--arch 'resnet19' is not known: torchvision has resnet101"),
        (["--width", "12"], "--width 12: a ResNet's width is a multiple of 8"),
        (["--stem", "large"], "--stem 'large' is not known"),
        (["--size", "0"], "--size 0"),
        (["--amp", "fp16", "--device", "cpu"], "--amp fp16 needs a GPU"),
        (["--device", "tpu"], "--device 'tpu' is not known"),
        (["--rounds", "0"], "--rounds 0: it takes at least 1"),
        (["--json", "nowhere/c.json"], "nowhere"),
        (["--plot", "c.docx"], "c.docx"),
    ],
)
def test_wrong_inputs_are_refused_at_once(given: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        cost.main(given)
