"""What a terminal of 80 columns shows: whole counts, rates and times; the bars give way."""

from __future__ import annotations

import re
from itertools import count
from types import SimpleNamespace

import pytest

from penstock.counts import counted
from penstock.engine.evaluate import subject
from penstock.engine.screen import Screen, describe
from penstock.loaders import progress
from penstock.loaders.progress import bar

ROW = {"epoch": 3.0, "step": 40_000.0, "loss": 5.6, "accuracy": 0.07, "std": 0.2, "images_per_s": 12_345.0,
       "wait_share": 0.02}  # fmt: skip


@pytest.fixture(params=[80, 100])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A terminal so wide."""
    for name, value in {"COLUMNS": str(request.param), "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    return int(request.param)


def drawn(text: str) -> list[str]:
    """The lines drawn one over the other, without their colours."""
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))
    return [line for line in lines if line.strip()]


@pytest.mark.parametrize(("name", "total"), [("imagenette-train-128.beton", 9_469), ("x" * 99, 1_281_167)])
def test_a_loader_s_bar_fits(
    name: str, total: int, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=count(0, 60).__next__))
    with bar(name, total) as shown:
        for _ in range(2):
            shown.advance(99_999_000_000, images=total // 2)
    last = drawn(capsys.readouterr().err)[-1]
    assert len(last) <= columns
    figures = rf" +\d+/{total} \d+ images/s \d+\.\d MB/s \d:\d\d:\d\d"
    assert re.search(rf"^{name if len(name) < 30 else 'x{9,}…'} .*{figures}$", last), last


def test_the_bar_of_an_evaluation_fits(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    with subject.bar("untrained: augmented validation images", 1_281_167) as advance:
        advance(1_281_167)
    last = drawn(capsys.readouterr().err)[-1]
    assert len(last) <= columns
    assert re.search(r"^untrained: augmented validation images .+ 1281167/1281167 \d:\d\d:\d\d \d:\d\d:\d\d$", last)


def test_the_bar_of_a_run_fits_and_leaves_out_metrics_not_figures_of_speed(
    columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen(epochs=200, steps=200_000, done=39_000)
    screen.show(ROW)
    screen.close()
    last = drawn(capsys.readouterr().out)[-1]
    assert len(last) <= columns
    assert re.search(r" +40000/200000 loss 5\.600 .* 12,345 images/s  waiting 2 % (\d|-):..:..$", last), last
    assert ("accuracy 0.070" in last, "std" in last) == (columns == 100, columns == 100)
    assert "accuracy 0.070  std 0.200" in describe(ROW), "an epoch's line has them all"


def test_one_is_not_several() -> None:
    said = [counted(number, "epoch") for number in (0, 1, 2, 1_000)]
    assert said == ["0 epochs", "1 epoch", "2 epochs", "1,000 epochs"]
