"""A method in solo-learn's form, a LightningModule that takes `(index, [crop, crop], label)`, fed by Penstock.

    pip install lightning
    python docs/examples/solo_learn_loop.py --data path/to/images --size 224 --batch 256 --epochs 200

solo-learn's release on PyPI (1.0.2) wants torch 1.9.1, so it cannot be installed beside Penstock; its methods, taken
from a clone, get their batches from `SoloBatches` as the one below does. The method is VICReg (Bardes et al. 2022,
arXiv 2105.04906).
"""

from __future__ import annotations

from collections.abc import Iterator

import lightning
import torch
import torchvision
import tyro
from torch import nn
from torch.nn import functional

from penstock.augment import load_recipe
from penstock.errors import run_command
from penstock.loaders import Loader, make_loader, open_source

Batch = tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]


class SoloBatches:
    """solo-learn's batches: index [N], each crop [N, 3, S, S], label [N]. Lightning keeps its state in checkpoints."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.state_dict, self.load_state_dict = loader.state_dict, loader.load_state_dict

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for views in self.loader:
            yield views.index, views.split(), views.label


class VICReg(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = torchvision.models.resnet18(num_classes=256)
        self.projector = nn.Sequential(nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        _, crops, _ = batch
        z1, z2 = (self.projector(self.backbone(crop)) for crop in crops)
        loss = 25 * functional.mse_loss(z1, z2) + regulariser(z1) + regulariser(z2)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def regulariser(z: torch.Tensor) -> torch.Tensor:
    """Keeps each dimension of z [N, C] spread out, and apart from the others."""
    z = z - z.mean(0)
    covariance = z.T @ z / (len(z) - 1)
    spread = functional.relu(1 - torch.sqrt(covariance.diagonal() + 1e-4)).mean()
    return 25 * spread + (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]


def main(
    *, data: str = "shapes", loader: str = "folder", size: int = 32, batch: int = 64, epochs: int = 1, steps: int = -1
) -> None:
    """Train a ResNet-18 on a folder of images, a shard or a known set; --steps stops it early."""
    trainer = lightning.Trainer(max_epochs=epochs, max_steps=steps, logger=False, enable_checkpointing=False)
    ranks = {"rank": trainer.global_rank, "world": trainer.world_size}
    with make_loader(loader, open_source(data), recipe=load_recipe("byol", size=size), batch=batch, **ranks) as batches:
        trainer.fit(VICReg(), SoloBatches(batches))


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))  # a wrong path is said in one line
