"""`python engine/export/run.py`: files that torchvision, timm, detectron2 and ONNX's runtime read as what they are."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from penstock.engine.backbones import build_backbone
from penstock.engine.config import CompleteConfig, TrainConfig, from_dict
from penstock.engine.evaluate.trained import Said, digest, load_trained
from penstock.engine.export.card import origin_of, results, what
from penstock.engine.export.format import Network
from penstock.engine.export.run import FORMATS, choose, export, main, network_of, probes_of
from penstock.engine.weights import load_weights
from penstock.errors import MissingExtra, UserError
from tests.runs_to_export import FILES, PUBLISHED, images, save_run, stirred

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
MOBILENET = {"arch": "mobilenet_v3_small", "width": None, "stem": None}
VIT = {"arch": "timm:test_vit", "width": None, "stem": None, "size": 160}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, of a network as published."""
    return save_run(tmp_path_factory.mktemp("runs") / "run", **PUBLISHED)


@pytest.fixture(scope="module")
def said(run: Path) -> str:
    """What an export in every format printed."""
    with redirect_stdout(io.StringIO()) as printed:
        assert main([str(run)]) == 0
    return printed.getvalue()


def network(folder: Path) -> Network:
    return network_of(origin_of(folder / "last.pt", load_trained(folder, Said(), CPU)), Said())


@pytest.fixture(scope="module")
def out(run: Path, said: str) -> Path:
    return run / "export"


def features(run: Path, batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return load_trained(run, Said(), CPU).encoder.backbone(batch)


def snippets(card: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)


def run_snippets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the names in the card's Python blocks came to."""
    monkeypatch.chdir(folder)
    found = []
    for code in snippets(folder / "README.md"):
        names: dict[str, Any] = {}
        exec(code, names)
        found.append(names)
    return found


def test_every_format_is_written_read_back_and_named(out: Path, said: str) -> None:
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES.values(), "README.md"])
    for file in FILES.values():
        share = re.search(
            rf"{file}: 4\d\.\d MB; read back, its features (differ by (\S+) of the largest|are the same)", said
        )
        assert share and float(share[2] or 0) < 1e-5
    assert "resnet18 of width 64, imagenet stem: moco-v2" in said and "left out" not in said


