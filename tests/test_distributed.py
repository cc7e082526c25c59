"""Two ranks, started by torchrun with gloo, do what one does: the same losses, queues, weights, whoever resumes.

G images in both ranks' batches, C dimensions.
"""

from __future__ import annotations

import copy
import re
import signal
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from penstock.augment import load_recipe
from penstock.engine.checkpoint import load_checkpoint
from penstock.engine.config import TrainConfig
from penstock.engine.csv_log import read_csv
from penstock.engine.data import build_loader
from penstock.engine.defaults import complete
from penstock.engine.distributed import Team
from penstock.engine.loop import Trainer
from penstock.engine.method import Encoder, Loss, Method
from penstock.engine.methods import build_method
from penstock.engine.methods.moco import MoCo
from penstock.engine.precision import choose_precision
from penstock.engine.train import parse, train
from penstock.loaders import Views
from penstock.loaders.sources import ImageArrays
from tests.ranks import on_ranks

pytestmark = pytest.mark.timeout(300)  # three processes, which may have to compile the augmentations first
Returned = dict[str, Any]
G, C = 8, 5
SMALL = TrainConfig(
    arch="resnet18", width=8, size=16, recipe="moco-cifar", dim=16, loader="folder", workers=1, amp="off",
    batch=32, epochs=2, optimizer="sgd", lr=0.05, knn_every=0, log_every=1,
)  # fmt: skip
MOCO = replace(SMALL, momentum=0.9, queue=96)
ALONE = replace(MOCO, batch=64, queue=192, epochs=3)

# Each trains for a few steps, two an epoch, through the loader and the loop. What `bn_splits` says is one rank's.
RUNS = {
    "moco-v2": ALONE,
    "moco-v2, in parts": replace(ALONE, accumulate=2),
    "moco-v2, both directions": replace(ALONE, symmetric=True, queue=256),
    "moco-v2+": replace(ALONE, method="moco-v2+"),
    "moco-v2, split BatchNorm": replace(MOCO, bn_splits=2),  # on two ranks each normalises its own half
    "simclr": replace(SMALL, method="simclr"),
    "barlow-twins": replace(SMALL, method="barlow-twins", hidden=32, lr=0.002),
    "simsiam": replace(SMALL, method="simsiam", hidden=32, predictor=8),
    "byol": replace(SMALL, method="byol", hidden=32, predictor=32, momentum=0.9),
    "swav": replace(SMALL, method="swav", hidden=32, prototypes=12, queue=64, queue_start=1.0, recipe="multi-crop"),
}


