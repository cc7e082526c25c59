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

from penstock.augment import Recipe, load_recipe
from penstock.augment.operations import CLAHE, GaussianBlur, HorizontalFlip, Operation, RandomResizedCrop
from penstock.benchmarks import augment, augment_gpu, augment_limits, augment_passes, augment_report
from penstock.benchmarks.augment_contenders import CHAIN, OPERATIONS, make_case
from penstock.benchmarks.augment_dali import dali_pipeline
from penstock.benchmarks.augment_gpu import AHEAD, FUSED, RIVALS_ON_GPU, Gpu, gpu_contenders
from penstock.benchmarks.augment_passes import Case, Contender
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

FAST = ["--quick", "--executors", "fused_cpu", "reference", "--operations"]


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(2)]


def contender(executor: str, *times: float, threads: int = 1, moved: float = 1000) -> Contender:
    made = Contender(executor=executor, run=lambda: None, views=1, threads=threads, bytes=moved)
    made.times.extend(times)
    return made


def on_gpu(executor: str, *times: float, host: float = 1.0) -> Contender:
    """A batch of 10 images, 20 views."""
    made = Contender(executor=executor, run=lambda: None, views=20, bytes=1000, device="cuda", batch=10)
    made.times.extend(times)
    made.host_times.append(host)
    return made


def lists_of(recipe: Recipe) -> list[tuple[tuple[Operation, ...], int]]:
    return [(view.operations, view.size) for view in recipe.views for _ in range(view.count)]


def case(*contenders: Contender) -> Case:
    return Case(operation="blur", size=32, contenders=list(contenders))


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
@pytest.mark.parametrize("name", ["moco-v1", "byol", "multi-crop", "moco-cifar"])
def test_a_rivals_chain_ends_in_normalised_views(name: str, rival, images) -> None:
    if rival.name.startswith("albumentations"):
        pytest.importorskip("albumentations", reason="Albumentations is not installed")
    recipe = load_recipe(name, size=32)
    for view in recipe.views:
        made = rival.compose(view.operations, view.size, recipe)(rival.take(images[0]))
        assert made.shape == (3, view.size, view.size)
        assert made.dtype == torch.float32
        assert -3 < made.mean() < 3


@pytest.mark.parametrize("name", ["albumentations-7", "pool-14", "abcde", "color-1/2"])
def test_albumentations_has_every_recipe(name: str, images) -> None:
    pytest.importorskip("albumentations", reason="Albumentations is not installed")
    recipe = load_recipe(name, size=32)
    step = albumentations_compose(recipe.views[0].operations, 32, recipe)
    assert all(step(image).shape == (3, 32, 32) for image in images for _ in range(20))


@pytest.mark.parametrize("compose", [torchvision_pil, torchvision_v2])
def test_torchvision_lacks_what_it_has_no_transform_for(compose) -> None:
    with pytest.raises(Lacks, match="CLAHE"):
        compose((RandomResizedCrop(), CLAHE()), 32, None)


@pytest.mark.parametrize("name", ["moco-v2", "byol"])
def test_dalis_graph_ends_in_normalised_views(name: str, images) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    recipe = load_recipe(name, size=32)
    views = dali_pipeline(lists_of(recipe), recipe, np.stack(images), "cpu")()
    for view in views:
        found = np.array(view.as_tensor())
        assert found.shape == (2, 3, 32, 32)
        assert found.dtype == np.float32
        assert -3 < found.mean() < 3


def test_dali_lacks_what_it_has_no_operator_for(images) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    with pytest.raises(Lacks, match="CLAHE"):
        dali_pipeline([((RandomResizedCrop(), CLAHE()), 32)], load_recipe("moco-v2"), np.stack(images), "cpu")


@pytest.mark.parametrize("name", ["moco-v2", "byol"])
def test_kornias_chain_ends_in_normalised_views(name: str, images) -> None:
    pytest.importorskip("kornia", reason="Kornia is not installed")
    recipe = load_recipe(name, size=32)
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
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
def test_every_operation_runs(name: str, images) -> None:
    made = make_case(name, images, ("fused_cpu", "reference"), (1, 2), 16)
    for each in made.contenders:
        each.run()
        assert (each.views, each.threads) == (2, 1)
        source = each.bytes - 3 * 16 * 16  # what the crop reads: the whole view, unless it is the crop that is measured
        assert (0 < source <= 3 * 40 * 50) if "crop" in name else source == 3 * 16 * 16


def test_a_chain_runs_in_threads(images) -> None:
    made = make_case(f"{CHAIN}moco-v2", images * 8, ("fused_cpu",), (1, 2), 16)
    ours = [each for each in made.contenders if each.executor == "fused_cpu"]
    assert [each.threads for each in ours] == [1, 2]
    for each in ours:
        each.run()
        assert each.views == each.threads * 2 * 16  # each thread has all the images
        assert 4 * 3 * 16 * 16 < each.bytes < 4 * 3 * 16 * 16 + 3 * 40 * 50


