"""The augmentation benchmark: its rivals, its arithmetic, its JSON, and what it refuses. Speeds are nobody's test."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.progress import Progress

from penstock.augment import load_recipe
from penstock.augment.operations import CLAHE, RandomResizedCrop
from penstock.benchmarks import augment, augment_limits, augment_passes, augment_report
from penstock.benchmarks.augment_contenders import CHAIN, OPERATIONS, make_case
from penstock.benchmarks.augment_dali import dali_pipeline
from penstock.benchmarks.augment_passes import Contender
from penstock.benchmarks.augment_rivals import (
    RIVALS,
    Lacks,
    albumentations_compose,
    kornia_compose,
    torchvision_pil,
    torchvision_v2,
)
from penstock.errors import UserError
from penstock.files import write_whole
from tests.augment_cases import IMAGES, case, contender, lists_of

FAST = ["--quick", "--executors", "fused_cpu", "reference", "--operations"]


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
@pytest.mark.parametrize("name", ["moco-v1", "byol", "multi-crop", "moco-cifar"])
def test_a_rivals_chain_ends_in_normalised_views(name: str, rival) -> None:
    if rival.name.startswith("albumentations"):
        pytest.importorskip("albumentations", reason="Albumentations is not installed")
    recipe = load_recipe(name, size=32)
    for view in recipe.views:
        made = rival.compose(view.operations, view.size, recipe)(rival.take(IMAGES[0]))
        assert made.shape == (3, view.size, view.size)
        assert made.dtype == torch.float32
        assert -3 < made.mean() < 3


@pytest.mark.parametrize("name", ["albumentations-7", "pool-14", "abcde", "color-1/2"])
def test_albumentations_has_every_recipe(name: str) -> None:
    pytest.importorskip("albumentations", reason="Albumentations is not installed")
    recipe = load_recipe(name, size=32)
    step = albumentations_compose(recipe.views[0].operations, 32, recipe)
    assert all(step(image).shape == (3, 32, 32) for image in IMAGES for _ in range(20))


@pytest.mark.parametrize("compose", [torchvision_pil, torchvision_v2])
def test_torchvision_lacks_what_it_has_no_transform_for(compose) -> None:
    with pytest.raises(Lacks, match="CLAHE"):
        compose((RandomResizedCrop(), CLAHE()), 32, None)


@pytest.mark.parametrize("name", ["moco-v2", "byol"])
def test_dalis_graph_ends_in_normalised_views(name: str) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    recipe = load_recipe(name, size=32)
    views = dali_pipeline(lists_of(recipe), recipe, np.stack(IMAGES), "cpu")()
    for view in views:
        found = np.array(view.as_tensor())
        assert found.shape == (2, 3, 32, 32)
        assert found.dtype == np.float32
        assert -3 < found.mean() < 3


def test_dali_lacks_what_it_has_no_operator_for() -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    with pytest.raises(Lacks, match="CLAHE"):
        dali_pipeline([((RandomResizedCrop(), CLAHE()), 32)], load_recipe("moco-v2"), np.stack(IMAGES), "cpu")


@pytest.mark.parametrize("name", ["moco-v2", "byol"])
def test_kornias_chain_ends_in_normalised_views(name: str) -> None:
    pytest.importorskip("kornia", reason="Kornia is not installed")
    recipe = load_recipe(name, size=32)
    batch = torch.from_numpy(np.stack(IMAGES)).permute(0, 3, 1, 2)
    for view in recipe.views:
        made = kornia_compose(view.operations, view.size, recipe)(batch)
        assert made.shape == (2, 3, 32, 32)
        assert -3 < made.mean() < 3


def test_a_ratio_is_the_baselines_time_over_ones_own() -> None:
    cases = [case(contender("torchvision-pil", 80, 100, 900), contender("fused_cpu", 30, 10, 20))]
    pil, ours = augment_report.results(cases, {"cpu-1": 1e9})
    assert (pil["us_per_view"], pil["ratio"]) == (100, 1)
    assert (ours["us_per_view"], ours["ratio"], ours["baseline"]) == (20, 5, "torchvision-pil")
    assert ours["views_per_s"] == 50_000
    assert (ours["floor_us"], ours["over_floor"]) == (pytest.approx(1), pytest.approx(20))
    assert ours["scaling"] is None


def test_more_threads_are_held_against_one() -> None:
    one, two = contender("fused_cpu", 20), contender("fused_cpu", 10, threads=2)
    *_, found = augment_report.results(
        [case(contender("torchvision-pil", 100), one, two)], {"cpu-1": 1e9, "cpu-2": 2e9}
    )
    assert (found["threads"], found["scaling"], found["ratio"]) == (2, 2, 10)
    assert found["over_floor"] == pytest.approx(20)


def test_threads_are_held_against_one_only_where_that_ran() -> None:
    one, two = contender("fused_cpu"), contender("fused_cpu", 10, threads=2)
    one.error = "ValueError: no such kernel"
    (found,) = augment_report.results([case(one, two)], {"cpu-2": 1e9})
    assert (found["us_per_view"], found["scaling"]) == (10, None)


def test_the_baseline_is_albumentations_where_torchvision_has_none() -> None:
    ran = case(contender("fused_cpu", 5), contender("albumentations-compose", 50))
    assert [row["ratio"] for row in augment_report.results([ran], {"cpu-1": 1e9})] == [10, 1]
    alone = case(contender("fused_cpu", 5))
    assert augment_report.results([alone], {"cpu-1": 1e9})[0]["ratio"] is None


def test_time_is_counted_in_whole_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def half_a_second() -> None:
        clock[0] += 0.5

    monkeypatch.setattr(augment_passes, "perf_counter", lambda: clock[0])
    made = Contender(executor="x", run=half_a_second, settle=half_a_second, views=10)
    made.measure(1.2)  # three passes, and what they leave to wait for
    made.measure(0.0)  # one pass
    assert made.times == pytest.approx([2.0 / 30 * 1e6, 1.0 / 10 * 1e6])


def test_the_hosts_part_of_a_pass_is_what_passes_before_run_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def tick(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(augment_passes, "perf_counter", lambda: clock[0])
    made = Contender(executor="x", run=lambda: tick(0.25), settle=lambda: tick(0.5), views=10, batch=5)
    made.measure(1.0)
    assert made.times == pytest.approx([1.5 / 40 * 1e6])
    assert made.host_times == pytest.approx([250])


@pytest.mark.parametrize("passes", [0, 1, 2])
def test_what_fails_is_left_out_and_says_why(passes: int) -> None:
    """Whether at once, or after some measurements; the others go on."""
    good = [None] * passes

    def broken() -> None:
        if not good:
            raise ValueError("no such kernel")
        good.pop()

    runs = {"x": broken, "y": lambda: None}
    bad, other = (Contender(executor=name, run=run, views=1, bytes=1) for name, run in runs.items())
    with Progress(disable=True) as progress:
        augment.race(case(bad, other), augment.Config(repeats=2, seconds=0), progress)
    assert bad.error == "ValueError: no such kernel"
    assert [row["executor"] for row in augment_report.results([case(bad, other)], {"cpu-1": 1e9})] == ["y"]


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_operation_runs(name: str) -> None:
    made = make_case(name, IMAGES, ("fused_cpu", "reference"), (1, 2), 16)
    for each in made.contenders:
        each.run()
        assert (each.views, each.threads) == (2, 1)
        source = each.bytes - 3 * 16 * 16  # what the crop reads: the whole view, unless it is the crop that is measured
        assert (0 < source <= 3 * 40 * 50) if "crop" in name else source == 3 * 16 * 16


def test_a_chain_runs_in_threads() -> None:
    made = make_case(f"{CHAIN}moco-v2", IMAGES * 8, ("fused_cpu",), (1, 2), 16)
    ours = [each for each in made.contenders if each.executor == "fused_cpu"]
    assert [each.threads for each in ours] == [1, 2]
    for each in ours:
        each.run()
        assert each.views == each.threads * 2 * 16  # each thread has all the images
        assert 4 * 3 * 16 * 16 < each.bytes < 4 * 3 * 16 * 16 + 3 * 40 * 50


# What is fed, and what is left.


def test_embedded_photographs_differ() -> None:
    photos = augment.photographs(augment.Config(images=3))
    assert {photo.shape for photo in photos} == {(375, 500, 3)}
    assert len({photo.tobytes() for photo in photos}) == 3
    assert len(augment.small_images(augment.Config(images=3), photos)) == 8 * 3


def test_photographs_come_from_a_folder(tmp_path: Path) -> None:
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    found = augment.photographs(augment.Config(data=str(tmp_path), images=9))
    assert [photo.tobytes() for photo in found] == [image.tobytes() for image in IMAGES]


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with augment.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_the_report_holds_every_figure_and_its_provenance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(augment, "gpu_device", lambda: None)
    monkeypatch.setattr(augment_report, "first_view", lambda: {"imports_s": 2.0, "first_view_s": 0.5})
    monkeypatch.setattr(augment_report, "triton_report", lambda quick: None)
    out, plot = tmp_path / "a.json", tmp_path / "a.png"
    arguments = [*FAST, "blur", "clahe", "chain:moco-v2", "--json", str(out), "--plot", str(plot)]
    assert augment.main(arguments) == 0
    report = json.loads(out.read_text())
    assert {"machine", "versions", "command", "commit", "date", "settings", "compile", "triton"} <= set(report)
    assert "benchmarks/augment.py --quick" in report["command"]
    required = {"executor", "operation", "size", "threads", "us_per_view", "views_per_s", "ratio", "baseline"}
    assert all(required <= set(row) for row in report["rows"])
    ran = {(row["operation"], row["executor"]) for row in report["rows"]}
    assert {(name, "fused_cpu") for name in ("blur", "clahe", "chain:moco-v2")} < ran
    assert ("clahe", "torchvision-pil") not in ran
    assert {row["baseline"] for row in report["rows"] if row["operation"] == "blur"} == {"torchvision-pil"}
    assert report["absent"]
    printed = capsys.readouterr().out
    assert "chain:moco-v2" in printed and "--quick only shows that all runs" in printed
    with Image.open(plot) as picture:
        assert picture.format == "PNG"


def test_threads_that_are_left_out_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(augment, "available_cpus", lambda: 2)
    monkeypatch.setattr(augment, "gpu_device", lambda: None)
    monkeypatch.setattr(augment_report, "first_view", lambda: {"imports_s": 2.0, "first_view_s": 0.5})
    monkeypatch.setattr(augment_report, "triton_report", lambda quick: None)
    assert augment.main([*FAST, "flip", "--threads", "2", "64"]) == 0
    assert "not in 64 threads: this process may use 2 CPUs" in capsys.readouterr().out


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    write_whole(tmp_path / "a.json", lambda path: path.write_text("whole"))
    with pytest.raises(UserError, match=r"a\.json: cannot be written \(No space left"):
        write_whole(tmp_path / "a.json", full)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "whole")]


def test_a_process_that_fails_says_why() -> None:
    assert "no_such_module" in augment_limits.ask("no_such_module")["error"]


def test_what_kernels_take_is_one_line() -> None:
    kernels = {"a": {"registers": 64, "spills": 0, "shared": 8192}, "b": {"registers": 255, "spills": 8, "shared": 0}}
    assert augment_report._kernel_line(kernels).startswith(
        "2 kernels take up to 255 registers, 8 bytes of spills and 8,192"
    )
    assert augment_report._kernel_line({"error": "no compiler"}) == "no compiler"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--operations", "blurr"], "blurr"),
        (["--operations", "chain:moco-v9"], "moco-v9"),
        (["--executors", "fused"], "fused_cpu"),
        (["--repeats", "0"], "at least 1"),
        (["--threads", "0"], "at least 1"),
        (["--gpu-images", "0"], "--gpu-images 0"),
        (["--plot", "a.jpg"], ".png"),
        (["--json", "nowhere/a.json"], "no folder"),
        (["--json", "."], "a folder"),
        (["--plot", "."], "a folder"),
        (["--threads"], "at least one value"),
        (["--operations"], "at least one value"),
    ],
)
def test_what_cannot_work_is_refused_before_it_takes_time(arguments: list[str], says: str) -> None:
    with pytest.raises(UserError) as raised:
        augment.main(arguments)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
