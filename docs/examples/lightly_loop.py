"""MoCo v2 of lightly's modules (docs.lightly.ai/examples/moco), fed by Penstock: no transform, no DataLoader.

pip install lightly
python docs/examples/lightly_loop.py
python docs/examples/lightly_loop.py --data path/to/images --size 224 --batch 256 --epochs 200
"""

from __future__ import annotations

import copy
from itertools import islice

import torch
import torchvision
import tyro
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import nn

from penstock.augment import load_recipe
from penstock.errors import run_command
from penstock.loaders import make_loader, open_source


class MoCo(nn.Module):
    """A backbone and a head for queries, and copies of both that follow them slowly and make the keys."""

    def __init__(self) -> None:
        super().__init__()
        backbone = torchvision.models.resnet18()
        backbone.fc = nn.Identity()
        self.query = nn.Sequential(backbone, MoCoProjectionHead(512, 512, 128))
        self.key = copy.deepcopy(self.query)
        deactivate_requires_grad(self.key)


def main(
    *,
    data: str = "shapes",
    loader: str = "folder",
    size: int = 32,
    batch: int = 64,
    epochs: int = 1,
    steps: int | None = None,
) -> None:
    """Train a ResNet-18.

    Args:
        data: a folder of images, a shard or a known set.
        loader: who loads them: folder, ffcv, dali, …
        size: side of the views in pixels.
        batch: images of a step.
        epochs: how often each image is seen.
        steps: of an epoch; the next one goes on with the images that are left.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = MoCo().to(device, memory_format=torch.channels_last)
    criterion = NTXentLoss(temperature=0.2, memory_bank_size=(1024, 128)).to(device)
    optimizer = torch.optim.SGD(model.query.parameters(), lr=0.06, momentum=0.9)

    recipe = load_recipe("moco-v2", size=size)
    with make_loader(loader, open_source(data), recipe=recipe, batch=batch, device=device) as batches:
        for epoch in range(epochs):
            momentum = cosine_schedule(epoch, epochs, 0.996, 1)
            for views in islice(batches, steps):
                query_views, key_views = views.split()  # [N, 3, S, S] each
                update_momentum(model.query, model.key, m=momentum)
                with torch.no_grad():
                    key = model.key(key_views)
                loss = criterion(model.query(query_views), key)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            print(f"epoch {epoch}: loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))  # a wrong path is said in one line
