"""What evaluates a run while it trains: its columns, its crops, what a signal in the middle of it costs, best.pt."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.functional import normalize

from penstock.augment import RECIPES
from penstock.engine.checkpoint import load_checkpoint
from penstock.engine.csv_log import Row, read_csv
from penstock.engine.evaluate import logistic, online
from penstock.engine.evaluate.data import in_order, plain_view, probe_view
from penstock.engine.evaluate.features import Features, extract_features
from penstock.engine.evaluate.logistic import fit_logistic
from penstock.engine.evaluate.online import Abandoned, OnlineEvaluation, OnlineKNN, OnlineLogistic, Snapshot
from penstock.engine.evaluate.run import main as evaluate
from penstock.engine.method import Encoder
from penstock.engine.precision import Precision
from penstock.engine.report import Found
from penstock.engine.train import main
from penstock.errors import UserError
from penstock.loaders import Loader
from penstock.loaders.sources import ImageArrays

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
FP32 = Precision(device=CPU, dtype=None)
IMAGES, SIZE, CLASSES = 37, 8, 3  # more than a whole number of batches
LIKE = RECIPES["moco-cifar"]
TINY = [
    "--loader", "folder", "--width", "8", "--size", "16", "--batch", "16", "--queue", "16", "--epochs", "3",
    "--lr", "0.03", "--momentum", "0.9", "--workers", "2", "--knn-k", "20", "--logistic-every", "2",
]  # fmt: skip
FIGURES = ("knn", "logistic", "logistic_train")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes that differ in brightness, a little."""
    root, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 48), ("val", 40)):
        for i in range(count):
            pixels = noise.integers(0, 200, (17, 20, 3), np.uint8) + np.uint8(20 * (i % CLASSES))
            path = root / split / "abc"[i % CLASSES] / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*TINY, "--data", str(images), "--out", str(out), "--keep-best", "logistic"]) == 0
    return out


def loader(recipe: Any = None, *, batch: int = 8, **seed: int) -> Loader:
    noise = np.random.default_rng(0)
    pixels, labels = noise.integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8), noise.integers(0, CLASSES, IMAGES)
    source = ImageArrays(pixels, labels, ("a", "b", "c"), "noise")
    return in_order(source, recipe or plain_view(SIZE, LIKE), batch=batch, workers=1, device=CPU, **seed)


def encoder() -> Encoder:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Encoder(backbone, nn.Linear(5, 4)).train()


def snapshot(val: Loader, epoch: int = 0) -> Snapshot:
    return Snapshot(encoder().eval(), val, FP32, epoch=epoch, check=lambda: None)


def test_columns_are_filled_when_it_is_their_turn(whole: Path) -> None:
    rows = read_csv(whole / "epochs.csv")
    assert [row["epoch"] for row in rows if "knn" in row] == [0, 1, 2, 3]
    assert [row["epoch"] for row in rows if "logistic" in row] == [0, 2, 3]  # and after the last
    for row in rows:
        assert all(0 <= row[name] <= 100 for name in FIGURES if name in row)
        assert ("logistic_train" in row) == ("logistic_seconds" in row) == ("logistic" in row)
    page = (whole / "report.html").read_text()
    assert "Logistic regression: top-1, validation" in page and "logistic regression</td>" in page


