"""On a GPU: no loader of ours, and no step of any method, has the host wait for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from penstock.augment import load_recipe
from penstock.benchmarks.training_steps import PenstockStep
from penstock.engine.config import TrainConfig
from penstock.engine.defaults import METHODS, complete
from penstock.engine.distributed import Team
from penstock.engine.methods import build_method
from penstock.engine.optimizer import build_optimizer
from penstock.engine.precision import Precision
from penstock.loaders import Views, make_loader, open_source

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="it takes a GPU")

OPTIONS: dict[str, dict[str, Any]] = {method: {"method": method} for method in METHODS} | {
    "mochi": {"mochi": (64, 64, 16)},
    "debias": {"debias": 0.1},
    "symmetric": {"symmetric": True},
}


@contextmanager
def no_waiting() -> Iterator[None]:
    """What makes the host wait for the device raises a RuntimeError."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("loader", "executor"), [("resident", "fused_gpu"), ("folder", "fused_gpu"), ("folder", "fused_cpu")]
)
def test_a_loader(loader: str, executor: str) -> None:
    recipe = load_recipe("moco-v2", size=64)
    source = open_source("shapes", limit=256)
    with make_loader(loader, source, recipe=recipe, batch=64, device="cuda:0", executor=executor) as batches:
        for _ in batches.epoch(0):
            """Compiles, and takes its first memory."""
        with no_waiting():
            views = list(batches.epoch(1))
    assert all(group.isfinite().all() for batch in views for group in batch.groups)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step(name: str) -> None:
    device = torch.device("cuda", 0)
    given = TrainConfig(data="shapes", device="cuda", width=16, batch=64, **OPTIONS[name])
    config = complete(given, source="shapes", length=1024, world=1)
    method = build_method(config, Team(device=device))
    method.progress = 0.5
    step = PenstockStep(method, build_optimizer(config, method), Precision(device=device, dtype=torch.bfloat16), seed=0)
    recipe = load_recipe(config.recipe, size=config.size)
    groups = [
        torch.randn((g.views.stop - g.views.start) * config.batch, g.size, g.size, 3, device=device).permute(0, 3, 1, 2)
        for g in recipe.groups
    ]
    views = Views(groups=groups, index=torch.arange(config.batch), label=torch.zeros(config.batch, dtype=torch.long))
    for _ in range(3):
        step(views)
    with no_waiting():
        loss = step(views)
    assert loss.isfinite()
