"""A trained network in its run's folder, as the tests of exports take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from penstock.augment import load_recipe
from penstock.augment.recipes import dump_recipe
from penstock.engine.checkpoint import save_checkpoint
from penstock.engine.config import TrainConfig, to_dict
from penstock.engine.csv_log import CsvLog
from penstock.engine.defaults import complete
from penstock.engine.distributed import Team
from penstock.engine.methods import build_method

FILES = {
    "torchvision": "backbone-torchvision.safetensors", "timm": "backbone-timm.safetensors",
    "detectron2": "backbone-detectron2.pkl", "onnx": "backbone.onnx",
}  # fmt: skip
PUBLISHED = {"arch": "resnet18", "width": 64, "stem": "imagenet", "size": 64}


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


def images(count: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(7))
