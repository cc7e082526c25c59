"""The engine's parts: schedule, settings, backbones, weights, meters, the report's charts."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import torchvision
from torch import nn

from penstock.augment import RECIPES
from penstock.augment.executors import EXECUTORS
from penstock.engine.backbones import build_backbone
from penstock.engine.config import CompleteConfig, TrainConfig, from_dict, to_dict
from penstock.engine.csv_log import CsvLog, read_csv
from penstock.engine.curves import chart
from penstock.engine.defaults import METHODS, OF_METHODS, check_choices, complete
from penstock.engine.distributed import Team
from penstock.engine.loop import EpochSums
from penstock.engine.meters import Meter, WaitClock
from penstock.engine.methods import BUILDERS, build_encoder, build_method, check_views
from penstock.engine.methods.moco import MoCo
from penstock.engine.methods.simsiam import SimSiam
from penstock.engine.precision import Precision, check_precision, choose_precision
from penstock.engine.schedule import learning_rate
from penstock.engine.screen import describe
from penstock.engine.split_bn import SplitBatchNorm2d
from penstock.engine.weights import load_weights
from penstock.errors import UserError
from penstock.loaders import LOADERS

CPU = torch.device("cpu")


def settings(**given: object) -> CompleteConfig:
    return complete(TrainConfig(**given), source="cifar10-train", length=50_000, world=1)


def test_what_is_not_given_comes_from_the_method_and_the_data() -> None:
    v1, v2 = settings(method="moco-v1"), settings(method="moco-v2", temperature=0.5)
    assert (v1.head, v1.temperature, v1.recipe, v1.schedule) == ("linear", 0.1, "moco-cifar", "cosine")
    assert (v2.head, v2.temperature, v2.recipe, v2.schedule) == ("mlp", 0.5, "moco-cifar", "cosine")
    assert (v1.size, v1.batch, v1.queue, v1.lr) == (32, 512, 4096, pytest.approx(0.06))  # the authors' demo
    assert [settings(batch=n, queue=n).bn_splits for n in (16, 64, 96, 128, 512)] == [1, 2, 2, 4, 8]
    leaves = complete(TrainConfig(method="moco-v1"), source="shapes_of_leaves-train", length=4096, world=1)
    assert (leaves.size, leaves.temperature, leaves.recipe) == (224, 0.07, "moco-v1")  # no set of ours by that name
    imagenet = complete(TrainConfig(), source="imagenet-train", length=1_281_167, world=8)
    assert (imagenet.size, imagenet.batch, imagenet.queue, imagenet.bn_splits) == (224, 256, 65536, 1)
    assert complete(TrainConfig(batch=96), source="photos", length=2048, world=1).queue == 192  # a multiple of 96
    pool = complete(TrainConfig(recipe="pool-14"), source="imagenette-train", length=9469, world=1)
    assert pool.size == 112 and settings(recipe="pool-14").size == 32  # the recipe's own, where the data have none


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 50_001}, "--batch 50001 is larger than the data"),
        ({"batch": 64, "queue": 1000}, "--queue 1000 is not a multiple of the 64 keys .* use --queue 960"),
        ({"batch": 64, "queue": 64, "symmetric": True}, "--queue 64 is not a multiple of the 128 keys"),
        ({"batch": 64, "bn_splits": 7}, "--bn-splits 7 does not divide the batch"),
        ({"batch": 64, "accumulate": 3}, "--accumulate 3 does not divide the batch"),
        ({"batch": 64, "accumulate": 4, "bn_splits": 32}, "--bn-splits 32 does not divide .*16 images in each part"),
        ({"method": "swav", "batch": 64, "queue": 32}, "--queue 32 is shorter than a batch of 64: use --queue 960"),
        ({"first_size": 64}, "--first-size 64 is more than --size 32"),
        ({"method": "simclr", "batch": 4, "accumulate": 4}, "each part needs 2 images or more to compare"),
        ({"batch": 64, "queue": 64, "mochi": (65, 8, 8)}, "--mochi 65: there are only 64 negatives"),
        ({"first_size": 16, "epochs": 1}, "--first-size 16: one epoch has no time to grow"),
        ({"warmup_epochs": 5.0, "epochs": 5}, "--warmup-epochs 5: the run is over after 5 epochs"),
        ({"queue": 64, "batch": 128, "resume": "last.pt"}, "keys that a step brings: use another --batch$"),
        ({"queue": 64, "batch": 128, "resume": "auto"}, "use --queue 128, or another --batch$"),  # it may begin anew
        ({"final_lr": 1.0, "lr": 0.1}, "--final-lr 1 is more than --lr 0.1"),
        ({"bias_lr_ratio": 0.5}, "--bias-lr-ratio 0.5 is a setting of LARS, and this run's optimizer is sgd"),
    ],
)
def test_sizes_that_do_not_go_together_are_named(given: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**given)


# A probe's recipe has one view, and a method compares two: the next test refuses it.
@pytest.mark.parametrize(
    ("field", "names"),
    [("recipe", set(RECIPES) - {"probe"}), ("executor", set(EXECUTORS)), ("loader", set(LOADERS))],
    ids=["recipe", "executor", "loader"],
)
def test_the_help_names_everything_to_train_with(field: str, names: set[str]) -> None:
    (shown,) = re.findall(rf'\b{field}: str.*\n    """((?:.|\n)*?)"""', inspect.getsource(TrainConfig))
    assert names <= set(re.split(r"[,;:.\s]+", shown))


@pytest.mark.parametrize(("recipe", "begins"), [("probe", "1 view of 224 px"), ("three", "3 views of 224 px")])
def test_a_recipe_without_a_pair_of_views_is_refused(recipe: str, begins: str) -> None:
    views = (replace(RECIPES["moco-v2"].views[0], count=3),)
    known = {"probe": RECIPES["probe"], "three": replace(RECIPES["moco-v2"], views=views)}
    with pytest.raises(UserError, match=f"--recipe {recipe} begins with {begins}, and moco-v2 compares two"):
        check_views(settings(recipe=recipe), MoCo(nn.Identity()), known[recipe])
    for pair in ("byol", "multi-crop"):
        check_views(settings(), MoCo(nn.Identity()), RECIPES[pair])


def test_small_views_that_a_method_would_ignore_are_refused() -> None:
    config = settings(method="simsiam", recipe="multi-crop")
    with pytest.raises(UserError, match="multi-crop makes small views, which simsiam does not use"):
        check_views(config, SimSiam(nn.Identity(), nn.Identity()), RECIPES["multi-crop"])


def test_the_epoch_s_line_has_the_share_of_routed_views() -> None:
    sums = EpochSums()
    assert "routed" not in sums.row()
    sums.add(steps=2, images=8, seconds=1.0, waited=0.0, means={"loss": 1.0})
    assert "routed" not in sums.row()  # a loader that brings its own augmentation
    sums.rows, sums.routed = 16, 4
    row = sums.row()
    assert row["routed"] == 0.25 and "routed 25 %" in describe({"epoch": 1, **row})


@pytest.mark.parametrize(
    "given",
    [
        {"method": "moco-v9"}, {"schedule": "cos"}, {"amp": "fp8"}, {"optimizer": "sdg"}, {"epochs": 0}, {"lr": -1.0},
        {"executor": "fused"}, {"fallback": "clahee"},
    ],
)  # fmt: skip
def test_values_that_no_run_can_have_are_named(given: dict[str, object]) -> None:
    with pytest.raises(UserError, match=str(next(iter(given.values())))):
        check_choices(TrainConfig(**given))


def test_every_method_is_documented_has_its_settings_and_can_be_built() -> None:
    assert set(METHODS) == set(BUILDERS)
    (shown,) = re.findall(r'\bmethod: str.*\n    """((?:.|\n)*?)"""', inspect.getsource(TrainConfig))
    assert set(METHODS) <= set(re.split(r"[,;:.()\s]+", shown))
    for name, own in METHODS.items():
        for source in ("cifar10-train", "shapes-train", "imagenet-train"):
            config = complete(TrainConfig(method=name), source=source, length=50_000, world=1)
            unset = {field for field, value in vars(config).items() if value is None}
            assert not unset & (set(own) - {"mochi"}) and set(OF_METHODS) - set(own) - {"symmetric"} <= unset
        small = replace(config, width=8, size=32, dim=16, hidden=16, queue=64, bn_splits=1)
        parts = {field: 16 for field in ("predictor", "prototypes") if field in own}
        method = build_method(replace(small, **parts), Team())
        assert {part.split(".")[0] for part, _ in method.named_children()} >= {"encoder", *method.unscheduled}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "simsiam", "queue": 64}, "--queue is a setting of moco-v1, moco-v2, .*; simsiam has none"),
        ({"method": "byol", "temperature": 0.1}, "--temperature is a setting of .*; byol has none"),
        ({"method": "moco-v2+", "symmetric": True}, "--symmetric is a setting of moco-v1, moco-v2; moco-v2. has none"),
        ({"head": "linear", "head_layers": 2}, "--head linear is one layer"),
        ({"momentum": 1.5}, "--momentum 1.5: this is a share"),
        ({"accumulate": 0}, "--accumulate 0: this must be more than 0"),
        ({"hidden": -1}, "--hidden -1: this must be 0 or more"),
        ({"weight_decay": -1.0}, "--weight-decay -1.0: this must be 0 or more"),
        ({"sgd_momentum": 1.0}, "--sgd-momentum 1.0: this is a share"),
        ({"method": "swav", "queue": -5}, "--queue -5: this must be 0 or more"),
        ({"first_size": 7}, "--first-size 7: views have 8 pixels or more"),
        ({"seed": 2**64}, r"--seed 18446744073709551616: a seed is at least 0, and less than 2\^64"),
        ({"seed": -1}, "--seed -1: a seed is at least 0"),
        ({"drops": (0.5, 160.0)}, "--drops 160: these are shares of the run"),
        ({"drops": (0.0,)}, "--drops 0: these are shares of the run"),
    ],
)
def test_settings_that_a_method_would_ignore_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_choices(TrainConfig(**given))


def test_a_head_has_the_layers_that_its_name_says() -> None:
    assert [settings(method="moco-v1").head_layers, settings(method="moco-v1", head="mlp").head_layers] == [1, 2]
    assert [settings(method="simclr", head="linear").head_layers, settings(method="barlow-twins").head_layers] == [1, 3]


def test_another_optimizer_than_the_method_s_has_a_learning_rate_of_its_own() -> None:
    imagenet = {"source": "imagenet-train", "length": 50_000, "world": 1}
    assert complete(TrainConfig(method="byol", batch=512), **imagenet).lr == pytest.approx(0.4)
    assert complete(TrainConfig(method="byol", batch=512, optimizer="sgd"), **imagenet).lr == pytest.approx(0.06)
    assert complete(TrainConfig(method="byol", batch=512, optimizer="adamw"), **imagenet).lr == 0.001
    assert settings(method="byol", batch=512, optimizer="lars").lr == pytest.approx(0.6)
    shapes = {"source": "shapes-train", "length": 4096, "world": 1}
    assert complete(TrainConfig(), **shapes).lr == 1.5e-3  # the embedded set's, which is for AdamW
    assert complete(TrainConfig(optimizer="sgd"), **shapes).lr == pytest.approx(0.03)
    assert complete(TrainConfig(method="barlow-twins", optimizer="lars"), **shapes).lr == pytest.approx(0.2)
    assert complete(TrainConfig(method="simclr", optimizer="sgd"), **imagenet).weight_decay == 1e-4  # LARS has 1e-6


def test_small_images_are_trained_on_by_sgd_but_for_barlow_twins() -> None:
    """Whose loss, a sum over C², Huang et al.'s learning rate of .11 is too much for."""
    for method in METHODS:
        assert (settings(method=method).optimizer == "sgd") == (method != "barlow-twins")
    assert settings(method="barlow-twins").lr == pytest.approx(0.4)


