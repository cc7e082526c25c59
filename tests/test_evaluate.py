"""`python engine/evaluate/run.py` from a checkpoint to its report, and the checkpoints it refuses."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support

from penstock.augment import RECIPES
from penstock.engine.checkpoint import load_checkpoint
from penstock.engine.csv_log import read_csv
from penstock.engine.evaluate import protocols
from penstock.engine.evaluate.protocols import PROTOCOLS, Outcome, ProtocolsConfig, check_images
from penstock.engine.evaluate.run import Config, main, views_of
from penstock.engine.evaluate.trained import Said, digest, load_trained
from penstock.engine.train import main as train
from penstock.errors import UserError
from penstock.loaders.sources import ImageArrays

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[1]
CLASSES, TRAIN, SUBSET, VAL = 7, 70, 63, 28  # more than five classes, so that there is a top-5
TINY = ["--loader", "folder", "--width", "8", "--size", "16", "--batch", "10", "--queue", "20", "--epochs", "1",
        "--lr", "0.03", "--workers", "2", "--knn-k", "20", "--bn-splits", "1"]  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes that differ in brightness."""
    root, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for i in range(count):
            pixels = noise.integers(0, 60, (16, 18, 3), np.uint8) + np.uint8(25 * (i % CLASSES))
            path = root / split / f"class {i % CLASSES}" / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train([*TINY, "--data", str(images), "--subset", str(SUBSET), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def evaluated(run: Path) -> dict[str, Any]:
    """results.json of an evaluation of the run, the untrained network beside it."""
    assert main([str(run), "--untrained", "--knn-k", "20", "--geometry-images", "21"]) == 0
    return json.loads((run / "evaluation" / "results.json").read_text())


def test_every_protocol_has_figures_of_both_sets_and_networks(evaluated: dict[str, Any]) -> None:
    assert set(evaluated["figures"]) == {"trained", "untrained"}
    for figures in evaluated["figures"].values():
        assert list(figures) == ["knn", "logistic", "probe", "geometry"]
        for protocol in ("knn", "logistic", "probe"):
            for part in ("train", "validation"):
                found = figures[protocol][part]
                assert 0 <= found["top1"] <= found["top5"] <= 100
        assert figures["geometry"]["validation"]["uniformity"] < 0
    assert evaluated["figures"]["trained"]["probe"]["validation"]["top1"] > 100 / CLASSES
    assert "moco-v2 on" in evaluated["network"] and f"{SUBSET} images" in evaluated["images"]
    assert evaluated["figures"]["trained"]["geometry"]["images"] == [21, 21]


def test_the_results_name_the_weights_that_they_are_of(run: Path, evaluated: dict[str, Any], tmp_path: Path) -> None:
    assert evaluated["weights"] == digest(load_trained(run, Said(), CPU).encoder.backbone)
    state = load_checkpoint(run / "last.pt")
    state["method"]["encoder.backbone.bn1.running_mean"][0] += 1e-3
    torch.save(state, tmp_path / "other.pt")
    assert evaluated["weights"] != digest(load_trained(tmp_path / "other.pt", Said(), CPU).encoder.backbone)


def test_knn_is_that_of_the_training_s_log(run: Path, evaluated: dict[str, Any]) -> None:
    logged = read_csv(run / "epochs.csv")
    for network, epoch in (("untrained", 0), ("trained", -1)):
        found = evaluated["figures"][network]["knn"]["validation"]["top1"]
        assert found == pytest.approx(logged[epoch]["knn"], abs=1e-3)


def test_the_report_is_one_page_with_its_pictures(run: Path, evaluated: dict[str, Any]) -> None:
    out = run / "evaluation"
    for name in ("confusion.png", "map.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 600 and len(np.unique(np.asarray(picture.convert("L")))) > 20
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "class 6" in page and "untrained" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert not list(out.glob("*.partial"))


def test_per_class_figures_are_scikit_learn_s(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the predictions that the protocol made."""
    made: list[Outcome] = []

    def remembered(*arguments: Any) -> Outcome:
        made.append(protocols.knn(*arguments))
        return made[-1]

    monkeypatch.setitem(PROTOCOLS, "knn", remembered)
    assert main([str(run), "--protocols", "knn", "--map-images", "0", "--out", str(tmp_path)]) == 0
    assert made[0].predicted is not None and made[0].labels is not None
    expected = precision_recall_fscore_support(made[0].labels, made[0].predicted, zero_division=0.0)
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [f"class {k}" for k in range(CLASSES)]
    for column, values in zip(("precision", "recall", "f1", "images"), expected, strict=True):
        assert [float(row[column]) for row in rows] == pytest.approx(list(values), abs=1e-6)
    assert not (tmp_path / "map.png").exists()


def test_an_evaluation_replaces_the_last_one_s_files(run: Path, tmp_path: Path) -> None:
    for name in ("confusion.png", "map.png", "per_class.csv", "results.json"):
        (tmp_path / name).write_text("old")
    few = ["--protocols", "geometry", "--map-images", "0", "--geometry-images", "14", "--out", str(tmp_path)]
    assert main([str(run), *few]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "results.json"]


@pytest.mark.parametrize("error", [UserError("the second one cannot be"), KeyboardInterrupt()])
def test_what_stops_a_protocol_leaves_the_figures_of_those_before_it(
    error: BaseException, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> Outcome:
        raise error

    monkeypatch.setitem(PROTOCOLS, "logistic", stopped)
    (tmp_path / "report.html").write_text("an earlier evaluation's")
    with pytest.raises(type(error)):
        main([str(run), "--protocols", "knn,logistic", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text())["figures"]["trained"]
    assert list(found) == ["knn"] and 0 <= found["knn"]["validation"]["top1"] <= 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["per_class.csv", "results.json"]


@pytest.mark.parametrize("protocol", ["knn", "geometry"])
def test_features_that_are_no_numbers_are_refused(protocol: str, run: Path, tmp_path: Path) -> None:
    state = load_checkpoint(run / "last.pt")
    state["method"]["encoder.backbone.layer4.0.bn1.running_var"][0] = torch.nan
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(
        UserError, match=r"^the network's features are not finite numbers: .*take an earlier checkpoint"
    ):
        main([str(tmp_path / "broken.pt"), "--protocols", protocol, "--geometry-images", "14"])


def test_a_regression_that_has_not_converged_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--protocols", "logistic", "--map-images", "0", "--out", str(tmp_path)]
    assert main([str(run), *options, "--logistic-iterations", "1"]) == 0
    assert "has not converged: raise --logistic-iterations" in capsys.readouterr().out
    assert main([str(run), *options]) == 0
    assert "has not converged" not in capsys.readouterr().out


def test_the_projection_is_another_space(run: Path, tmp_path: Path, evaluated: dict[str, Any]) -> None:
    options = ["--features", "projection", "--protocols", "knn,geometry", "--knn-k", "20", "--map-images", "0"]
    assert main([str(run / "last.pt"), *options, "--geometry-images", "21", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())["figures"]["trained"]["geometry"]
    backbone = evaluated["figures"]["trained"]["geometry"]
    for name, value in found["validation"].items():
        same = value == pytest.approx(backbone["validation"][name], rel=1e-5)
        assert same == name.startswith("pixel"), name  # the views are the same


def test_views_are_normalised_as_in_training_and_drawn_as_a_recipe_ends(run: Path) -> None:
    trained = load_trained(run, Said(), CPU)
    config = Config(checkpoint=run, recipe="gradual", size=24)
    views = views_of(config, trained)
    assert trained.recipe is not None and views.mean == trained.recipe.mean != RECIPES["gradual"].mean
    assert views.size == 24 and "> ColorJitter(brightness 1," in str(views)
    own = views_of(Config(checkpoint=run, recipe="multi-crop", size=24), trained)
    assert [(view.size, view.count) for view in own.views] == [(24, 2)]  # small views are another augmentation


def test_other_images_and_fewer_of_them(run: Path, images: Path, tmp_path: Path) -> None:
    given = ["--data", str(images / "train"), "--val-data", str(images / "val"), "--subset", "21"]
    chosen = ["--protocols", "knn", "--map-images", "0", "--out", str(tmp_path)]
    assert main([str(run), *given, *chosen]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert "train, 21 images, and val, 28 images, of 7 classes" in found["images"]


def test_the_encoder_is_the_checkpoint_s_and_the_untrained_one_the_run_s_first(run: Path) -> None:
    trained = load_trained(run, Said(method="moco-v2", width=8), CPU)
    state = load_checkpoint(run / "last.pt")["method"]
    assert not trained.encoder.training
    for name, value in trained.encoder.state_dict().items():
        assert torch.equal(value, state[f"encoder.{name}"])
    first, again = trained.build().state_dict(), trained.build().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["backbone.conv1.weight"], state["encoder.backbone.conv1.weight"])


def test_batch_norm_in_parts_is_evaluated_whole(images: Path, tmp_path: Path) -> None:
    """Its running statistics are plain ones: a checkpoint trained in two parts loads like any other."""
    arguments = [*TINY[:-1], "2", "--knn-every", "0", "--data", str(images), "--out", str(tmp_path / "run")]
    assert train(arguments) == 0
    encoder = load_trained(tmp_path / "run", Said(), CPU).encoder
    x = torch.randn(3, 3, 16, 16)
    together = encoder(x)
    torch.testing.assert_close(together, torch.cat([encoder(image[None]) for image in x]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--arch resnet50", "was trained with --arch resnet18, not resnet50: leave --arch out"),
        ("--width 16", "was trained with --width 8, not 16"),
        ("--stem imagenet", "was trained with --stem cifar, not imagenet"),
        ("--method simclr", "was trained with --method moco-v2, not simclr"),
        ("--protocols knn,nn", "--protocols 'nn' is not known: choose from knn, logistic, probe, geometry"),
        ("--features head", "--features 'head' is not known: choose one of backbone, projection"),
        ("--probe-views none", "--probe-views 'none' is not known: choose one of cropped, plain"),
        ("--geometry-share 1.5", "--geometry-share 1.5: a share is more than 0, and 1 at most"),
        ("--geometry-share nan", "--geometry-share nan: a share is more than 0, and 1 at most"),
        ("--knn-temperature nan", "--knn-temperature nan: this must be more than 0, and finite"),
        ("--logistic-c inf", "--logistic-c inf: this must be more than 0, and finite"),
        ("--probe.lrs 0.1 nan", "--probe.lrs: give learning rates that are more than 0, and finite"),
        ("--probe.weight-decays inf", "--probe.weight-decays: give weight decays that are 0 or more, and finite"),
        ("--knn-k 0", "--knn-k 0: this must be at least 1"),
        ("--probe-augmented-as finetune", "--probe-augmented-as 'finetune' is not known: choose one of moco"),
        ("--map-images 1", "--map-images 1: a map shows at least two images"),
        ("--amp fp8", "--amp 'fp8' is not known: choose one of auto, off"),
        ("--on-error go", "--on-error 'go' is not known: choose one of stop, skip"),
        ("--size 0", "--size 0: this must be at least 1"),
        ("--probe.held-out 1.5", "--probe.held-out 1.5: this is a share of the images"),
        ("--probe.held-out 0.001", "--probe.held-out 0.001 of 63 training images: it takes at least one"),
        ("--finetune.drops 60 80", "--drops 60: these are shares of the run"),
        ("--protocols knn,finetune --finetune.batch 64", "--finetune.batch 64 is larger than the training set (63"),
        ("--protocols knn,probe-augmented", "--probe-augmented.batch 256 is larger than the training set (63"),
        ("--protocols knn,finetune --finetune.recipe prob", "--recipe 'prob' is not known"),
        ("--data nowhere", "nowhere: neither a path that exists nor a known set"),
        ("--data {images}/train", "has no labelled validation images: name some with --val-data"),
        ("--out {images}/train/class%200/0000.png", "cannot be made (File exists): choose another --out"),
    ],
)
def test_wrong_inputs_are_one_line(arguments: str, message: str, run: Path, images: Path, tmp_path: Path) -> None:
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        main([str(run), *out, *(x.format(images=images).replace("%20", " ") for x in arguments.split())])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_few_images_for_the_geometry_may_be_all_of_one_class() -> None:
    source = ImageArrays(np.zeros((5, 8, 8, 3), np.uint8), [1, 0, 0, 0, 1], ("a", "b"), "five")
    check_images(["geometry"], ProtocolsConfig(geometry_images=3), source, source, None)
    with pytest.raises(UserError, match=r"^the 2 images .* are all of one class: raise --geometry-images"):
        check_images(["geometry"], ProtocolsConfig(geometry_images=2), source, source, None)
    check_images(["knn"], ProtocolsConfig(geometry_images=2), source, source, None)


def test_training_images_without_labels_are_refused_at_once(run: Path, images: Path, tmp_path: Path) -> None:
    for more in ([], ["--val-data", str(images)]):
        with pytest.raises(UserError, match=r"these training images have no labels .*: choose other --data"):
            main([str(run), "--data", str(images / "train" / "class 0"), "--out", str(tmp_path / "out"), *more])


def test_other_classes_to_validate_on_are_refused(run: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(images / "val" / "class 0")
    with pytest.raises(UserError, match="the classes to validate on"):
        main([str(run), "--val-data", str(tmp_path), "--out", str(tmp_path / "out")])


def damaged(state: dict[str, Any], change: str) -> dict[str, Any]:
    method, name = state["method"], "encoder.backbone.conv1.weight"
    if change == "missing":
        del method[name]
    elif change == "foreign":
        method["encoder.backbone.extra"] = torch.zeros(1)
    elif change == "shape":
        method[name] = method[name][:4]
    elif change == "method":
        del state["method"]
    else:
        state["config"] = state["config"] | {"settings": {"arch": "resnet34"}, "newer": {"method": "jepa"}}[change]
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "it has no backbone.conv1.weight"),
        ("foreign", "it holds backbone.extra, which has no place there"),
        ("shape", "backbone.conv1.weight is [4, 3, 3, 3] in it and [8, 3, 3, 3] there"),
        ("settings", "it has no backbone.layer1.2.conv1.weight"),
        ("newer", "was trained with --method jepa, which this version does not know: it has moco-v1, moco-v2"),
        ("method", "this is no checkpoint of a pre-training run"),
    ],
)
def test_a_checkpoint_whose_tensors_are_not_its_network_s_is_refused(
    change: str, message: str, run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.pt"
    torch.save(damaged(load_checkpoint(run / "last.pt"), change), path)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_trained(path, Said(), CPU)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    text = tmp_path / "text.pt"
    text.write_text("no checkpoint")
    with pytest.raises(UserError, match=r"text.pt: this is no checkpoint of a run; .* --arch resnet50$"):
        load_trained(text, Said(), CPU)
    with pytest.raises(UserError, match=r"^/.*text.pt: not a readable file of weights"):
        load_trained(text, Said(arch="resnet18"), CPU)
    with pytest.raises(UserError, match=r"this folder is no run"):
        load_trained(tmp_path, Said(), CPU)


def test_weights_from_elsewhere(images: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "resnet18.pth", tmp_path / "out"
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), path)
    trained = load_trained(path, Said(arch="resnet18"), CPU)
    assert torch.equal(trained.encoder.backbone.state_dict()["layer4.0.conv1.weight"], network.layer4[0].conv1.weight)
    assert trained.run is None and "weights in resnet18.pth" in trained.about
    small = ["--arch", "resnet18", "--size", "32", "--map-images", "0", "--geometry-images", "14", "--out", str(out)]
    assert main([str(path), *small, "--data", str(images), "--protocols", "knn,geometry"]) == 0
    assert "top1" in json.loads((out / "results.json").read_text())["figures"]["trained"]["knn"]["train"]
    for wrong, message in (
        (["--arch", "resnet50"], "is not of this resnet50: .* choose the --arch, --width and --stem"),
        (["--arch", "resnet18", "--method", "simclr"], "holds weights alone"),
        (["--arch", "resnet18", "--features", "projection"], "--features projection: .* holds a backbone alone"),
        (["--arch", "resnet18"], "do not say which images they are for: give --data"),
    ):
        with pytest.raises(UserError, match=message):
            main([str(path), *wrong])


def test_classifiers_on_augmented_images(run: Path, tmp_path: Path) -> None:
    options = "--protocols probe-augmented,finetune --probe-augmented-as imagenette --map-images 0"
    short = "--probe-augmented.epochs 1 --finetune.epochs 1 --finetune.batch 20 --finetune.loader folder"
    arguments = [*options.split(), *short.split(), "--probe-augmented.loader", "folder", "--out", str(tmp_path)]
    assert main([str(run), *arguments]) == 0
    figures = json.loads((tmp_path / "results.json").read_text())["figures"]["trained"]
    settings = {name: figures[name]["settings"] for name in ("probe-augmented", "finetune")}
    assert settings["probe-augmented"]["lr"] == 0.03 and settings["probe-augmented"]["batch"] == 32
    assert settings["finetune"]["finetune"] and settings["finetune"]["batch"] == 20
    for name in settings:
        assert 0 <= figures[name]["validation"]["top1"] <= figures[name]["validation"]["top5"] <= 100
        assert (tmp_path / f"{name}.csv").exists()


def test_it_runs_by_path_and_refuses_with_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "engine/evaluate/run.py"), "nowhere.pt"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"penstock: nowhere.pt: there is no such file; .*\n", done.stderr)
