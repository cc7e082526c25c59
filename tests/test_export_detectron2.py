"""Exports for detectron2: its names, shapes and numbers, held against a ResNet written from its documentation.

`DetectronResNet` follows MODEL.RESNETS, with modules whose names are the rule, so it is independent of our renaming.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional

from penstock.engine.backbones import build_backbone
from penstock.engine.export import detectron2
from penstock.engine.export.format import RESNETS, Network
from penstock.engine.export.run import main
from tests.runs_to_export import FILES, PUBLISHED, images, save_run, stirred

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run's network was exported to."""
    folder = save_run(tmp_path_factory.mktemp("runs") / "run", **PUBLISHED)
    assert main([str(folder), "--to", "detectron2"]) == 0
    return folder / "export"


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
