"""The table of all methods: what it reports, that it repeats no run, and what it says of one that fails."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from penstock.benchmarks.methods import main
from penstock.engine.csv_log import read_csv
from penstock.errors import UserError

TINY = ["--subset", "64", "--epochs", "1", "--batch", "32", "--width", "8", "--methods", "moco-v2", "simsiam"]


def test_a_table_with_its_picture_made_without_repeating_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file, picture = tmp_path / "runs", tmp_path / "m.json", tmp_path / "m.png"
    options = ["--train=--size 16 --hidden 16 --loader folder", "--out", str(out), "--jobs", "2"]
    places = ["--json", str(file), "--plot", str(picture)]
    assert main([*TINY, *options, *places]) == 0
    report = json.loads(file.read_text())
    assert [row["method"] for row in report["rows"]] == ["moco-v2", "simsiam"]
    for row in report["rows"]:
        last = read_csv(out / row["method"] / "epochs.csv")[-1]
        assert row["epochs"] == 1 and (row["knn"], row["std"]) == (last["knn"], last["std"])
        assert all(math.isfinite(row[name]) for name in ("loss", "knn_untrained", "images_per_s", "minutes"))
    assert picture.stat().st_size > 10_000
    assert "simsiam" in capsys.readouterr().out
    written = (out / "simsiam" / "epochs.csv").stat().st_mtime_ns
    assert main([*TINY, *options]) == 0
    assert (out / "simsiam" / "epochs.csv").stat().st_mtime_ns == written


def test_a_run_that_fails_is_named_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"moco-v2 ended with code 2 .*--queue 7 is not a multiple"):
        main([*TINY, "--train=--queue 7", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "mocov2"], "--methods 'mocov2' is not known"),
        (["--jobs", "0"], "--jobs 0: it takes at least 1"),
        (["--plot", "x.txt"], "must end in .png"),
    ],
)
def test_wrong_inputs_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)
