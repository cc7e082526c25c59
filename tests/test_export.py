"""`python engine/export/run.py`: files that torchvision, timm, detectron2 and ONNX's runtime read as what they are."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import re
import subprocess
import sys
from collections.abc import Iterator
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
from torch import nn
from torch.nn import functional

from penstock.augment import load_recipe
from penstock.augment.recipes import dump_recipe
from penstock.engine.backbones import build_backbone
from penstock.engine.checkpoint import save_checkpoint
from penstock.engine.config import CompleteConfig, TrainConfig, from_dict, to_dict
from penstock.engine.csv_log import CsvLog
from penstock.engine.defaults import complete
from penstock.engine.distributed import Team
from penstock.engine.evaluate.trained import Said, load_trained
from penstock.engine.export import detectron2
from penstock.engine.export.card import origin_of, results, what
from penstock.engine.export.format import RESNETS, Network
from penstock.engine.export.run import FORMATS, choose, export, main, network_of, probes_of
from penstock.engine.methods import build_method
from penstock.engine.weights import load_weights
from penstock.errors import MissingExtra, UserError

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
FILES = {
    "torchvision": "backbone-torchvision.safetensors", "timm": "backbone-timm.safetensors",
    "detectron2": "backbone-detectron2.pkl", "onnx": "backbone.onnx",
}  # fmt: skip
MOBILENET = {"arch": "mobilenet_v3_small", "width": None, "stem": None}
VIT = {"arch": "timm:test_vit", "width": None, "stem": None, "size": 160}
PUBLISHED = {"arch": "resnet18", "width": 64, "stem": "imagenet", "size": 64}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


def stirred(network: nn.Module) -> nn.Module:
    """The network with no tensor like another: an untrained one cannot tell its normalisations apart."""
    noise = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            positive = name.endswith(("weight", "running_var"))
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=noise) - (0 if positive else 0.5))
    return network.eval()


def save_run(folder: Path, *, epoch: int = 3, **settings: Any) -> Path:
    """The folder of a run: its checkpoint, and its log if that many epochs are over."""
    given = {"data": "cifar10:/disk7/sets", "batch": 8, "queue": 64, "bn_splits": 2, "epochs": 5, **settings}
    config = complete(TrainConfig(**given), source="cifar10-train", length=1000, world=1)
    method = build_method(config, Team())
    stirred(method.encoder)
    state = {"config": to_dict(config), "method": method.state_dict(), "samples": 1000}
    state["recipe"] = dump_recipe(load_recipe(config.recipe))
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "last.pt", {**state, "position": {"epoch": epoch, "consumed": 0, "step": 0}})
    log = CsvLog(folder / "epochs.csv", ["epoch", "loss", "knn"], key="epoch", keep=None)
    log.write({"epoch": 0, "knn": 11.25})
    for past in range(1, 5):
        log.write({"epoch": past, "loss": 5.0 - past, "knn": 20.5 + past})
    log.close()
    return folder


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


def images(count: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(7))


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


# detectron2's ResNet, from its documentation of MODEL.RESNETS: modules whose names are the rule, independent of ours


class Convolution(nn.Conv2d):
    """A convolution that owns its normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut = Convolution(inputs, outputs, 1, stride) if inputs != outputs else nn.Identity()


class Basic(Block):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        self.conv1, self.conv2 = Convolution(inputs, outputs, 3, stride), Convolution(outputs, outputs, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.conv2(functional.relu(self.conv1(x))) + self.shortcut(x))


class Bottleneck(Block):
    """With STRIDE_IN_1X1 False."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, inner: int, groups: int) -> None:
        super().__init__(inputs, outputs, stride)
        self.conv1, self.conv2 = Convolution(inputs, inner, 1), Convolution(inner, inner, 3, stride, groups)
        self.conv3 = Convolution(inner, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.conv2(functional.relu(self.conv1(x))))
        return functional.relu(self.conv3(y) + self.shortcut(x))


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Convolution(3, 64, 7, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.max_pool2d(functional.relu(self.conv1(x)), 3, 2, 1)


class DetectronResNet(nn.Module):
    """What `build_resnet_backbone` makes of MODEL.RESNETS; the output is res5's."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        assert settings["STRIDE_IN_1X1"] is False
        depth, groups = settings["DEPTH"], settings["NUM_GROUPS"]
        blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
        self.stem = Stem()
        inputs, outputs, inner = 64, settings["RES2_OUT_CHANNELS"], groups * settings["WIDTH_PER_GROUP"]
        assert depth > 34 or (outputs, groups) == (64, 1)  # so says detectron2
        for stage, count in zip((2, 3, 4, 5), blocks, strict=True):
            made: list[nn.Module] = []
            for number in range(count):
                stride = 2 if stage > 2 and number == 0 else 1
                made.append(
                    Bottleneck(inputs, outputs, stride, inner=inner, groups=groups)
                    if depth > 34
                    else Basic(inputs, outputs, stride)
                )
                inputs = outputs
            self.add_module(f"res{stage}", nn.Sequential(*made))
            outputs, inner = 2 * outputs, 2 * inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.children():
            x = stage(x)
        return x


def configured(network: Network) -> tuple[DetectronResNet, dict[str, Any]]:
    """A detectron2 network by the card's configuration, and that configuration."""
    block = re.search(r"```yaml\n(.*?)```", detectron2.usage(network), re.DOTALL)
    assert block is not None
    settings = yaml.safe_load(block[1])
    return DetectronResNet(settings["MODEL"]["RESNETS"]).eval(), settings


