"""detectron2's layout of a ResNet, as its DetectionCheckpointer reads it: a pickle of arrays by their names.

    stem.conv1.weight   stem.conv1.norm.weight, .bias, .running_mean, .running_var
    res2.0.conv1.…      likewise, to conv2 (ResNet-18, 34) or conv3, and to the last block of res5
    res2.0.shortcut.…   in a stage's first block, where channels or stride change

detectron2 strides a bottleneck's 3×3 convolution, as torchvision does, where STRIDE_IN_1X1 is False.
"""

from __future__ import annotations

import pickle
import re
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from penstock.engine.export.format import RESNETS, Features, Format, Network, other_width

FILE = "backbone-detectron2.pkl"
RULES = (  # torchvision's names, read from left to right, and detectron2's
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer1\.", "res2."),
    (r"^layer2\.", "res3."),
    (r"^layer3\.", "res4."),
    (r"^layer4\.", "res5."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
Weights = dict[str, torch.Tensor]


def refusal(network: Network) -> str | None:
    if not network.is_resnet:
        return f"detectron2's own backbones are ResNets, and this is {network.name}"
    if network.stem != "imagenet":
        return (
            f"detectron2's ResNet begins with a 7×7 convolution and max-pooling, and this one has the {network.stem}"
            " stem"
        )
    return other_width(network, "detectron2's")


def renamed(state: Weights) -> Weights:
    """A ResNet's tensors by detectron2's names. The count of batches has none there."""
    weights = {}
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            for pattern, replacement in RULES:
                name = re.sub(pattern, replacement, name)
            weights[name] = tensor
    return weights


class PlainPickler(pickle.Pickler):
    """Pickles arrays by names that every numpy has: numpy 2 writes others, which older ones, as beside detectron2,
    cannot read."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is np.ndarray:
            return np.ndarray, (value.shape, value.dtype.str, bytearray(value.tobytes()))
        return NotImplemented


def write(network: Network, path: Path) -> None:
    model = {name: tensor.numpy() for name, tensor in renamed(network.state()).items()}
    about = {"__author__": "Penstock", "matching_heuristics": True, "about": network.facts()}
    with path.open("wb") as file:
        PlainPickler(file, protocol=4).dump({"model": model, **about})


def read(network: Network, path: Path) -> Features:
    """detectron2's ResNet, written out: what it computes of its names alone, pooled at the end."""
    with path.open("rb") as file:
        model = pickle.load(file)["model"]
    weights = {name: torch.from_numpy(array) for name, array in model.items()}
    return lambda images: res5(weights, images).mean((2, 3))


def res5(weights: Weights, images: torch.Tensor) -> torch.Tensor:
    """The last stage's output [N, D, H / 32, W / 32] for images [N, 3, H, W]."""
    x = functional.relu(_convolve(weights, "stem.conv1", images, stride=2))
    x = functional.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    for stage in ("res2", "res3", "res4", "res5"):
        for number in count():
            if f"{stage}.{number}.conv1.weight" not in weights:
                break
            x = _block(weights, f"{stage}.{number}", x, stride=2 if stage != "res2" and number == 0 else 1)
    return x


def _block(weights: Weights, name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
    layers = [layer for layer in ("conv1", "conv2", "conv3") if f"{name}.{layer}.weight" in weights]
    y, strided = x, layers[-2]  # the first of two, the second of three: a 3×3 convolution
    for layer in layers:
        y = _convolve(weights, f"{name}.{layer}", y, stride=stride if layer == strided else 1)
        y = y if layer == layers[-1] else functional.relu(y)
    if f"{name}.shortcut.weight" in weights:
        x = _convolve(weights, f"{name}.shortcut", x, stride=stride)
    return functional.relu(y + x)


def _convolve(weights: Weights, name: str, x: torch.Tensor, *, stride: int) -> torch.Tensor:
    """A convolution and its normalisation."""
    kernel = weights[f"{name}.weight"]  # [out, in / groups, K, K]
    groups = x.shape[1] // kernel.shape[1]
    y = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
    mean, variance, scale, shift = (
        weights[f"{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return functional.batch_norm(y, mean, variance, scale, shift)


def usage(network: Network) -> str:
    """Lines of a detectron2 configuration: its pixels run from 0 to 255."""
    depth = RESNETS[network.name]
    out, per_group = network.backbone.state_dict()["layer1.0.conv2.weight"].shape[:2]
    mean, std = ([round(255 * x, 3) for x in values] for values in (network.mean, network.std))
    lines = [
        "MODEL:",
        f'  WEIGHTS: "{FILE}"',
        f"  PIXEL_MEAN: {mean}",
        f"  PIXEL_STD: {std}",
        "  RESNETS:",
        f"    DEPTH: {depth}",
        "    STRIDE_IN_1X1: False",
        f"    NUM_GROUPS: {out // per_group}",
        f"    WIDTH_PER_GROUP: {per_group}",
        f"    RES2_OUT_CHANNELS: {64 if depth < 50 else 256}",
        "INPUT:",
        '  FORMAT: "RGB"',
    ]
    also = (
        "MoCo's authors also train all layers and their normalisation (`BACKBONE.FREEZE_AT: 0`, `RESNETS.NORM:"
        ' "SyncBN"`; arXiv 1911.05722, section 4.2).'
    )
    return "\n".join(["```yaml", *lines, "```", "", also])


DETECTRON2 = Format(
    file=FILE,
    about="detectron2's ResNet",
    refusal=refusal,
    require=lambda: None,
    write=write,
    read=read,
    usage=usage,
)