def test_biases_have_a_learning_rate_of_their_own_in_barlow_twins_with_lars() -> None:
    imagenet = {"source": "imagenet-train", "length": 50_000, "world": 1}
    for method in METHODS:
        expected = 0.024 if method == "barlow-twins" else 1.0
        assert complete(TrainConfig(method=method), **imagenet).bias_lr_ratio == expected
        assert settings(method=method, optimizer="sgd").bias_lr_ratio == 1.0
        assert settings(method=method, optimizer="lars").bias_lr_ratio == expected
    assert settings(method="barlow-twins", optimizer="lars", bias_lr_ratio=1.0).bias_lr_ratio == 1.0


def test_what_a_run_begins_with_is_shorter_in_a_short_one() -> None:
    imagenet = {"source": "imagenet-train", "length": 50_000, "world": 1}
    for epochs, expected in ((200, (10.0, 15.0, 1.0)), (20, (2.0, 2.0, 1.0)), (10, (1.0, 1.0, 0.5))):
        config = complete(TrainConfig(method="swav", epochs=epochs), **imagenet)
        assert (config.warmup_epochs, config.queue_start, config.frozen) == pytest.approx(expected)
    assert complete(TrainConfig(method="moco-v2", optimizer="lars"), **imagenet).warmup_epochs == 10.0
    assert complete(TrainConfig(method="simclr", optimizer="sgd"), **imagenet).warmup_epochs == 0.0


