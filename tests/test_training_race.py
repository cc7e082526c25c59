"""The race of the training benchmark, by a clock that goes on only where something takes time; and its report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from penstock.benchmarks.race import Clock
from penstock.benchmarks.training_chart import draw_chart
from penstock.benchmarks.training_race import Contender, Feed, Row, SameBatch, race
from penstock.benchmarks.training_report import fed, part_by_part, show
from penstock.errors import UserError
from penstock.loaders import Views

N = 4
CPU = torch.device("cpu")


class Time:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr("penstock.engine.meters.time", made)
    monkeypatch.setattr("penstock.benchmarks.training_race.perf_counter", made.perf_counter)
    return made


class Slow(SameBatch):
    """Epochs of a few batches, each of which takes a while, the first ones of an epoch excepted: they lie ready."""

    def __init__(self, now: Time, *, steps: int = 1000, takes: float = 0.0, ready: int = 0) -> None:
        groups = [torch.zeros(2 * N, 3, 8, 8)]
        super().__init__(Views(groups=groups, index=torch.arange(N), label=torch.zeros(N, dtype=torch.long)))
        self.now, self.steps, self.takes, self.ready, self.epochs, self.asked = now, steps, takes, ready, 0, 0

    def __iter__(self) -> Iterator[Views]:
        self.epochs += 1
        for step in range(self.steps):
            self.asked += 1
            self.now.now += self.takes * (step >= self.ready)
            yield self.views


class Fake:
    """A step that takes so long, or fails."""

    layout = torch.contiguous_format

    def __init__(self, now: Time, *, takes: float = 0.0, fails: bool = False) -> None:
        self.now, self.takes, self.fails, self.steps = now, takes, fails, 0

    def __call__(self, views: Views) -> torch.Tensor:
        self.steps += 1
        self.now.now += self.takes
        if self.fails:
            raise RuntimeError("out of memory\nat some address")
        return torch.zeros(())


def contender(step: Fake, feed: Feed) -> Contender:
    return Contender(row=Row(step="penstock", feeder="folder"), step=step, feed=feed, device=CPU)


def test_waiting_is_the_loader_s_time_not_the_step_s(now: Time) -> None:
    each = contender(Fake(now, takes=0.03), Feed(Slow(now, takes=0.01)))
    each.measure(0.5)
    assert each.row.waiting == [pytest.approx(0.25)]
    assert each.row.repeats == [pytest.approx(N / 0.04)]


def test_what_lay_ready_does_not_count_nor_do_the_first_steps(now: Time) -> None:
    batches, step = Slow(now, takes=0.25, ready=7), Fake(now)
    each = contender(step, Feed(batches, ready=7))
    each.measure(2.5)
    assert each.row.repeats == [N / 0.25]
    assert (batches.asked, step.steps) == (7 + 2 + 10, 2 + 10)


def test_the_clock_stands_still_between_epochs(now: Time) -> None:
    batches = Slow(now, steps=8, takes=0.25, ready=3)
    each = contender(Fake(now), Feed(batches, ready=3))
    each.measure(2.5)
    assert batches.epochs == 4  # of eight batches, three lie ready and two are for warming: ten take four epochs
    assert each.row.repeats == [N / 0.25]


def test_bursts_are_counted_whole(now: Time) -> None:
    step = Fake(now)
    contender(step, Feed(Slow(now, takes=0.01), lanes=4)).measure(0.05)
    assert step.steps == 2 + 8


def test_only_the_first_row_of_a_step_notes_its_first_time(now: Time) -> None:
    step, feed = Fake(now, takes=0.25), Feed(Slow(now, takes=0.5))
    both = [contender(step, feed), contender(step, feed)]
    for each in both:
        each.warm()
    assert [each.row.first_step for each in both] == [0.25, None]


def test_one_that_fails_is_left_out_and_the_others_go_on(now: Time) -> None:
    failing, feed = Fake(now, fails=True), Feed(Slow(now, takes=0.01))
    both = [contender(failing, feed), contender(Fake(now), feed)]
    race(both, seconds=0.1, rounds=3, clock=Clock(Console(quiet=True)))
    assert failing.steps == 1
    assert both[0].row.error == "out of memory" and both[0].row.pairs_per_s is None
    assert len(both[1].row.repeats) == len(both[1].row.waiting) == 3


# The report.


def row(step: str, feeder: str, *speeds: float, **more: Any) -> Row:
    return Row(step=step, feeder=feeder, repeats=list(speeds), waiting=[0.25 for _ in speeds], **more)


ROWS = [
    row("official", "torchvision", 40, 60, 50),
    row("official", "synthetic", 100),
    row("penstock", "torchvision", 80),
    row("penstock", "ffcv", 190, 200, 230),
    Row(step="penstock", feeder="dali", error="not installed in /opt/some/place"),
    row("penstock", "synthetic", 250),
]
PARTS = [("the usual", ROWS[1]), ("+ autocast", row("autocast", "synthetic", 150)), ("Penstock's", ROWS[-1])]


def test_rows_are_held_against_their_own_step_and_against_the_usual() -> None:
    found = {(each["step"], each["feeder"]): each for each in fed(ROWS)}
    ffcv = found["penstock", "ffcv"]
    assert (ffcv["pairs_per_s"], ffcv["spread"], ffcv["waiting_share"]) == (200, 0.1, 0.25)
    assert (ffcv["of_step"], ffcv["over_torchvision"], ffcv["over_official"]) == (0.8, 2.5, 4.0)
    assert found["official", "torchvision"]["of_step"] == 0.5
    assert found["official", "synthetic"]["spread"] is None  # of one round it is unknown
    assert found["penstock", "dali"]["pairs_per_s"] is None and found["penstock", "dali"]["over_official"] is None
    assert found["penstock", "dali"]["error"] == "not installed in place"


def test_parts_are_held_against_the_one_before_and_the_first() -> None:
    failed = ("+ fused", Row(step="fused", feeder="synthetic", error="no"))
    found = part_by_part([*PARTS[:2], failed, PARTS[2]])
    assert [each["over_first"] for each in found] == [1.0, 1.5, None, 2.5]
    assert [each["over_before"] for each in found] == [None, 1.5, None, pytest.approx(250 / 150)]


def report(rows: list[Row], parts: list[tuple[str, Row]]) -> dict[str, Any]:
    settings = {
        "method": "moco-v2", "arch": "resnet18", "width": 16, "size": 64, "batch": 64, "images": 3000,
        "distinct_images": 3000, "data": "shapes-train", "recipe": "moco-small", "precision": "bfloat16",
    }  # fmt: skip
    machine = {"cpus": 2, "cpu": "CPU", "memory_gb": 24, "gpus": []}
    about = {"machine": machine, "versions": {"torch": "2"}, "date": "2026-01-01", "notes": ["No row for autocast."]}
    return {"settings": settings, "rows": fed(rows), "parts": part_by_part(parts), **about}


def test_the_tables_are_markdown(capsys: pytest.CaptureFixture) -> None:
    show(report(ROWS, PARTS), Console(width=140, highlight=False))
    said = capsys.readouterr().out
    assert re.search(r"\| penstock +\| ffcv +\| +\| +200 \| 10% \| +25% \| +80% \| +2\.50× \| +4\.00× \|", said)
    assert re.search(r"\| \+ autocast +\| +150 \| +\|", said) and "GPU memory" not in said
    assert "penstock, dali: not installed" in said and "No row for autocast." in said
    assert "Rounds differ" not in said
    show(report([row("penstock", "ffcv", 100, 200)], []), Console(width=140, highlight=False))
    assert "Rounds differ by up to ±33%" in capsys.readouterr().out


def test_the_picture_has_a_second_panel_where_there_are_parts(tmp_path: Path) -> None:
    heights = []
    for parts in ([PARTS[-1]], PARTS):
        draw_chart(report(ROWS, parts), tmp_path / "t.png")
        with Image.open(tmp_path / "t.png") as picture:
            heights.append(picture.height)
    assert heights[1] > heights[0] + 100
    with pytest.raises(UserError, match="nothing to draw"):
        draw_chart(report([ROWS[4]], []), tmp_path / "t.png")