# On a GPU, or its rows' own code on the CPU, where Triton interprets the kernels.

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PACKAGE_OF = {"kornia": "kornia", "dali-pipeline": "nvidia.dali", **dict.fromkeys(FUSED, "triton")}


@pytest.mark.parametrize("name", [*RIVALS_ON_GPU, *FUSED])
def test_every_row_on_a_gpu_runs(name: str, images) -> None:
    pytest.importorskip(PACKAGE_OF.get(name, "torchvision"), reason=f"{name} is not installed")
    recipe = load_recipe("moco-v2", size=16)
    made = {each.executor: each for each in gpu_contenders(recipe, lists_of(recipe), images, FUSED, Gpu(DEVICE, 3))}
    each = made[name]
    each.warm()
    assert each.error is None
    each.measure(0.0)
    assert (each.views, each.batch, each.device, len(each.times)) == (6, 3, DEVICE, 1)
    assert len(each.host_times) == (name != "dali-pipeline")  # it has threads of its own
    assert each.writes == (torch.bfloat16 if name == "fused_gpu-bf16" else torch.float32)
    each.rest()
    assert each.run() is None


@pytest.mark.parametrize("count", [1, 5])
def test_a_batch_has_as_many_images_as_were_asked_for(count: int, images) -> None:
    recipe = load_recipe("moco-v2", size=16)
    loop, batch, *_ = gpu_contenders(recipe, lists_of(recipe), images, (), Gpu(DEVICE, count))
    assert [len(views) for views in batch.run()] == [count, count]
    assert len(loop.run()) == 2 * count == loop.views == batch.views


def test_operations_run_on_a_gpu_too(images) -> None:
    made = make_case("flip", images, ("fused_cpu",), (1,), 16, Gpu(DEVICE, 3))
    names = [each.executor for each in made.contenders if each.batch]
    assert names[:2] == ["torchvision-v2-gpu", "torchvision-v2-gpu-batch"]
    for each in made.contenders:
        each.warm()
        assert each.error is None
        written = each.bytes - 3 * 16 * 16  # a view of bytes is read
        assert written == (4 if each.batch else 1) * 3 * 16 * 16
    without = make_case("clahe", images, ("fused_cpu",), (1,), 16, Gpu(DEVICE, 3))
    assert not [each for each in without.contenders if each.executor.startswith("torchvision")]