def test_parts_of_a_batch_are_split_for_batch_norm_as_batches_of_their_size() -> None:
    assert settings(batch=256, accumulate=4).bn_splits == settings(batch=64, queue=64).bn_splits == 2


def test_the_embedded_set_s_queue_is_for_moco() -> None:
    shapes = {"source": "shapes-train", "length": 4096, "world": 1}
    assert complete(TrainConfig(method="moco-v2+"), **shapes).queue == 1024
    assert complete(TrainConfig(batch=32), source="shapes-train", length=256, world=1).queue == 32  # cut to a few
    assert complete(TrainConfig(method="swav"), **shapes).queue == 0


def test_settings_survive_a_checkpoint() -> None:
    config = settings(out=Path("runs/x"), drops=(0.5,), init=Path("w.pth"))
    assert from_dict(to_dict(config)) == TrainConfig(**vars(config))
    assert from_dict({**to_dict(config), "of_a_later_version": 1}).out == Path("runs/x")


def test_cosine_schedule_with_warm_up() -> None:
    config = settings(lr=1.0, epochs=10, warmup_epochs=2.0, final_lr=0.1)
    assert learning_rate(config, 0.0) == 0.0
    assert learning_rate(config, 1.0) == 0.5
    assert learning_rate(config, 2.0) == 1.0
    assert learning_rate(config, 4.0) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(config, 6.0) == pytest.approx(0.55)
    assert learning_rate(config, 10.0) == pytest.approx(0.1)