def test_the_end_is_said_with_the_best_and_the_first(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--epochs", "1", "--knn-every", "0", "--logistic-every", "1"]
    assert main([*TINY, *short, "--data", str(images), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    before, after = (row["logistic"] for row in read_csv(tmp_path / "run" / "epochs.csv"))
    assert f"before the first epoch: logistic regression {before:.2f} %\n" in said
    assert f"logistic regression {after:.2f} % (before the first epoch: {before:.2f} %)" in said
    assert "kNN" not in said and "best" not in said
    rows = [{"epoch": epoch, "knn": knn} for epoch, knn in enumerate((30.0, 50.0, 60.0, 60.0, 55.0))]
    assert str(Found.of("knn", rows)) == "55.00 % (best: 60.00 %, epoch 2; before the first epoch: 30.00 %)"
    assert str(Found.of("knn", rows[1:2])) == "50.00 %" and Found.of("knn", rows[:1]) is None


def test_the_regression_is_scikit_learn_s_on_that_epoch_s_crops() -> None:
    crops = probe_view(SIZE, LIKE)
    with loader() as val, loader(crops) as train:
        found = OnlineLogistic(every=1, train=train, classes=CLASSES).figures(snapshot(val, epoch=4))
        network = encoder().eval().backbone
        shown, plain = extract_features(network, train, FP32, epoch=4), extract_features(network, val, FP32)
    scaler = StandardScaler().fit(shown.values.double())
    model = LogisticRegression().fit(scaler.transform(shown.values.double()), shown.labels)
    for name, part in (("logistic", plain), ("logistic_train", shown)):
        assert found[name] == pytest.approx(100 * model.score(scaler.transform(part.values.double()), part.labels))


def test_crops_are_a_function_of_seed_and_epoch() -> None:
    def features(seed: int, epoch: int) -> torch.Tensor:
        with loader() as val, loader(probe_view(SIZE, LIKE), seed=seed) as train:
            return snapshot(val, epoch).features(train).values

    first = features(0, 1)
    assert torch.equal(first, features(0, 1))
    assert not torch.equal(first, features(0, 2)) and not torch.equal(first, features(1, 1))


def test_validation_images_are_seen_once_where_both_protocols_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Loader] = []

    def counted(network: nn.Module, images: Loader, *arguments: Any, **options: Any) -> Features:
        seen.append(images)
        return extract_features(network, images, *arguments, **options)

    monkeypatch.setattr(online, "extract_features", counted)
    with loader() as bank, loader() as val, loader(probe_view(SIZE, LIKE)) as crops:
        both = (
            OnlineKNN(every=1, train=bank, classes=CLASSES),
            OnlineLogistic(every=2, train=crops, classes=CLASSES),
        )
        run = OnlineEvaluation(protocols=both, val=val, epochs=5)
        expected = {1: [bank, val], 2: [bank, val, crops], 5: [bank, val, crops]}
        for epoch, loaders in expected.items():
            seen.clear()
            row = run.figures(encoder(), FP32, epoch=epoch, stop=lambda: False)
            assert len(seen) == len(loaders) and set(map(id, seen)) == set(map(id, loaders))
            assert ("logistic" in row) == (crops in loaders)


def test_knn_finds_an_image_that_it_knows_and_keeps_one_copy_of_the_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit features alone, however long the network's own are."""
    seen: list[torch.Tensor] = []

    def counted(values: torch.Tensor) -> torch.Tensor:
        seen.append(values)
        return normalize(values)

    monkeypatch.setattr("penstock.engine.evaluate.features.functional.normalize", counted)
    for on, dimensions in (("backbone", 5), ("projection", 4)):
        seen.clear()
        network = encoder()
        with loader() as bank, loader(batch=16) as val:
            knn = OnlineKNN(every=1, train=bank, classes=CLASSES, k=1, on=on)
            run = OnlineEvaluation(protocols=[knn], val=val, epochs=1)
            assert run.figures(network, FP32, epoch=0, stop=lambda: False)["knn"] == 100
        assert network.training and {values.shape[1] for values in seen} == {dimensions}
        assert [len(values) for values in seen] == [8, 8, 8, 8, 5, IMAGES]  # the bank's batches, all queries


def test_a_regression_in_rounds_is_one_in_one_go_and_can_be_left_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    values = torch.randn(4, 30, generator=generator)[labels] + 2 * torch.randn(200, 30, generator=generator)
    features = Features(values=values, labels=labels)
    at_once = fit_logistic(features, classes=4)
    monkeypatch.setattr(logistic, "ROUND", 5)
    rounds: list[None] = []
    found = fit_logistic(features, classes=4, between=lambda: rounds.append(None))
    assert found.converged and len(rounds) >= 2 and found.iterations > 5 * len(rounds)
    torch.testing.assert_close(found.classifier.weight, at_once.classifier.weight, atol=5e-3, rtol=0)

    def stop() -> None:
        raise Abandoned

    with pytest.raises(Abandoned):
        fit_logistic(features, classes=4, between=stop)
    few = fit_logistic(features, classes=4, iterations=7)
    assert few.iterations == 7 and not few.converged


@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_a_run_stopped_while_it_is_evaluated_ends_as_one_that_was_not(
    epoch: int, images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, figures = tmp_path / "run", OnlineLogistic.figures

    def signalled(self: OnlineLogistic, seen: Snapshot) -> Row:
        if seen.epoch == epoch:
            os.kill(os.getpid(), signal.SIGTERM)
        return figures(self, seen)

    with monkeypatch.context() as patch:
        patch.setattr(OnlineLogistic, "figures", signalled)
        assert main([*TINY, "--data", str(images), "--out", str(out), "--keep-best", "logistic"]) == 143
    assert [row["epoch"] for row in read_csv(out / "epochs.csv")] == list(range(epoch))  # not yet this one
    position = load_checkpoint(out / "last.pt")["position"]
    assert position == {"epoch": max(0, epoch - 1), "consumed": 48 if epoch else 0, "step": 3 * epoch}
    assert main(["--resume", str(out)]) == 0
    columns = ("epoch", "loss", *FIGURES)
    rows, expected = (
        [{name: row.get(name) for name in columns} for row in read_csv(run / "epochs.csv")] for run in (out, whole)
    )
    assert rows == expected
    ours, theirs = (load_checkpoint(run / "best.pt") for run in (out, whole))
    assert ours["best"] == theirs["best"] and ours["position"] == theirs["position"]


def test_best_pt_is_of_the_first_epoch_with_the_highest_figure(whole: Path) -> None:
    state, rows = load_checkpoint(whole / "best.pt"), read_csv(whole / "epochs.csv")
    best = max((row for row in rows if "logistic" in row and row["epoch"] > 0), key=lambda row: row["logistic"])
    assert state["position"]["epoch"] == state["best"]["epoch"] == best["epoch"]
    assert state["best"]["figure"] == pytest.approx(best["logistic"], rel=1e-6) and state["best"]["of"] == "logistic"


def test_a_resumed_run_knows_the_best_so_far(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kNN's figures are made up here, and a signal comes with the second and the third of them."""
    out, stops = tmp_path / "run", {2, 3}

    def made_up(self: OnlineKNN, seen: Snapshot) -> Row:
        if seen.epoch in stops:
            stops.remove(seen.epoch)
            os.kill(os.getpid(), signal.SIGTERM)
            seen.check()
        return {"knn": [99.0, 50.0, 40.0, 60.0, 60.0, 10.0][seen.epoch]}

    def best_epoch() -> int:
        return load_checkpoint(out / "best.pt")["position"]["epoch"]

    monkeypatch.setattr(OnlineKNN, "figures", made_up)
    given = ["--epochs", "4", "--logistic-every", "0", "--keep-best", "knn", "--data", str(images), "--out", str(out)]
    assert main([*TINY, *given]) == 143 and best_epoch() == 1  # the untrained network has no checkpoint
    assert main(["--resume", str(out)]) == 143 and best_epoch() == 1
    assert main(["--resume", str(out)]) == 0 and best_epoch() == 3
    (out / "best.pt").unlink()  # then it is the best of those from here on
    assert main(["--resume", str(out), "--epochs", "5"]) == 0 and best_epoch() == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--logistic-every 0 --keep-best logistic", "--keep-best logistic: --logistic-every 0 computes none"),
        ("--knn-every 0 --keep-best knn", "--keep-best knn: --knn-every 0 computes none .* use --knn-every 1"),
        ("--keep-best loss", "--keep-best 'loss' is not known: choose one of knn, logistic"),
        ("--logistic-every -1", "--logistic-every -1: this must be 0 or more"),
    ],
)
def test_settings_that_no_run_can_have_are_one_line(given: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        main([*TINY, *given.split(), "--data", str(tmp_path / "nowhere")])
    assert "\n" not in str(caught.value)


def test_without_labels_or_validation_images_it_is_said(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat, out = images / "train" / "a", tmp_path / "run"
    short = [*TINY, "--epochs", "1", "--out", str(out)]
    assert main([*short, "--data", str(images / "train")]) == 0
    assert "has no validation split: name labelled images of the same classes with" in capsys.readouterr().out
    shutil.rmtree(out)
    assert main([*short, "--data", str(flat), "--val-data", str(images)]) == 0
    assert "no kNN, no logistic regression: the training images have no labels" in capsys.readouterr().out
    best = [*TINY, "--keep-best", "logistic", "--out", str(tmp_path / "other")]
    for more in ([], ["--val-data", str(images)]):
        with pytest.raises(UserError, match=r"--keep-best logistic: .* has no labels, and --val-data brings none"):
            main([*best, "--data", str(flat), *more])
    with pytest.raises(UserError, match=r"train has no labelled validation split: name .* with --val-data FOLDER, or"):
        main([*best, "--data", str(images / "train")])
    assert not (tmp_path / "other").exists()


def test_images_of_one_class_are_refused(images: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "one" / split).mkdir(parents=True)
        (tmp_path / "one" / split / "a").symlink_to(images / split / "a")
    with pytest.raises(UserError, match=r"--logistic-every 2: all images of .* are of one class"):
        main([*TINY, "--data", str(tmp_path / "one"), "--out", str(tmp_path / "run")])


def test_the_evaluation_s_page_shows_how_a_classifier_was_trained(whole: Path, tmp_path: Path) -> None:
    few = ["--protocols", "probe-augmented", "--probe-augmented-as", "imagenette", "--probe-augmented.epochs", "2"]
    small = ["--probe-augmented.batch", "16", "--map-images", "0", "--out", str(tmp_path)]
    assert evaluate([str(whole / "best.pt"), *few, *small]) == 0
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000 and len(np.unique(np.asarray(picture.convert("L")))) > 20
    page = (tmp_path / "report.html").read_text()
    assert "Classifiers trained on augmented images" in page and page.count("data:image/png;base64,") == 2
    other = ["--protocols", "knn", "--map-images", "0", "--out", str(tmp_path)]
    assert evaluate([str(whole / "best.pt"), *other]) == 0
    assert not (tmp_path / "curves.png").exists()  # of the protocols that were asked for
