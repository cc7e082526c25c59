"""SimCLR in plain PyTorch (Chen et al. 2020, arXiv 2002.05709), fed by Penstock.

    python docs/examples/plain_pytorch.py
    python docs/examples/plain_pytorch.py --data path/to/images --size 224 --epochs 100 --checkpoint simclr.pt

With --checkpoint it saves after each epoch and after --steps: the same command goes on with the very next sample.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
import tyro

from penstock.augment import load_recipe
from penstock.errors import run_command
from penstock.loaders import make_loader, open_source


def main(
    *,
    data: str = "shapes",
    loader: str = "folder",
    size: int = 32,
    batch: int = 64,
    epochs: int = 1,
    steps: int | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Train a ResNet-18.

    Args:
        data: a folder of images, a shard or a known set.
        loader: who loads them: folder, ffcv, dali, …
        size: side of the views in pixels.
        batch: images of a step.
        epochs: how often each image is seen.
        steps: stop after so many.
        checkpoint: the file to go on from, if it exists, and to write.
    """
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = torchvision.models.resnet18(num_classes=128).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)

    recipe = load_recipe("simclr", size=size)
    with make_loader(loader, open_source(data), recipe=recipe, batch=batch, device=device) as batches:
        kept: dict[str, Any] = {"model": model, "optimizer": optimizer, "batches": batches}
        if checkpoint and checkpoint.exists():
            for name, state in torch.load(checkpoint).items():
                kept[name].load_state_dict(state)
        taken = 0
        while (epoch := batches.state.epoch) < epochs and taken != steps:
            for views in batches:  # one epoch, or what is left of it
                loss = nt_xent(model(views.groups[0]))  # both views of each image, [2·N, 3, S, S]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                taken += 1
                if taken % 10 == 1:
                    print(f"epoch {epoch}, step {taken}: loss {loss.item():.3f}", flush=True)
                if taken == steps:
                    break
            if checkpoint:
                checkpoint.parent.mkdir(parents=True, exist_ok=True)
                torch.save({name: part.state_dict() for name, part in kept.items()}, checkpoint)


def nt_xent(z: torch.Tensor, temperature: float = 0.5) -> torch.Tensor:
    """Each of the 2·N projections [2·N, C] must pick its image's other view, N rows away, out of all others."""
    z = torch.nn.functional.normalize(z)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return torch.nn.functional.cross_entropy(similarity, torch.arange(len(z), device=z.device).roll(len(z) // 2))


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))  # a wrong path is said in one line