def test_stepped_schedule_drops_where_the_papers_does() -> None:
    config = settings(lr=0.03, epochs=200, schedule="step")  # MoCo v1: at epochs 120 and 160 of 200
    rates = [learning_rate(config, epoch) for epoch in (0, 119.9, 120, 159.9, 160, 199)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])


def test_a_resnet_of_width_64_is_torchvisions() -> None:
    torch.manual_seed(0)
    ours, features = build_backbone("resnet50", stem="imagenet")
    theirs = torchvision.models.resnet50()
    theirs.fc = nn.Identity()
    assert features == 2048
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("arch", ["resnet18", "resnext50_32x4d", "wide_resnet50_2"])
@pytest.mark.parametrize(("stem", "side"), [("imagenet", 8), ("half", 16), ("cifar", 32)])
def test_width_and_stem_of_resnets(arch: str, stem: str, side: int) -> None:
    with torch.device("meta"):
        backbone, features = build_backbone(arch, width=16, stem=stem)
        seen = []
        backbone.layer1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
        assert backbone(torch.empty(2, 3, 32, 32)).shape == (2, features)
    assert seen[0] == (2, 16, side, side)
    assert features == (128 if arch == "resnet18" else 512)


@pytest.mark.parametrize("arch", ["convnext_tiny", "vit_b_16", "efficientnet_b0", "googlenet", "inception_v3"])
def test_other_torchvision_networks_lose_their_classifier(arch: str) -> None:
    with torch.device("meta"):
        backbone, features = build_backbone(arch)
        assert backbone(torch.empty(2, 3, 224, 224)).shape == (2, features)