def work(team: Team, folder: Path) -> Returned:
    """All that the tests below look at, in one launch, because that takes seconds."""
    return {
        "collectives": collectives(team),
        "gradients": {loss.__name__: gradients_of(loss, team) for loss in (contrast, correlate)},
        "runs": {name: run(config, team, folder) for name, config in RUNS.items()},
        "shuffles": shuffles(team, folder),
        "begun": start(folder, team, out="two, then one", stop_after=4),
        "gone on": go_on(folder, team, out="one, then two"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs lie, and the images for some of them."""
    folder = tmp_path_factory.mktemp("ranks")
    for i, pixels in enumerate(noise(96).images):
        path = folder / "images/train/a" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Returned]:
    """What each of two ranks found; one rank has begun a run for them."""
    start(folder, Team(), out="one, then two", stop_after=4)
    return on_ranks(work, folder)


# The collectives ------------------------------------------------------------------------------------------------------


def collectives(team: Team) -> Returned:
    """Each rank's rows, what the collectives make of them, and the gradient of what each rank asks of that."""
    torch.manual_seed(0)
    everyone, wishes = torch.randn(G, C), torch.randn(team.world, G, C)
    found: Returned = {"everyone": everyone, "wishes": wishes}
    for name in ("gather", "gather_with_gradient", "total", "sum"):
        rows = team.own(everyone).clone().requires_grad_()
        out = getattr(team, name)(rows)
        if out.requires_grad:
            (out * wishes[team.rank, : len(out)]).sum().backward()
        found[name] = {"out": out.detach(), "gradient": rows.grad}
    images = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4).to(torch.bfloat16, memory_format=torch.channels_last)
    gathered = team.gather_with_gradient(images + team.rank)
    found["images"] = {"out": gathered, "keeps": gathered.is_contiguous(memory_format=torch.channels_last)}
    return found


def test_rows_are_gathered_in_order_and_what_all_ask_of_them_flows_back(ranks: list[Returned]) -> None:
    for rank, found in enumerate(each["collectives"] for each in ranks):
        for name in ("gather", "gather_with_gradient"):
            assert torch.equal(found[name]["out"], found["everyone"])
        asked = found["wishes"].sum(0).chunk(2)[rank]
        torch.testing.assert_close(found["gather_with_gradient"]["gradient"], asked)
        assert found["gather"]["gradient"] is None


def test_sums_are_equal_and_what_all_ask_of_them_flows_back_to_each(ranks: list[Returned]) -> None:
    for found in (each["collectives"] for each in ranks):
        half = G // 2
        for name in ("total", "sum"):
            torch.testing.assert_close(found[name]["out"], found["everyone"][:half] + found["everyone"][half:])
        torch.testing.assert_close(found["sum"]["gradient"], found["wishes"].sum(0)[:half])
        assert found["total"]["gradient"] is None


def test_images_keep_their_memory_format_on_their_way(ranks: list[Returned]) -> None:
    for found in (each["collectives"]["images"] for each in ranks):
        assert found["keeps"] and torch.equal(found["out"][2:], found["out"][:2] + 1)


def test_on_one_rank_each_is_the_identity() -> None:
    found = collectives(Team())
    for name in ("gather", "gather_with_gradient", "total", "sum"):
        assert torch.equal(found[name]["out"], found["everyone"])
        asked = found["wishes"][0] if name in ("gather_with_gradient", "sum") else None
        assert asked is found[name]["gradient"] or torch.equal(asked, found[name]["gradient"])


# Losses over all ranks' batches ---------------------------------------------------------------------------------------


def contrast(z: torch.Tensor, team: Team) -> torch.Tensor:
    """The mean over this rank's images, each to be told from all ranks' (as SimCLR has it)."""
    own = functional.normalize(z)
    similar = own @ team.gather_with_gradient(own).T
    return functional.cross_entropy(similar, torch.arange(len(own)) + team.rank * len(own))


def correlate(z: torch.Tensor, team: Team) -> torch.Tensor:
    """The same value on each rank, of moments over all ranks' images (as Barlow Twins has it)."""
    return (team.sum(z.T @ z) / (team.world * len(z)) - torch.eye(C)).square().sum()


def gradients_of(loss: Callable[[torch.Tensor, Team], torch.Tensor], team: Team) -> Returned:
    torch.manual_seed(0)
    network, images = nn.Linear(C, C), torch.randn(G, C)
    model = team.wrap(network)  # which averages no more once it is let go
    value = loss(model(team.own(images)), team)
    value.backward()
    return {"loss": value.detach(), "gradients": {key: weight.grad for key, weight in network.named_parameters()}}


@pytest.mark.parametrize("loss", [contrast, correlate])
def test_gradients_are_those_of_one_rank_with_the_whole_batch(
    loss: Callable[[torch.Tensor, Team], torch.Tensor], ranks: list[Returned]
) -> None:
    one = gradients_of(loss, Team())
    found = [rank["gradients"][loss.__name__] for rank in ranks]
    torch.testing.assert_close(sum(each["loss"] for each in found) / 2, one["loss"])
    for each in found:
        torch.testing.assert_close(each["gradients"], one["gradients"])


# Training -------------------------------------------------------------------------------------------------------------


def noise(length: int) -> ImageArrays:
    pixels = np.random.default_rng(0).integers(0, 256, (length, 16, 16, 3), np.uint8)
    return ImageArrays(pixels, np.zeros(length, np.int64), ("a",), "noise")


def build(given: TrainConfig, team: Team) -> Method:
    """A method; MoCo that splits no batch has no BatchNorm, because each rank's own statistics would part them."""
    config = complete(given, source="noise", length=2 * given.batch, world=team.world)
    if given.bn_splits is not None:
        return smooth(build_method(replace(config, bn_splits=given.bn_splits // team.world), team))
    if not given.method.startswith("moco"):
        return smooth(build_method(config, team))
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.GroupNorm(2, 8), nn.GELU(), nn.Conv2d(8, 8, 3, 2), nn.GroupNorm(2, 8)]
    backbone = nn.Sequential(*layers, nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return MoCo(
        Encoder(backbone, nn.Linear(8, config.dim)),
        dim=config.dim,
        queue=config.queue,
        momentum=config.momentum,
        symmetric=config.symmetric or config.method == "moco-v2+",
        queues=2 if config.method == "moco-v2+" else 1,
        team=team,
    )


def smooth(method: Method) -> Method:
    """With GELU for ReLU: gradients then differ by 1e-5, not by the percents that a rounding across its kink brings."""
    for module in list(method.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.GELU())
    return method


def run(given: TrainConfig, team: Team, folder: Path) -> Returned:
    """A few steps: of each the images and the loss; of the last what the method held, before ranks follow rank 0."""
    method = build(given, team)
    shares, losses, state = [], [], {}
    plain_loss, plain_after_step = method.loss, method.after_step

    def loss(views: list[torch.Tensor], index: torch.Tensor) -> Loss:
        shares.append(index)
        value, metrics = plain_loss(views, index)
        losses.append(value.detach())
        return value, metrics

    def after_step() -> None:
        plain_after_step()
        state.update(copy.deepcopy(method.state_dict()))

    method.loss, method.after_step = loss, after_step
    fit(given, method, team, folder)
    return {"shares": torch.stack(shares), "losses": torch.stack(losses), "state": state}


def fit(given: TrainConfig, method: Method, team: Team, folder: Path) -> None:
    source = noise(2 * given.batch)
    config = complete(given, source=source.name, length=len(source), world=team.world)
    recipe = load_recipe(config.recipe, size=config.size)
    precision = choose_precision(config.amp, team.device)
    with build_loader(config, source, recipe, team) as loader:
        Trainer(
            config, recipe=recipe, method=method, loader=loader, team=team, precision=precision, out=folder
        ).fit()  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Both:
    """One of RUNS, on one rank and on each of two."""

    name: str
    one: Returned
    two: list[Returned]


@pytest.fixture(scope="module", params=RUNS)
def both(request: pytest.FixtureRequest, ranks: list[Returned], folder: Path) -> Both:
    name = request.param
    return Both(name=name, one=run(RUNS[name], Team(), folder), two=[rank["runs"][name] for rank in ranks])


def without_statistics(state: Returned) -> Returned:
    """What ranks have in common although each has a BatchNorm of its own."""
    return {name: value for name, value in state.items() if not re.search("running|num_batches", name)}


def test_two_ranks_see_the_images_of_one_in_its_order(both: Both) -> None:
    assert torch.equal(torch.cat([rank["shares"] for rank in both.two], dim=1), both.one["shares"])
    given = RUNS[both.name]
    for epoch in both.one["shares"].chunk(given.epochs):
        assert sorted(epoch.flatten().tolist()) == list(range(2 * given.batch))


def test_two_ranks_have_the_losses_of_one(both: Both) -> None:
    losses = torch.stack([rank["losses"] for rank in both.two]).mean(0)
    torch.testing.assert_close(losses, both.one["losses"], rtol=1e-4, atol=1e-4)
    assert both.one["losses"].std() > 1e-3  # the steps did something


def test_ranks_hold_one_state_which_is_that_of_one(both: Both) -> None:
    """Weights, queues and, unless BatchNorm is every rank's own, its statistics."""
    one, first, second = (end["state"] for end in (both.one, *both.two))
    assert any(name.startswith("queues.") for name in one) == ("moco" in both.name or "swav" in both.name)
    if "split" in both.name:
        one, first, second = (without_statistics(state) for state in (one, first, second))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, one, rtol=1e-3, atol=1e-3)


def shuffles(team: Team, folder: Path) -> Returned:
    """The permutations of two epochs, and keys that went through one beside those that did not."""
    given = RUNS["moco-v2, split BatchNorm"]
    method = build(given, team)
    shuffled: list[torch.Tensor] = []
    plain = method._shuffle
    method._shuffle = lambda length: shuffled.append(plain(length)[0]) or plain(length)
    fit(given, method, team, folder)
    method._shuffle = plain
    method.eval()  # keys no longer depend on their company
    views = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(team.rank))
    views = views.to(memory_format=torch.channels_last)
    own = team.own(method.encode_keys(views))
    alone = functional.normalize(method.key_encoder(views).detach())
    return {"shuffled": torch.stack(shuffled), "own": own, "alone": alone, "state": method.state_dict()}


def test_ranks_agree_on_the_shuffle_and_it_crosses_them(ranks: list[Returned]) -> None:
    first, second = (rank["shuffles"]["shuffled"] for rank in ranks)
    assert torch.equal(first, second)
    crossing = first[:, :16] >= 16  # whose keys rank 0 encodes: some are rank 1's
    assert crossing.any(1).all()


def test_keys_travel_to_the_other_rank_and_back_to_their_queries(ranks: list[Returned]) -> None:
    for rank in ranks:
        torch.testing.assert_close(rank["shuffles"]["own"], rank["shuffles"]["alone"])


def test_after_an_epoch_ranks_hold_one_state_with_rank_0_s_statistics(ranks: list[Returned]) -> None:
    first, second = (rank["shuffles"]["state"] for rank in ranks)
    assert first and {name for name in first if "running" in name}
    torch.testing.assert_close(first, second, rtol=0, atol=0)


# Stopping and going on ------------------------------------------------------------------------------------------------


def start(folder: Path, team: Team, *, out: str, stop_after: int = 0) -> Returned:
    """A run from its beginning; a signal reaches its last rank after so many steps."""
    splits = 2 // team.world
    given = replace(MOCO, data=str(folder / "images"), bn_splits=splits, out=_out(folder, team, out))
    return launch(given, None, team, stop_after)


def go_on(folder: Path, team: Team, *, out: str) -> Returned:
    """The rest of a run, as `--resume` would have it."""
    given, state = parse(["--resume", str(folder / out / "last.pt")])
    return launch(replace(given, out=_out(folder, team, out)), state, team)


def _out(folder: Path, team: Team, name: str) -> Path:
    """The same for all ranks, in life. Here one that does not lead has its own, to show that it leaves it alone."""
    return folder / (name if team.leads else f"{name}, rank {team.rank}")


def launch(given: TrainConfig, state: dict[str, Any] | None, team: Team, stop_after: int = 0) -> Returned:
    """How a run ended, what this rank printed, and the files that it wrote, in its folder or where it stood."""
    said, here = given.out.with_suffix(".txt"), given.out.with_suffix(".here")
    here.mkdir(exist_ok=True)
    plain = Trainer._step

    def step(trainer: Trainer, parts: list[Views]) -> None:
        plain(trainer, parts)
        if trainer.position.step == stop_after and team.rank == team.world - 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch, said.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        patch.setattr(Trainer, "_step", step)
        patch.chdir(here)
        exit_code = train(given, state, team)
    wrote = sorted(path.name for folder in (given.out, here) for path in folder.glob("*"))
    return {"exit": exit_code, "said": said.read_text(), "wrote": wrote}


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run of one rank that nothing stopped."""
    start(folder, Team(), out="whole")
    return folder / "whole"


def assert_same_run(run: Path, other: Path) -> None:
    """Every step had the same loss, and the weights and the queue are the same at the end."""
    one, two = (load_checkpoint(out / "last.pt") for out in (run, other))
    assert one["position"] == two["position"] == {"epoch": 2, "consumed": 0, "step": 6}
    states = [without_statistics(end["method"]) for end in (one, two)]
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-3)
    losses = [[(row["step"], row["loss"]) for row in read_csv(out / "steps.csv")] for out in (run, other)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-3, atol=1e-3)


def test_two_ranks_go_on_where_one_stopped(folder: Path, ranks: list[Returned], whole: Path) -> None:
    assert_same_run(folder / "one, then two", whole)


def test_one_rank_goes_on_where_two_stopped(folder: Path, ranks: list[Returned], whole: Path) -> None:
    stopped = load_checkpoint(folder / "two, then one/last.pt")
    assert stopped["position"] == {"epoch": 1, "consumed": 32, "step": 4}  # in mid-epoch
    go_on(folder, Team(), out="two, then one")
    assert_same_run(folder / "two, then one", whole)


def test_a_signal_to_one_rank_stops_all(ranks: list[Returned]) -> None:
    assert [rank["begun"]["exit"] for rank in ranks] == [128 + signal.SIGINT] * 2
    assert [rank["gone on"]["exit"] for rank in ranks] == [0, 0]


def test_only_rank_0_speaks_and_writes(ranks: list[Returned], folder: Path) -> None:
    for part in ("begun", "gone on"):
        leader, other = (rank[part] for rank in ranks)
        assert "report.html" in leader["said"] and {"last.pt", "steps.csv"} <= set(leader["wrote"])
        assert other["said"] == "" and other["wrote"] == []
