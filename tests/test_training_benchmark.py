"""The training benchmark: its usual step, its rows, what it refuses; test_training_race.py has its clock and report."""

from __future__ import annotations

import copy
import inspect
import json
import re
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from penstock.benchmarks import training
from penstock.benchmarks.plan import OURS
from penstock.benchmarks.race import Clock
from penstock.benchmarks.training_lineup import Lineup
from penstock.benchmarks.training_official import DemoSplitBatchNorm2d, OfficialStep, Parts, PartStep, split_as_demo
from penstock.benchmarks.training_steps import (
    PenstockStep,
    Setting,
    more_and_more,
    official_step,
    part_step,
    penstock_step,
)
from penstock.engine.data import build_loader
from penstock.engine.defaults import METHODS
from penstock.engine.loop import Trainer
from penstock.engine.method import Encoder
from penstock.engine.methods.moco import MoCo
from penstock.engine.precision import Precision
from penstock.engine.split_bn import SplitBatchNorm2d
from penstock.errors import UserError
from penstock.loaders import Loader, Views
from penstock.options import read_options

N, C, K, S = 4, 5, 12, 6
CPU = torch.device("cpu")
FP32, BF16 = Precision(device=CPU, dtype=None), Precision(device=CPU, dtype=torch.bfloat16)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixteen photographs in two classes, which are enough for an epoch here; and a cache of their own."""
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("penstock.benchmarks.photographs.FEWEST", 16)
    monkeypatch.setattr("penstock.benchmarks.photographs.BATCHES", 8)
    rng = np.random.default_rng(0)
    for i in range(16):
        path = tmp_path / "photos" / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def arguments(photos: Path, *more: str) -> list[str]:
    small = ["--data", str(photos), "--size", "32", "--width", "8", "--batch", "2", "--workers", "1"]
    return [*small, "--seconds", "0.1", "--rounds", "2", *more]


def setting(photos: Path, *more: str) -> Setting:
    config = read_options(training.Config, None, arguments(photos, *more))
    return training.prepare(config)


def views(seed: int = 0) -> Views:
    group = torch.randn(2 * N, 3, S, S, generator=torch.Generator().manual_seed(seed))
    return Views(groups=[group], index=torch.arange(N), label=torch.zeros(N, dtype=torch.long))


def network() -> Encoder:
    """Without BatchNorm, so that neither shuffling nor splitting can matter."""
    torch.manual_seed(0)
    return Encoder(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten()), nn.Linear(4 * (S - 2) ** 2, C))


def sgd(encoder: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(encoder.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-2)


# The usual step.


@pytest.mark.parametrize("parts", [None, Parts(channels_last=True, fused=True, foreach=True, late=True)])
def test_the_usual_step_and_penstock_s_lose_the_same(parts: Parts | None) -> None:
    moco = MoCo(network(), dim=C, queue=K, momentum=0.9, temperature=0.2)
    ours = PenstockStep(moco, sgd(moco.encoder), FP32, seed=0)
    encoder, common = network(), {"queue": moco.queues[0].keys.T.clone(), "momentum": 0.9, "temperature": 0.2}
    usual = (
        PartStep(encoder, sgd(encoder), parts=parts, precision=FP32, **common)
        if parts
        else OfficialStep(encoder, sgd(encoder), **common)
    )
    losses = [(usual(views(step)).item(), ours(views(step)).item()) for step in range(8)]  # the queue wraps around
    theirs, mine = zip(*losses, strict=True)
    assert mine == pytest.approx(theirs, rel=1e-5)
    assert len(set(mine)) == 8
    torch.testing.assert_close(moco.queues[0].keys.T, usual.queue, rtol=1e-4, atol=1e-5)


def test_penstock_s_step_is_that_of_a_training_run(photos: Path, tmp_path: Path) -> None:
    common = setting(photos, "--amp", "off")
    common = replace(common, config=replace(common.config, lr=0.1, momentum=0.5))
    steps = [penstock_step(common), penstock_step(common)]
    x = Views(groups=[torch.randn(4, 3, 32, 32)], index=torch.arange(2), label=torch.zeros(2, dtype=torch.long))
    before = copy.deepcopy(steps[0].method.state_dict())
    with (
        build_loader(common.config, common.source, common.recipe, common.team) as loader,
        closing(
            Trainer(
                common.config, recipe=common.recipe, method=steps[0].method, loader=loader, team=common.team,
                precision=common.precision, out=tmp_path,
            )
        ) as trainer,
    ):  # fmt: skip
        trainer._step([x])
    steps[1](x)
    states = [step.method.state_dict() for step in steps]
    torch.testing.assert_close(states[1], states[0])
    moved = ("encoder.head.0.weight", "key_encoder.head.0.weight", "queues.0.keys")
    assert not any(torch.equal(states[1][name], before[name]) for name in moved)


def test_the_usual_step_reads_its_loss_each_time() -> None:
    step = OfficialStep(encoder := network(), sgd(encoder), queue=torch.zeros(C, K), momentum=0.9, temperature=0.2)
    same = views()
    same.groups[0][N:] = same.groups[0][:N]  # a query's own key is its nearest: cosine 1, and 0 to an empty queue
    loss = step(same)
    expected = -torch.log(torch.exp(torch.tensor(5.0)) / (torch.exp(torch.tensor(5.0)) + K))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert step.sums == pytest.approx({"loss": loss.item(), "top-1": 1.0, "top-5": 1.0})


def test_the_demo_s_split_batch_norm_is_ours_with_the_images_dealt_out() -> None:
    torch.manual_seed(0)
    splits, x = 4, 3 * torch.randn(8, C, S, S) + 2
    ours = nn.Sequential(SplitBatchNorm2d(C, splits=splits, momentum=0.3))
    nn.init.normal_(ours[0].weight)
    nn.init.normal_(ours[0].bias)
    demo, weight = split_as_demo(built := copy.deepcopy(ours)), built[0].weight
    assert type(demo[0]) is DemoSplitBatchNorm2d and demo[0].weight is weight
    dealt = torch.cat([torch.arange(8)[part::splits] for part in range(splits)])  # ours takes parts one by one
    inputs = [x[dealt].requires_grad_(), x.clone().requires_grad_()]
    y = [norm(given) for norm, given in zip((ours, demo), inputs, strict=True)]
    torch.testing.assert_close(y[1][dealt], y[0])
    torch.testing.assert_close(demo.state_dict(), ours.state_dict())
    weights = torch.randn_like(x)
    (y[0] * weights[dealt]).sum().backward()
    (y[1] * weights).sum().backward()
    torch.testing.assert_close(inputs[1].grad[dealt], inputs[0].grad, rtol=1e-4, atol=1e-5)
    for theirs, mine in zip(demo.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(demo.eval()(x), ours.eval()(x))


def test_the_usual_step_splits_its_batches_as_the_demo_does(photos: Path) -> None:
    common = setting(photos, "--amp", "off")
    common = replace(common, config=replace(common.config, batch=8, bn_splits=2, queue=8, lr=0.1))
    usual, channels_last = official_step(common), part_step(common, Parts(channels_last=True))
    x = Views(groups=[torch.randn(16, 3, 32, 32)], index=torch.arange(8), label=torch.zeros(8, dtype=torch.long))
    for step, kind in ((usual, DemoSplitBatchNorm2d), (channels_last, SplitBatchNorm2d)):
        for encoder in (step.f_q, step.f_k):
            assert {type(part) for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)} == {kind}
        before = step.f_q.backbone.bn1.weight.clone()
        step(x)
        assert not torch.equal(step.f_q.backbone.bn1.weight, before)  # the optimizer has it


def test_parts_are_added_one_by_one_where_there_are_any(photos: Path) -> None:
    in_float32, in_half = setting(photos, "--amp", "off"), setting(photos, "--amp", "bf16")
    names = ["channels-last", "autocast", "fused optimizer", "foreach EMA", "loss read late"]
    assert list(more_and_more(in_half)) == names
    assert list(more_and_more(in_float32)) == [name for name in names if name != "autocast"]
    assert list(more_and_more(in_half).values())[-1] == Parts(
        channels_last=True, autocast=True, fused=True, foreach=True, late=True
    )


def test_a_part_is_what_its_name_says(photos: Path) -> None:
    half = setting(photos, "--amp", "bf16")
    plain, all_on = part_step(half, Parts()), part_step(half, list(more_and_more(half).values())[-1])
    weight = all_on.f_q.backbone.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert plain.f_q.backbone.layer1[0].conv1.weight.is_contiguous()
    assert torch.equal(weight, plain.f_q.backbone.layer1[0].conv1.weight)
    assert all_on.optimizer.param_groups[0]["fused"] and not plain.optimizer.param_groups[0]["fused"]
    assert (all_on.precision.dtype, plain.precision.dtype) == (torch.bfloat16, None)
    assert {group["lr"] for group in all_on.optimizer.param_groups} == {0.0}
    x = Views(groups=[torch.randn(4, 3, 32, 32)], index=torch.arange(2), label=torch.zeros(2, dtype=torch.long))
    for step in (plain, all_on):
        step(x)
    assert plain.sums["loss"] > 0 and all_on.sums["loss"] == 0
    assert (plain.meter.steps, all_on.meter.steps) == (0, 1)


# The whole.


def test_end_to_end(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = {"json": tmp_path / "t.json", "plot": tmp_path / "t.png"}
    written = [part for name, path in out.items() for part in (f"--{name}", str(path))]
    assert training.main(arguments(photos, "--loaders", "folder", "--amp", "off", "--profile", "2", *written)) == 0

    found = json.loads(out["json"].read_text())
    assert [(each["step"], each["feeder"]) for each in found["rows"]] == [
        ("official", "torchvision"),
        ("official", "synthetic"),
        ("penstock", "torchvision"),
        ("penstock", "folder"),
        ("penstock", "synthetic"),
    ]
    names = ["the usual: NCHW, float32", "+ channels-last", "+ fused optimizer", "+ foreach EMA", "+ loss read late"]
    assert [each["name"] for each in found["parts"]] == [*names, "Penstock's"]
    for each in (*found["rows"], *found["parts"]):
        assert len(each["repeats"]) == len(each["waiting"]) == 2 and each["pairs_per_s"] > 0, each
        assert each["error"] is None and 0 <= each["waiting_share"] < 1
    assert [bool(each["first_step"]) for each in found["parts"]] == [False, True, True, True, True, False]
    settings = found["settings"]
    assert (settings["data"], settings["batch"], settings["width"], settings["precision"]) == ("photos", 2, 8, "fp32")
    assert {"cpu", "cpus", "memory_gb", "gpus"} <= found["machine"].keys() and found["versions"]["torch"]
    assert found["command"].startswith("python benchmarks/training.py --data photos")
    assert str(tmp_path) not in out["json"].read_text()
    assert found["profile"]["steps"] == 2
    assert "aten::convolution_backward" in [each["operation"] for each in found["profile"]["rows"]]
    printed = capsys.readouterr().out
    assert "No row for autocast" in printed and "where the step's time goes" in printed
    with Image.open(out["plot"]) as picture:
        assert picture.width > 800


def line_up(photos: Path, *more: str) -> tuple[Lineup, list[str]]:
    config = read_options(training.Config, None, arguments(photos, *more))
    common = training.prepare(config)
    with ExitStack() as stack:
        lineup = Lineup(common, official=config.official, seconds=0.1, clock=Clock(Console(quiet=True)), stack=stack)
        lineup.enter_fed(training.chosen("--loaders", config.loaders, OURS))
        lineup.enter_parts(training.modes(config, common))
    return lineup, training.notes(config, common)


def test_a_method_without_a_usual_step_runs_alone(photos: Path) -> None:
    lineup, said = line_up(photos, "--method", "simsiam", "--loaders", "none", "--compile", "default")
    assert [(each.step, each.feeder) for each in lineup.rows] == [
        ("penstock", "torchvision"),
        ("penstock", "synthetic"),
    ]
    assert [name for name, _ in lineup.parts] == ["Penstock's", "Penstock's, compiled (default)"]
    assert said[0] == "No usual step: one is written for moco-v1 and moco-v2, and this is simsiam."


def test_a_loader_that_cannot_be_built_is_a_row_that_says_why(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Loader, *_: Any) -> None:
        raise UserError("too large\nfor this machine")

    monkeypatch.setattr("penstock.loaders.resident.ResidentLoader.__init__", refuse)
    lineup, _ = line_up(photos, "--no-official", "--loaders", "resident")
    rows = {each.feeder: each for each in lineup.rows}
    assert rows["resident"].error == "too large" and lineup.failed
    assert rows["torchvision"].error is None


def test_a_loader_that_is_not_installed_is_no_failure(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"folder": "folder's package is not installed"}
    monkeypatch.setattr("penstock.benchmarks.training_lineup.missing", absent.get)
    lineup, _ = line_up(photos, "--no-official", "--loaders", "folder")
    assert lineup.rows[1].error == absent["folder"] and not lineup.failed


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--loaders", "fast"], "--loaders 'fast' is not known: choose from all, none, folder"),
        (["--compile", "fast"], "--compile 'fast' is not known: choose from auto, none, default"),
        (["--method", "moco-v9"], "--method 'moco-v9' is not known"),
        (["--amp", "fp8"], "--amp 'fp8' is not known"),
        (["--rounds", "0"], "--rounds 0"),
        (["--seconds", "0"], "--seconds 0"),
        (["--batch", "0"], "--batch 0"),
        (["--workers", "0"], "--workers 0"),
        (["--json", "nowhere/t.json"], "nowhere"),
        (["--plot", "t.docx"], "t.docx"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_inputs_are_refused_at_once(given: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        training.main(given)


@pytest.mark.parametrize(("option", "known"), [("loaders", OURS), ("method", METHODS), ("compile", training.MODES)])
def test_the_help_names_every_choice(option: str, known: Any) -> None:
    (shown,) = re.findall(rf'\b{option}: .*\n    """((?:.|\n)*?)"""', inspect.getsource(training.Config))
    assert set(known) <= set(re.split(r"[,:.\s]+", shown))