def bare(arch: str) -> Network:
    """A published network, untrained."""
    backbone, _ = build_backbone(arch, stem="imagenet")
    return Network(
        backbone=backbone, arch=arch, width=64, stem="imagenet", size=64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2),
        about={},
    )  # fmt: skip


@pytest.mark.parametrize("arch", RESNETS)
def test_detectron2_s_names_and_shapes_are_those_of_its_configuration(arch: str) -> None:
    with torch.device("meta"):
        network = bare(arch)
        theirs, settings = configured(network)
    expected = {n: x.shape for n, x in theirs.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert {n: x.shape for n, x in detectron2.renamed(network.backbone.state_dict()).items()} == expected
    assert settings["INPUT"]["FORMAT"] == "RGB"
    assert settings["MODEL"]["PIXEL_MEAN"] == [102.0, 127.5, 153.0] and settings["MODEL"]["PIXEL_STD"] == [51.0] * 3


def test_some_of_detectron2_s_names(out: Path) -> None:
    """Spelt out, as its model zoo's files have them."""
    with (out / FILES["detectron2"]).open("rb") as file:
        found = pickle.load(file, encoding="latin1")
    assert found["matching_heuristics"] is True and found["__author__"] == "Penstock"
    shapes = {name: array.shape for name, array in found["model"].items()}
    assert shapes["stem.conv1.weight"] == (64, 3, 7, 7) and shapes["stem.conv1.norm.running_var"] == (64,)
    assert shapes["res2.1.conv2.norm.bias"] == (64,) and "res2.0.shortcut.weight" not in shapes
    assert shapes["res3.0.shortcut.weight"] == (128, 64, 1, 1) and shapes["res3.0.shortcut.norm.running_mean"] == (128,)
    assert shapes["res5.1.conv2.weight"] == (512, 512, 3, 3) and len(shapes) == 100
    assert all(type(array) is np.ndarray and array.dtype == np.float32 for array in found["model"].values())


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_detectron2_computes_what_the_backbone_does_before_pooling(arch: str, tmp_path: Path) -> None:
    network, seen = bare(arch), []
    stirred(network.backbone).layer4.register_forward_hook(lambda *call: seen.append(call[-1]))
    detectron2.write(network, tmp_path / "backbone.pkl")
    with (tmp_path / "backbone.pkl").open("rb") as file:
        model = {name: torch.from_numpy(array) for name, array in pickle.load(file)["model"].items()}
    theirs, _ = configured(network)
    missing, unexpected = theirs.load_state_dict(model, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    with torch.inference_mode():
        network.backbone(images())
        torch.testing.assert_close(theirs(images()), seen[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(detectron2.res5(model, images()), seen[0], rtol=1e-4, atol=1e-4)


def test_the_pickle_names_only_what_every_numpy_has(out: Path) -> None:
    """numpy 2 pickles arrays by names that those before 1.26 do not know."""
    strings: list[str] = []
    named = set()
    for operation, argument, _ in pickletools.genops((out / FILES["detectron2"]).read_bytes()):
        if operation.name == "STACK_GLOBAL":
            named.add(tuple(strings[-2:]))
        if isinstance(argument, str):
            strings.append(argument)
    assert named == {("numpy", "ndarray"), ("builtins", "bytearray")}


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


@pytest.mark.parametrize("folder", ["evaluation", "downstream"])
@pytest.mark.parametrize(("epochs", "shown"), [("3 epochs", True), ("2 epochs", False)])
def test_an_evaluation_is_on_the_card_if_it_is_of_the_same_weights(
    epochs: str, shown: bool, folder: str, run: Path, tmp_path: Path
) -> None:
    trained = load_trained(run, Said(), CPU)
    (tmp_path / folder).mkdir()
    figures = {
        "knn": {"train": {"top1": 50.0}, "validation": {"top1": 43.21, "top5": 90.0}},
        "geometry": {"train": {"std": 1.0}, "validation": {"std": 1.0}},
    }
    found = {"network": f"{trained.about.replace('3 epochs', epochs)}; its backbone", "figures": {"trained": figures}}
    (tmp_path / folder / "results.json").write_text(json.dumps(found))
    (tmp_path / "last.pt").symlink_to(run / "last.pt")
    said = results(origin_of(tmp_path / "last.pt", trained))
    assert ("| knn, validation, top-1 % | 43.21 |" in said) is shown
    assert ("| knn, validation, top-5 % | 90.00 |" in said) is shown and "geometry" not in said


def test_weights_from_the_middle_of_an_epoch_have_no_figures(run: Path, tmp_path: Path) -> None:
    """The log's row and an evaluation that names as many epochs are of the weights at that epoch's end."""
    state = torch.load(run / "last.pt", weights_only=True)
    state["position"]["consumed"] = 8
    torch.save(state, tmp_path / "last.pt")
    (tmp_path / "epochs.csv").symlink_to(run / "epochs.csv")
    trained = load_trained(tmp_path, Said(), CPU)
    found = {
        "network": f"{trained.about}; its backbone",
        "figures": {"trained": {"knn": {"validation": {"top1": 43.2}}}},
    }
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "results.json").write_text(json.dumps(found))
    origin = origin_of(tmp_path / "last.pt", trained)
    assert "middle of an epoch" in results(origin) and "|" not in results(origin)
    assert "for 3 of 5 epochs, taken in the middle of epoch 4. " in what(network_of(origin, Said()))
    assert "taken" not in network(run).about


def test_it_runs_by_path_and_refuses_with_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "engine/export/run.py"), "nowhere.pt"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"penstock: nowhere.pt: there is no such file; .*\n", done.stderr)