def test_torchvision_s_file_has_its_names_and_the_checkpoint_s_tensors(run: Path, out: Path) -> None:
    theirs = torchvision.models.resnet18()
    found = load_file(out / FILES["torchvision"])
    missing, unexpected = theirs.load_state_dict(found, strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"} and not unexpected
    ours = torch.load(run / "last.pt", weights_only=True)["method"]
    for name, tensor in found.items():
        assert torch.equal(tensor, ours[f"encoder.backbone.{name}"]) and tensor.is_contiguous(), name
        assert tensor.dtype == theirs.state_dict()[name].dtype, name
    with safe_open(out / FILES["torchvision"], "pt") as file:
        about = file.metadata()
    assert about["method"] == "moco-v2" and about["mean"] == "0.4914 0.4822 0.4465" and about["size"] == "64"
    assert about["data"] == "cifar10" and about["epochs"] == "3 of 5"


def test_the_card_s_code_gives_the_checkpoint_s_features(run: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_s, timm_s, onnx_s = run_snippets(out, monkeypatch)
    for names in (torchvision_s, timm_s):
        assert not names["network"].training
        with torch.inference_mode():
            torch.testing.assert_close(names["network"](images()), features(run, images()), rtol=1e-4, atol=1e-4)
    assert type(timm_s["network"]).__module__.startswith("timm.")
    assert onnx_s["features"].shape == (4, 512)


@pytest.mark.parametrize("shape", [(1, 64, 64), (5, 33, 150)])
def test_onnx_takes_any_number_of_images_of_any_size(shape: tuple[int, int, int], run: Path, out: Path) -> None:
    session = onnxruntime.InferenceSession(out / FILES["onnx"], providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {"images": images(*shape).numpy()})
    torch.testing.assert_close(torch.from_numpy(made), features(run, images(*shape)), rtol=1e-4, atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map["std"] == "0.2023 0.1994 0.201"


@pytest.mark.parametrize("stem", ["cifar", "half"])
def test_small_stems_are_theirs_with_two_layers_replaced(
    stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save_run(tmp_path / "run", **PUBLISHED | {"stem": stem, "size": 32})
    assert main([str(run / "last.pt"), "--to", "torchvision", "timm", "--out", str(tmp_path / "out")]) == 0
    for names in run_snippets(tmp_path / "out", monkeypatch):
        with torch.inference_mode():
            made = names["network"](images(2, 32, 32))
        torch.testing.assert_close(made, features(run, images(2, 32, 32)), rtol=1e-4, atol=1e-4)


def test_a_network_of_timm_s_goes_to_timm_and_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_run(tmp_path / "run", **VIT, bn_splits=1)
    assert choose((), network(run))[0] == ["timm", "onnx"]
    assert main([str(run)]) == 0
    timm_s, onnx_s = run_snippets(run / "export", monkeypatch)
    batch = images(4, 160, 160)
    with torch.inference_mode():
        torch.testing.assert_close(timm_s["network"](batch), features(run, batch), rtol=1e-4, atol=1e-4)
    assert "any number of images of 160 × 160" in snippets(run / "export" / "README.md")[1]
    assert onnx_s["features"].shape == features(run, batch).shape


def test_a_network_of_torchvision_s_alone_goes_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_run(tmp_path / "run", **MOBILENET, size=64, bn_splits=1)
    names, left_out = choose((), network(run))
    assert names == ["torchvision", "onnx"] and list(left_out) == ["timm", "detectron2"]
    assert main([str(run), "--to", "torchvision"]) == 0
    (found,) = run_snippets(run / "export", monkeypatch)
    with torch.inference_mode():
        torch.testing.assert_close(found["network"](images()), features(run, images()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "to", "message"),
    [
        ({"stem": "cifar"}, "detectron2", "has the cifar stem; it can be exported with --to torchvision timm onnx"),
        ({"width": 16}, "torchvision", "torchvision's resnet18 has 64 channels in its first stage, and this one 16;"),
        ({"width": 16}, "detectron2", "detectron2's resnet18 has 64 channels in its first stage, and this one 16;"),
        ({"width": 8, "stem": "half"}, "timm", "this one 8; it can be exported with --to onnx"),
        ({"width": 8}, "onnx timm", "--to timm: timm's resnet18 has 64 channels"),
        (MOBILENET, "detectron2", "detectron2's own backbones are ResNets, and this is mobilenet_v3_small; it can be"),
        (MOBILENET, "timm", "this is torchvision's mobilenet_v3_small, which timm does not build alike"),
        (VIT, "torchvision", "this is timm's test_vit, which torchvision does not build alike; it can be exported"),
    ],
)  # fmt: skip
def test_a_wrong_architecture_is_one_line(settings: dict[str, Any], to: str, message: str, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", **{"bn_splits": 1, **PUBLISHED, **settings})
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        main([str(run), "--to", *to.split()])
    assert "\n" not in str(caught.value) and not (run / "export").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{run} --to caffe", "--to 'caffe' is not known: choose from torchvision, timm, detectron2, onnx"),
        ("{run} --arch resnet50", "was trained with --arch resnet18, not resnet50"),
        ("{run}/notes.txt", "notes.txt: this is no checkpoint of a run"),
        ("{run}/nothing.pt", "nothing.pt: there is no such file"),
        ("{run} --to timm --out {run}/last.pt", "last.pt: cannot be made (File exists): choose another --out"),
    ],
)
def test_wrong_inputs_are_one_line(arguments: str, message: str, run: Path) -> None:
    (run / "notes.txt").write_text("no checkpoint")
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        main(arguments.format(run=run).split())
    assert "\n" not in str(caught.value)


def wrong(network: Network) -> Network:
    """The same but for one of its numbers."""
    backbone, _ = build_backbone("resnet18", stem="imagenet")
    backbone.load_state_dict(network.state())
    backbone.eval().layer4[1].bn2.bias[0] += 0.5
    return replace(network, backbone=backbone)


@pytest.mark.parametrize("name", ["torchvision", "timm", "detectron2"])
def test_a_file_that_gives_other_features_is_not_kept(name: str, run: Path, tmp_path: Path) -> None:
    right = network(run)
    probes = probes_of(right)
    with torch.no_grad(), pytest.raises(UserError, match=r"not kept: read back, its features differ by 0\.\d+ of the"):
        export(FORMATS[name], wrong(right), probes, tmp_path)
    assert not list(tmp_path.iterdir())
    assert export(FORMATS[name], right, probes, tmp_path) < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == [FILES[name]]


def test_a_network_whose_features_are_no_numbers_is_refused(run: Path, tmp_path: Path) -> None:
    state = torch.load(run / "last.pt", weights_only=True)
    state["method"]["encoder.backbone.layer4.0.bn1.running_var"][0] = torch.nan
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(UserError, match=r"^the network's features are not finite numbers: take an earlier"):
        main([str(tmp_path / "broken.pt"), "--to", "timm"])
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pt"]


@pytest.mark.parametrize(("name", "package", "extra"), [("onnx", "onnxscript", "export"), ("timm", "timm", "timm")])
def test_a_package_that_is_missing_is_named(
    name: str, package: str, extra: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"^{package} is not installed: .*\[{extra}\]"):
        main([str(run), "--to", name])
    names, left_out = choose((), network(run))
    assert names == [other for other in FORMATS if other != name]
    assert list(left_out) == [name] and "is not installed" in left_out[name]


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_training_starts_from_an_exported_file(name: str, run: Path, out: Path, tmp_path: Path) -> None:
    backbone, _ = build_backbone("resnet18", stem="imagenet")
    load_weights(backbone, out / FILES[name], "resnet18")
    found = load_file(out / FILES[name])
    assert all(torch.equal(tensor, found[key]) for key, tensor in backbone.state_dict().items())
    again = tmp_path / "again"
    assert main([str(out / FILES[name]), "--arch", "resnet18", "--to", name, "--out", str(again)]) == 0
    second = load_file(again / FILES[name])
    assert second.keys() == found.keys() and all(torch.equal(found[key], second[key]) for key in found)


def test_weights_of_the_moco_authors_go_to_detectron2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = stirred(torchvision.models.resnet18())
    state = {f"module.encoder_q.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "moco.pth.tar")
    assert main([str(tmp_path / "moco.pth.tar"), "--arch", "resnet18", "--to", "detectron2"]) == 0
    assert "weights in moco.pth.tar" in capsys.readouterr().out
    with (tmp_path / "export" / FILES["detectron2"]).open("rb") as file:
        found = pickle.load(file)["model"]
    assert np.array_equal(found["res4.1.conv2.norm.running_var"], source.layer3[1].bn2.running_var.numpy())
    card = (tmp_path / "export" / "README.md").read_text()
    assert "The weights are those of `moco.pth.tar`" in card and "None are known." in card
    assert "PIXEL_MEAN: [123.675, 116.28, 103.53]" in card and "not known here" in card


def test_the_card_says_what_the_network_is(run: Path, out: Path) -> None:
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised-learning", "penstock", "moco-v2"],
    }
    assert "# resnet18 by moco-v2 on cifar10" in card and "for 3 of 5 epochs" in card
    assert "(0.4914, 0.4822, 0.4465)" in card and "64 × 64" in card
    assert "| loss | 2 |" in card and "(backbone, k 200, T 0.1), validation, top-1 % | 23.5 |" in card  # of epoch 3
    assert "untrained network | 11.25 |" in card
    assert "/disk7" not in card and str(run) not in card
    settings = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)[-1])
    trained = load_trained(run, Said(), CPU).run
    assert isinstance(trained, CompleteConfig)
    assert from_dict(settings) == TrainConfig(**vars(trained) | {"data": "cifar10"} | dict.fromkeys(("out",)))


def test_the_card_of_a_run_from_other_weights_says_of_which(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "supervised.pth")
    run = save_run(tmp_path / "run", **PUBLISHED, init=tmp_path / "supervised.pth")
    assert main([str(run), "--to", "torchvision"]) == 0
    card = (run / "export" / "README.md").read_text()
    assert "for 3 of 5 epochs, from the weights of `supervised.pth` on." in card
    assert "| the same kNN of the weights it began with (`supervised.pth`) | 11.25 |" in card
    assert "untrained" not in card and str(tmp_path) not in card
    with safe_open(run / "export" / FILES["torchvision"], "pt") as file:
        assert file.metadata()["began_with"] == "supervised.pth"


def test_before_the_first_epoch_nothing_is_compared(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", epoch=0, **PUBLISHED)
    said = results(origin_of(run / "last.pt", load_trained(run, Said(), CPU)))
    assert "top-1 % | 11.25 |" in said and "the same kNN" not in said


def evaluated(checkpoint: Path, out: Path, **changed: Any) -> None:
    """What an evaluation of the checkpoint leaves."""
    figures = {
        "knn": {"validation": {"top1": 43.21, "top5": 90.0}, "k": 5, "temperature": 0.07},
        "geometry": {"validation": {"std": 1.0}},
    }
    found = {
        "weights": digest(load_trained(checkpoint, Said(), CPU).encoder.backbone),
        "images": "shapes-train, 9 images",
        "settings": {"features": "backbone", "size": 48},
        "figures": {"trained": figures},
    }
    out.mkdir()
    (out / "results.json").write_text(json.dumps(found | changed))


@pytest.mark.parametrize("folder", ["evaluation", "downstream"])
def test_an_evaluation_is_on_the_card_with_its_images_and_how_it_was_done(
    folder: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "last.pt").symlink_to(run / "last.pt")
    evaluated(run / "last.pt", tmp_path / folder)
    assert results(origin_of(tmp_path / "last.pt", load_trained(run, Said(), CPU))) == (
        "Evaluated at 48 px on shapes-train, 9 images:\n\n| measure | |\n|---|---|\n"
        "| knn (k 5, T 0.07), validation, top-1 % | 43.21 |\n| knn (k 5, T 0.07), validation, top-5 % | 90.00 |"
    )


@pytest.mark.parametrize(
    "changed",
    [{"weights": "of others"}, {"weights": None}, {"settings": {"features": "projection", "size": 48}}],
)
def test_an_evaluation_of_other_weights_or_another_space_is_not(
    changed: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    (tmp_path / "last.pt").symlink_to(run / "last.pt")
    evaluated(run / "last.pt", tmp_path / "evaluation", **changed)
    assert results(origin_of(tmp_path / "last.pt", load_trained(run, Said(), CPU))) == "None are known."


def test_weights_from_the_middle_of_an_epoch_have_figures_of_their_own_alone(run: Path, tmp_path: Path) -> None:
    """The log's row is of the weights at the epoch's end, and so is the other checkpoint's evaluation."""
    state = torch.load(run / "last.pt", weights_only=True)
    state["position"]["consumed"] = 8
    state["method"]["encoder.backbone.conv1.weight"] += 1
    torch.save(state, tmp_path / "last.pt")
    (tmp_path / "epochs.csv").symlink_to(run / "epochs.csv")
    evaluated(run / "last.pt", tmp_path / "evaluation")
    origin = origin_of(tmp_path / "last.pt", load_trained(tmp_path, Said(), CPU))
    assert results(origin) == "None are known."
    evaluated(tmp_path / "last.pt", tmp_path / "downstream")
    assert results(origin).startswith("Evaluated") and results(origin).count("43.21") == 1
    assert "for 3 of 5 epochs, taken in the middle of epoch 4. " in what(network_of(origin, Said()))
    assert "taken" not in network(run).about


def test_it_runs_by_path_and_refuses_with_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "engine/export/run.py"), "nowhere.pt"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"penstock: nowhere.pt: there is no such file; .*\n", done.stderr)
