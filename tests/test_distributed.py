"""Two ranks, started by torchrun with gloo: shuffled BatchNorm, equal weights, equal queues."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# What each of the ranks runs: a few steps, then everything it holds goes into a file.
PROGRAM = """
import dataclasses, sys
from pathlib import Path
import numpy as np
import torch
from penstock.augment import load_recipe
from penstock.engine.config import TrainConfig, complete
from penstock.engine.data import build_loader
from penstock.engine.distributed import join
from penstock.engine.loop import Trainer
from penstock.engine.methods import build_method
from penstock.engine.precision import choose_precision
from penstock.loaders.sources import ImageArrays

out = Path(sys.argv[1])
team = join("cpu")
noise = np.random.default_rng(0)
labels = np.zeros(96, np.int64)
source = ImageArrays(noise.integers(0, 256, (96, 16, 16, 3), np.uint8), labels, ("a",), "noise")
given = TrainConfig(width=8, size=16, batch=16, queue=48, epochs=2, momentum=0.9, lr=0.1, loader="folder", workers=1,
                    amp="off", log_every=5, checkpoint_steps=4)
config = complete(given, source=source.name, length=len(source), world=team.world)
method = build_method(config, team)
shares, shuffled = [], []
plain_shuffle = method._shuffle
method._shuffle = lambda length: shuffled.append(plain_shuffle(length)[0]) or plain_shuffle(length)
recipe = load_recipe("moco-cifar", size=16)
with build_loader(config, source, recipe, team) as loader:
    trainer = Trainer(config, recipe=recipe, method=method, loader=loader, team=team, out=out,
                      precision=choose_precision(config.amp, team.device))
    plain_step = trainer._step
    trainer._step = lambda views: shares.append(views.index) or plain_step(views)
    trainer.fit()
method.eval()  # keys no longer depend on their company
views = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(team.rank))
views = views.to(memory_format=torch.channels_last)
own = team.own(method.encode_keys(views))
alone = torch.nn.functional.normalize(method.key_encoder(views).detach())
state = {"method": method.state_dict(), "shares": torch.stack(shares), "shuffled": torch.stack(shuffled),
         "own": own, "alone": alone}
torch.save(state, out / f"rank{team.rank}.pt")
team.leave()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What each of two ranks held at the end."""
    out = tmp_path_factory.mktemp("ranks")
    (out / "program.py").write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(out / "program.py"), str(out)], cwd=ROOT, capture_output=True, text=True, timeout=110,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "PENSTOCK_CACHE": str(out),
             "NUMBA_CACHE_DIR": os.environ["NUMBA_CACHE_DIR"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_ranks_end_with_equal_weights_and_queues(ranks: list[dict[str, object]]) -> None:
    first, second = ranks[0]["method"], ranks[1]["method"]
    assert set(first) == set(second)
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, f"{name} differs"
    assert first["_extra_state"] == {"pointer": 2 * 96 % 48, "steps": 12}


def test_ranks_share_each_epoch_and_agree_on_the_shuffle(ranks: list[dict[str, object]]) -> None:
    for epoch in (slice(0, 6), slice(6, 12)):
        seen = torch.cat([rank["shares"][epoch].flatten() for rank in ranks])
        assert sorted(seen.tolist()) == list(range(96))
    assert torch.equal(ranks[0]["shuffled"], ranks[1]["shuffled"])
    crossing = ranks[0]["shuffled"][:, :8] >= 8  # whose keys rank 0 encodes: some are rank 1's
    assert crossing.any(1).all()


def test_keys_travel_to_the_other_rank_and_back_to_their_queries(ranks: list[dict[str, object]]) -> None:
    for rank in ranks:
        torch.testing.assert_close(rank["own"], rank["alone"])
