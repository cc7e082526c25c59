"""The table of all methods: what it reports, that it repeats no run, how it stops, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from penstock.benchmarks.methods import main
from penstock.engine.checkpoint import load_checkpoint
from penstock.engine.csv_log import read_csv
from penstock.errors import UserError
from penstock.machine import git_commit

METHODS = Path(__file__).resolve().parents[1] / "benchmarks/methods.py"
TINY = ["--quick", "--subset", "64", "--epochs", "1", "--batch", "32", "--methods", "moco-v2", "simsiam"]


def test_a_table_with_its_picture_made_without_repeating_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file, picture = tmp_path / "runs", tmp_path / "m.json", tmp_path / "m.png"
    options = ["--train=--size 16 --hidden 16 --loader folder", "--out", str(out)]
    places = ["--json", str(file), "--plot", str(picture)]
    assert main([*TINY, *options, *places]) == 0
    report = json.loads(file.read_text())
    assert [row["method"] for row in report["rows"]] == ["moco-v2", "simsiam"]
    for row in report["rows"]:
        last = read_csv(out / row["method"] / "epochs.csv")[-1]
        assert row["epochs"] == 1 and (row["knn"], row["std"]) == (last["knn"], last["std"])
        assert all(math.isfinite(row[name]) for name in ("loss", "knn_untrained", "images_per_s", "minutes"))
        assert row["commits"] == [git_commit()]
    assert picture.stat().st_size > 10_000
    settings = report["settings"]
    assert (settings["quick"], settings["width"], settings["jobs"], settings["subset"]) == (True, 8, 2, 64)
    said = capsys.readouterr().out
    assert "--quick: shapes cut to 64 images" in said and "simsiam" in said
    written = (out / "simsiam" / "epochs.csv").stat().st_mtime_ns
    assert main([*TINY, *options]) == 0
    assert (out / "simsiam" / "epochs.csv").stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"moco-v2: this run was begun with --width 8, not 16: choose another --out"):
        main([*TINY, *options, "--width", "16"])
    (out / "moco-v2" / "run.json").unlink()
    with pytest.raises(UserError, match="a run lies there that was not begun from here: choose another --out"):
        main([*TINY, *options])


def test_a_run_that_was_stopped_goes_on_only_with_its_settings(tmp_path: Path) -> None:
    begun = {"subset": 64, "epochs": 9, "width": 16, "stem": "auto", "batch": 32, "method": "simsiam", "knn_every": 2,
             "optimizer": "adamw"}  # fmt: skip
    (tmp_path / "simsiam").mkdir()
    (tmp_path / "simsiam" / "epochs.csv").write_text("epoch,step,knn\n0,0,10\n")
    (tmp_path / "simsiam" / "run.json").write_text(json.dumps({"settings": begun, "evaluation": []}))
    same = ["--methods", "simsiam", "--out", str(tmp_path), "--subset", "64", "--epochs", "9", "--batch", "32"]
    others = {"data": "cifar10", "subset": 65, "epochs": 8, "arch": "resnet34", "width": 8, "stem": "half", "batch": 16,
              "seed": 1}  # fmt: skip
    for name, other in others.items():
        with pytest.raises(UserError, match=f"this run was begun with --{name} .*, not {other}: choose another --out"):
            main([*same, "--train=--optimizer adamw", f"--{name}={other}"])
    with pytest.raises(UserError, match="begun with --optimizer adamw, not sgd"):
        main([*same, "--train=--optimizer sgd"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_a_run_is_saved_and_finishes_another_time(number: int, tmp_path: Path) -> None:
    out = tmp_path / "moco-v2"
    words = ["--methods", "moco-v2", "--subset", "1000", "--epochs", "1", "--batch", "8", "--width", "8"]
    words += ["--train=--size 32 --hidden 16 --loader folder", "--out", str(tmp_path)]
    with subprocess.Popen([sys.executable, str(METHODS), *words], start_new_session=True) as process:
        while process.poll() is None and not read_csv(out / "epochs.csv"):
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        assert process.wait() == 128 + number
    assert "left without saving" not in (out / "output.txt").read_text()
    position = load_checkpoint(out / "last.pt")["position"]
    assert position["epoch"] == 0 < position["step"]
    if number == signal.SIGINT:
        assert main(words) == 0
        assert read_csv(out / "epochs.csv")[-1]["epoch"] == 1


@pytest.mark.parametrize("labels", [True, False])
def test_data_that_knn_cannot_classify_are_refused_before_anything_starts(labels: bool, tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "photos" / (f"class{number % 2}" if labels else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    advice = "--val-data FOLDER" if labels else "sort them into class folders"
    with pytest.raises(UserError, match=f"needs labels: .*{advice}"):
        main(["--data", str(tmp_path / "photos"), "--batch", "4", "--out", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_is_named_with_what_it_said(tmp_path: Path) -> None:
    words = [*TINY, "--methods", "moco-v2", "--train=--size 16 --hidden 16 --lr 1e30 --optimizer sgd"]
    with pytest.raises(UserError, match=r"moco-v2: .* by step \d+ \(epoch 1\): try --lr below 1e\+30"):
        main([*words, "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "mocov2"], "--methods 'mocov2' is not known"),
        (["--jobs", "0"], "--jobs 0: it takes at least 1"),
        (["--plot", "x.txt"], "must end in .png"),
        (["--train=--knn-every 0"], "--knn-every 0, and the table is of kNN"),
        ([*TINY, "--train=--queue 7"], "--queue 7 is not a multiple"),
    ],
)
def test_wrong_inputs_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)