def test_a_network_that_cannot_be_built_without_memory() -> None:
    backbone, features = build_backbone("regnet_x_400mf", size=32)
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, features)


@pytest.mark.parametrize("name", ["resnet10t", "lcnet_035"])  # the second puts a layer between pooling and classifier
def test_timm_networks(name: str) -> None:
    pytest.importorskip("timm", reason="timm is not installed: pip install 'penstock[timm]'")
    backbone, features = build_backbone(f"timm:{name}", size=32)
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, features)
    with pytest.raises(UserError, match="timm:resnet_99 is not known"):
        build_backbone("timm:resnet_99")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "resnet19"}, "'resnet19' is not known: torchvision has .*resnet18"),
        ({"arch": "vit_b_16", "width": 32}, "has no --width"),
        ({"arch": "resnet18", "width": 12}, "multiple of 8"),
        ({"arch": "squeezenet1_1"}, "--arch squeezenet1_1 has no linear classifier"),
        ({"arch": "vit_b_16", "size": 64}, r"vit_b_16 cannot take views of 64 px \(Wrong image height.*\): .* size"),
    ],
)
def test_networks_that_cannot_be_built(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(**arguments)


def test_the_networks_are_channels_last_and_split() -> None:
    encoder = build_encoder(settings(width=8), CPU)
    assert encoder.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(encoder.backbone.bn1, SplitBatchNorm2d) and encoder.backbone.bn1.splits == 8


def test_init_takes_weights_of_ours_of_torchvision_and_of_moco(tmp_path: Path) -> None:
    donor = build_method(settings(width=8, seed=1), Team())
    wanted = donor.encoder.backbone.state_dict()
    files = {
        "ours.pt": {"penstock": "0", "method": donor.state_dict()},
        "torchvision.pth": {**wanted, "fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)},
        "moco.pth.tar": {"state_dict": {f"module.encoder_q.{k}": v for k, v in wanted.items()}},
        "finetune-best.pt": {"penstock": "0", "network": {f"backbone.{k}": v for k, v in wanted.items()}},
        "run/last.pt": {"penstock": "0", "method": donor.state_dict()},
    }
    (tmp_path / "run").mkdir()
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        init = tmp_path / name.removesuffix("/last.pt")
        backbone = build_encoder(settings(width=8, init=init), CPU).backbone
        assert torch.equal(backbone.layer4[1].conv2.weight, donor.encoder.backbone.layer4[1].conv2.weight), name


def test_init_of_another_network_is_one_clear_line(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    backbone, _ = build_backbone("resnet18", width=8, stem="cifar")
    save_file(backbone.state_dict(), tmp_path / "w.safetensors")
    load_weights(backbone, tmp_path / "w.safetensors", "resnet18")
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    torch.save({"penstock": "0", "network": nn.Linear(64, 10).state_dict()}, tmp_path / "probe-augmented-best.pt")
    cases = {
        "w.safetensors": "conv1.weight is .8, 3, 3, 3. there and .16, 3, 3, 3. here",
        "broken.pth": "not a readable file of weights",
        "none.pth": "there is no such file",
        "probe-augmented-best.pt": "a linear layer alone, no backbone",
    }
    wider, _ = build_backbone("resnet18", width=16, stem="cifar")
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            load_weights(wider, tmp_path / name, "resnet18")
        assert "\n" not in str(caught.value)


def test_precision() -> None:
    assert choose_precision("off", CPU).dtype is None
    assert choose_precision("bf16", CPU).dtype is torch.bfloat16
    assert not choose_precision("bf16", CPU).scaler().is_enabled()
    with pytest.raises(UserError, match="needs a GPU"):
        choose_precision("fp16", CPU)


def test_bf16_on_a_cpu_is_left_where_torch_gets_it_wrong() -> None:
    half = Precision(device=CPU, dtype=torch.bfloat16)
    imagenet, cifar = (build_backbone("resnet18", width=8, stem=stem)[0] for stem in ("imagenet", "cifar"))
    before = {name: value.clone() for name, value in imagenet.state_dict().items()}
    assert check_precision(half, "auto", imagenet, 16).dtype is None
    assert check_precision(half, "auto", imagenet, 32) == check_precision(half, "bf16", cifar, 16) == half
    with pytest.raises(UserError, match=r"--amp bf16: on a CPU, .* views of 16 px shrink to a pixel"):
        check_precision(half, "bf16", imagenet, 16)
    assert imagenet.training and not any(m._forward_pre_hooks for m in imagenet.modules())
    assert all(torch.equal(value, before[name]) for name, value in imagenet.state_dict().items())


def test_the_meter_averages_what_it_was_given() -> None:
    meter = Meter(("loss", "accuracy"), CPU)
    for i in range(4):
        meter.add(torch.tensor(float(i)), {"accuracy": torch.tensor(i / 10)})
    assert meter.mean().tolist() == pytest.approx([1.5, 0.15])
    meter.reset()
    assert meter.steps == 0 and meter.mean().tolist() == [0.0, 0.0]


def test_the_clock_tells_waiting_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("penstock.engine.meters.time.perf_counter", lambda: now[0])
    clock = WaitClock(CPU)
    for _ in range(3):
        clock.ask()
        now[0] += 1.0
        clock.got()
        now[0] += 3.0
    assert clock.read() == (12.0, 3.0)


def test_a_log_taken_back_to_a_step_has_no_line_twice(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    log = CsvLog(path, ["step", "loss"], key="step", keep=None)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 1 / step})
    log.close()
    log = CsvLog(path, ["step", "loss"], key="step", keep=20)
    log.write({"step": 30, "loss": 0.5})
    log.close()
    assert read_csv(path) == [{"step": 10, "loss": 0.1}, {"step": 20, "loss": 0.05}, {"step": 30, "loss": 0.5}]


def test_charts_are_well_formed_and_hold_every_point() -> None:
    svg = ElementTree.fromstring(chart("a < b", [(0, 3.0), (5, 1.0), (10, 2.0)], x_label="step", marks=True))
    line = svg.find("polyline")
    assert line is not None and len(line.attrib["points"].split()) == 3
    heights = [float(circle.attrib["cy"]) for circle in svg.findall("circle")]
    assert heights[0] < heights[2] < heights[1]  # larger is higher up
    for points in ([(1, 2.0)], [(0, 5.0), (1, 5.0)]):  # one point; no range
        ElementTree.fromstring(chart("flat", points, x_label="epoch"))
    assert chart("empty", [], x_label="step") == ""


def test_replace_keeps_a_config_complete() -> None:
    assert isinstance(replace(settings(), epochs=3), CompleteConfig)


@pytest.mark.parametrize(
    ("written", "typed", "taken"), [("size: 48, ", None, 48), ("", None, 32), ("size: 48, ", 40, 40)]
)
def test_a_recipe_file_that_says_a_size_goes_before_the_data(
    written: str, typed: int | None, taken: int, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"views: [{{{written}count: 2, operations: [RandomResizedCrop]}}]")
    config = TrainConfig(data="cifar10", recipe=str(recipe), size=typed)
    assert complete(config, source="cifar10-train", length=50000, world=1).size == taken
    named = TrainConfig(data="cifar10", recipe="simclr")
    assert complete(named, source="cifar10-train", length=50000, world=1).size == 32