def test_bfloat16_views_take_half_the_bytes(images, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the fused GPU executor is written in Triton")
    filled = []
    monkeypatch.setattr(augment_gpu, "passes_of", lambda executor, recipe, shares: filled.append(shares[0].out[0]))
    made = make_case("crop", images, ("fused_gpu",), (1,), 16, Gpu(DEVICE, 2))
    moved = {each.executor: each.bytes for each in made.contenders}
    assert moved["fused_gpu"] - moved["fused_gpu-bf16"] == 2 * 3 * 16 * 16
    assert [out.dtype for out in filled] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(("name", "alike"), [("torchvision-v2-gpu", False), ("torchvision-v2-gpu-batch", True)])
def test_torchvisions_batch_has_one_draw_for_all_its_images(name: str, alike: bool, images) -> None:
    """So it is not the augmentation that the others make: one image, four times over, gives one view, or four."""
    lists = [((RandomResizedCrop(), HorizontalFlip(), GaussianBlur(sigma=(0.1, 2.0))), 16)]
    made = RIVALS_ON_GPU[name](lists, load_recipe("moco-v2", size=16), images[:1] * 4, DEVICE)()
    first, *others = made[0] if alike else made
    assert len(others) == 3
    assert all(torch.allclose(first, other, atol=1e-3) for other in others) == alike


def test_a_rival_that_breaks_as_it_is_built_is_named(images, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA driver version is insufficient")

    monkeypatch.setitem(RIVALS_ON_GPU, "kornia", broken)
    recipe = load_recipe("moco-v2", size=16)
    made = {each.executor: each for each in gpu_contenders(recipe, lists_of(recipe), images, (), Gpu(DEVICE, 1))}
    made["kornia"].warm()
    assert made["kornia"].error == "RuntimeError: CUDA driver version is insufficient"
    assert made["torchvision-v2-gpu"].error is None


def test_passes_do_not_run_far_ahead_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    launched, done = [], []

    class Event:
        def __init__(self) -> None:
            self.number = len(launched)

        def synchronize(self) -> None:
            done.append(self.number)

    class Stream:
        record_event = Event

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    run = augment_gpu._paced(lambda: launched.append(None))
    for passes in range(1, 10):
        run()
        assert len(launched) == passes
        assert done == list(range(1, passes - AHEAD + 1))


def test_ours_is_held_against_every_rival_on_the_gpu() -> None:
    ran = [on_gpu("kornia", 60), on_gpu("dali-pipeline", 16), on_gpu("fused_gpu", 4, 5, 6, host=0.02)]
    found = case(contender("torchvision-pil", 100), contender("fused_cpu", 10), *ran)
    rows = augment_report.results([found], {"cpu-1": 1e9, "cuda-1": 1e9})
    ours = rows[-1]
    assert (ours["batch"], ours["ms_per_batch"], ours["host_ms_per_batch"]) == (10, pytest.approx(0.1), 0.02)
    assert (ours["floor_ms_per_batch"], ours["over_floor"]) == (pytest.approx(0.02), pytest.approx(5))
    assert ours["times_as_fast_as"] == pytest.approx({"kornia": 12, "dali-pipeline": 3.2})
    assert ours["ratio"] == 20
    assert [row["batch"] for row in rows] == [None, None, 10, 10, 10]
    assert rows[2]["times_as_fast_as"] is None
    chain = [row | {"operation": "chain:moco-v2"} for row in rows]
    assert augment_report.aims({"rows": chain}) == [
        "fused_gpu, chain:moco-v2, 10 × 2 views of 32 px: 5.0 × its floor (target: within 4 ×, missed)",
        "fused_gpu, chain:moco-v2, 10 × 2 views of 32 px: 12.0 × as fast as kornia (target: 10 ×, met)",
        "fused_gpu, chain:moco-v2, 10 × 2 views of 32 px: 3.2 × as fast as dali-pipeline (target: 5 ×, missed)",
    ]


def test_a_report_with_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, images
) -> None:
    pytest.importorskip("triton", reason="the fused GPU executor is written in Triton")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(augment, "gpu_device", lambda: DEVICE)
    monkeypatch.setattr(augment_report, "first_view", lambda: {"imports_s": 2.0, "first_view_s": 0.5})
    monkeypatch.setattr(augment_report, "triton_report", lambda quick: None)
    out, plot = tmp_path / "a.json", tmp_path / "a.png"
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    arguments = ["--quick", "--executors", "fused_gpu", "--operations", "chain:moco-v2", "--gpu-images", "2"]
    arguments += ["--data", str(tmp_path), "--size", "16"]
    assert augment.main([*arguments, "--json", str(out), "--plot", str(plot)]) == 0
    assert str(tmp_path) not in out.read_text()
    rows = {row["executor"]: row for row in json.loads(out.read_text())["rows"]}
    assert {"torchvision-v2-gpu", "torchvision-v2-gpu-batch", "fused_gpu", "fused_gpu-bf16"} < set(rows)
    assert rows["fused_gpu"]["ms_per_batch"] == pytest.approx(4 * rows["fused_gpu"]["us_per_view"] / 1e3)
    assert set(rows["fused_gpu"]["times_as_fast_as"]) > {"torchvision-v2-gpu", "torchvision-v2-gpu-batch"}
    assert (rows["torchvision-v2-gpu"]["batch"], rows["torchvision-pil"]["batch"]) == (2, None)
    printed = capsys.readouterr().out
    assert "ms a batch" in printed
    assert "as fast as torchvision-v2-gpu-batch" in printed
    assert "torchvision-v2-gpu-batch: all images of a batch have one draw of random values" in printed
    with Image.open(plot) as picture:
        assert picture.format == "PNG"


def test_a_batch_is_larger_where_images_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def caught(name: str, *rest: object) -> Case:
        asked.append((name, rest[-1]))
        return case()

    monkeypatch.setattr(augment, "gpu_device", lambda: DEVICE)
    monkeypatch.setattr(augment, "make_case", caught)
    monkeypatch.setattr(augment, "report_of", lambda *_: {"errors": []})
    monkeypatch.setattr(augment, "show", lambda *_: None)
    names = ["chain:moco-v2", "chain:moco-cifar"]
    assert augment.main(["--images", "1", "--executors", "fused_cpu", "--operations", *names]) == 0
    assert asked == [("chain:moco-v2", Gpu(DEVICE, 256)), ("chain:moco-cifar", Gpu(DEVICE, 1024))]


# What is fed, and what is left.


def test_embedded_photographs_differ() -> None:
    photos = augment.photographs(augment.Config(images=3))
    assert {photo.shape for photo in photos} == {(375, 500, 3)}
    assert len({photo.tobytes() for photo in photos}) == 3
    assert len(augment.small_images(augment.Config(images=3), photos)) == 8 * 3


def test_photographs_come_from_a_folder(tmp_path: Path, images) -> None:
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    found = augment.photographs(augment.Config(data=str(tmp_path), images=9))
    assert [photo.tobytes() for photo in found] == [image.tobytes() for image in images]


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
    assert "chain:moco-v2" in printed
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
