"""What holds for every method in the loop: a stopped run ends bit for bit where another does, parts add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.augment import load_recipe
from penstock.engine.checkpoint import load_checkpoint
from penstock.engine.config import CompleteConfig, TrainConfig
from penstock.engine.csv_log import read_csv
from penstock.engine.data import build_loader
from penstock.engine.defaults import METHODS, complete
from penstock.engine.distributed import Team
from penstock.engine.loop import Trainer
from penstock.engine.method import Encoder
from penstock.engine.methods import BUILDERS, build_method
from penstock.engine.methods.momentum import scheduled_momentum
from penstock.engine.precision import choose_precision
from penstock.engine.train import main
from penstock.loaders import Views
from penstock.loaders.sources import ImageArrays

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ["--loader", "folder", "--subset", "96", "--width", "8", "--size", "16", "--batch", "16", "--epochs", "2",
        "--log-every", "5", "--workers", "1", "--knn-every", "0", "--dim", "16", "--hidden", "16",
        "--stem", "cifar"]  # fmt: skip
OWN = {"queue": "64", "predictor": "16", "prototypes": "12"}  # of those methods that have them
STEPS = 6  # in an epoch


def arguments(method: str, out: Path) -> list[str]:
    own = [word for name, value in OWN.items() if name in METHODS[method] for word in (f"--{name}", value)]
    recipe = ["--recipe", "multi-crop"] if method == "swav" else []
    return [*TINY, "--method", method, "--out", str(out), *own, *recipe]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_in_mid_epoch_as_if_it_had_never_stopped(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(arguments(method, whole)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_stop_now", lambda trainer: _stop_at(trainer, STEPS + 2))
        assert main(arguments(method, stopped)) == 128 + 15
    assert load_checkpoint(stopped / "last.pt")["position"]["step"] == STEPS + 2
    assert main(["--resume", str(stopped / "last.pt")]) == 0
    ours, theirs = (load_checkpoint(out / "last.pt") for out in (stopped, whole))
    for name, value in theirs["method"].items():
        same = torch.equal(value, ours["method"][name]) if torch.is_tensor(value) else value == ours["method"][name]
        assert same, f"{name} differs"
    epochs = read_csv(whole / "epochs.csv")
    assert all(np.isfinite(row["loss"]) and 0 < row["std"] < 1.5 for row in epochs)


def _stop_at(trainer: Trainer, step: int) -> bool:
    trainer.stopping = 15 if trainer.position.step == step else 0
    return bool(trainer.stopping)


def settings(**given: object) -> CompleteConfig:
    plain = {"method": "moco-v2", "size": 16, "batch": 24, "queue": 48, "epochs": 1, "lr": 0.1, "momentum": 0.5,
             "loader": "folder", "workers": 1, "amp": "off", "dim": 8, "knn_every": 0}  # fmt: skip
    return complete(TrainConfig(**{**plain, **given}), source="cifar10-train", length=80, world=1)


def trained(config: CompleteConfig, out: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """A run of one epoch on 80 images of noise, with a network that has no BatchNorm to couple the images of a part."""
    torch.manual_seed(0)
    pool = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    encoder = Encoder(pool, nn.Linear(24, config.dim))
    monkeypatch.setattr("penstock.engine.methods.build_encoder", lambda config, device: encoder)
    noise = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), np.uint8)
    source = ImageArrays(noise, np.zeros(80, np.int64), ("a",), "noise")
    recipe = load_recipe("moco-cifar", size=16)
    with build_loader(config, source, recipe, Team()) as loader:
        trainer = Trainer(
            config, recipe=recipe, method=build_method(config, Team()), loader=loader, team=Team(),
            precision=choose_precision("off", torch.device("cpu")), out=out,
        )  # fmt: skip
        trainer.fit()
    return trainer


def test_a_batch_in_parts_trains_as_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MoCo's negatives come from the queue, so that parts change nothing; 80 images are 3 steps and a rest unused."""
    whole = trained(settings(), tmp_path, monkeypatch)
    parts = trained(settings(accumulate=3), tmp_path, monkeypatch)
    assert whole.position == parts.position and whole.position.step == 3
    for name, value in whole.method.state_dict().items():
        if torch.is_tensor(value):
            torch.testing.assert_close(parts.method.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    moved = trained(settings(accumulate=3, lr=0.2), tmp_path, monkeypatch)
    assert not torch.allclose(moved.method.encoder.head.weight, whole.method.encoder.head.weight, atol=1e-3)


def test_the_method_is_told_how_far_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = BUILDERS["moco-v2"]

    def watched(*given: object) -> object:
        method = plain(*given)
        after = method.after_step
        method.after_step = lambda: seen.append(method.progress) or after()
        return method

    monkeypatch.setitem(BUILDERS, "moco-v2", watched)
    trained(settings(epochs=2), tmp_path, monkeypatch)
    assert seen == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])


class NothingIsReadBack(TorchDispatchMode):
    """Fails where a step asks for a value, or for a shape that depends on one: on a GPU the host would wait there."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        assert not name.startswith(self.WAITS), f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_device(
    method: str, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {name: int(value) for name, value in OWN.items() if name in METHODS[method]}
    mixed = {"mochi": (8, 8, 8)} if method == "moco-v2" else {}
    plain = Trainer._step

    def watched(trainer: Trainer, parts: list[Views]) -> None:
        with NothingIsReadBack():
            plain(trainer, parts)

    monkeypatch.setattr(Trainer, "_step", watched)
    given = {"queue": None, "momentum": None, "batch": 16, "hidden": 16, "optimizer": optimizer, **own, **mixed}
    assert trained(settings(method=method, **given), tmp_path, monkeypatch).position.step == 5


def test_momentum_rises_to_one() -> None:
    assert scheduled_momentum(0.9, "constant", 0.7) == 0.9
    assert scheduled_momentum(0.9, "cosine", 0.0) == pytest.approx(0.9)
    assert scheduled_momentum(0.9, "cosine", 0.5) == pytest.approx(0.95)
    assert scheduled_momentum(0.9, "cosine", 1.0) == 1.0


def test_compiled_networks_keep_their_names() -> None:
    """Compiling is left to the first step; here only that it is asked for, and that checkpoints do not change."""
    plain = build_method(settings(width=8), Team())
    compiled = build_method(settings(width=8, compile="default"), Team())
    for method, asked in ((plain, False), (compiled, True)):
        networks = (method.encoder, method.key_encoder)
        assert [network._compiled_call_impl is not None for network in networks] == [asked, asked]
    assert list(plain.state_dict()) == list(compiled.state_dict())
