"""The augmentation benchmark's rows on a GPU; on the CPU their own code runs, where Triton interprets the kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from penstock.augment import load_recipe
from penstock.augment.operations import GaussianBlur, HorizontalFlip, RandomResizedCrop
from penstock.benchmarks import augment, augment_gpu, augment_report
from penstock.benchmarks.augment_contenders import make_case
from penstock.benchmarks.augment_gpu import AHEAD, FUSED, RIVALS_ON_GPU, Gpu, gpu_contenders
from penstock.benchmarks.augment_passes import Case, Contender
from tests.augment_cases import IMAGES, case, contender, lists_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PACKAGE_OF = {"kornia": "kornia", "dali-pipeline": "nvidia.dali", **dict.fromkeys(FUSED, "triton")}


def on_gpu(executor: str, *times: float, host: float = 1.0) -> Contender:
    """A batch of 10 images, 20 views."""
    made = Contender(executor=executor, run=lambda: None, views=20, bytes=1000, device="cuda", batch=10)
    made.times.extend(times)
    made.host_times.append(host)
    return made


@pytest.mark.parametrize("name", [*RIVALS_ON_GPU, *FUSED])
def test_every_row_on_a_gpu_runs(name: str) -> None:
    pytest.importorskip(PACKAGE_OF.get(name, "torchvision"), reason=f"{name} is not installed")
    recipe = load_recipe("moco-v2", size=16)
    made = {each.executor: each for each in gpu_contenders(recipe, lists_of(recipe), IMAGES, FUSED, Gpu(DEVICE, 3))}
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
def test_a_batch_has_as_many_images_as_were_asked_for(count: int) -> None:
    recipe = load_recipe("moco-v2", size=16)
    loop, batch, *_ = gpu_contenders(recipe, lists_of(recipe), IMAGES, (), Gpu(DEVICE, count))
    assert [len(views) for views in batch.run()] == [count, count]
    assert len(loop.run()) == 2 * count == loop.views == batch.views


def test_operations_run_on_a_gpu_too() -> None:
    made = make_case("flip", IMAGES, ("fused_cpu",), (1,), 16, Gpu(DEVICE, 3))
    names = [each.executor for each in made.contenders if each.batch]
    assert names[:2] == ["torchvision-v2-gpu", "torchvision-v2-gpu-batch"]
    for each in made.contenders:
        each.warm()
        assert each.error is None
        written = each.bytes - 3 * 16 * 16  # a view of bytes is read
        assert written == (4 if each.batch else 1) * 3 * 16 * 16
    without = make_case("clahe", IMAGES, ("fused_cpu",), (1,), 16, Gpu(DEVICE, 3))
    assert not [each for each in without.contenders if each.executor.startswith("torchvision")]


def test_bfloat16_views_take_half_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the fused GPU executor is written in Triton")
    filled = []
    monkeypatch.setattr(augment_gpu, "passes_of", lambda executor, recipe, shares: filled.append(shares[0].out[0]))
    made = make_case("crop", IMAGES, ("fused_gpu",), (1,), 16, Gpu(DEVICE, 2))
    moved = {each.executor: each.bytes for each in made.contenders}
    assert moved["fused_gpu"] - moved["fused_gpu-bf16"] == 2 * 3 * 16 * 16
    assert [out.dtype for out in filled] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(("name", "alike"), [("torchvision-v2-gpu", False), ("torchvision-v2-gpu-batch", True)])
def test_torchvisions_batch_has_one_draw_for_all_its_images(name: str, alike: bool) -> None:
    """So it is not the augmentation that the others make: one image, four times over, gives one view, or four."""
    lists = [((RandomResizedCrop(), HorizontalFlip(), GaussianBlur(sigma=(0.1, 2.0))), 16)]
    made = RIVALS_ON_GPU[name](lists, load_recipe("moco-v2", size=16), IMAGES[:1] * 4, DEVICE)()
    first, *others = made[0] if alike else made
    assert len(others) == 3
    assert all(torch.allclose(first, other, atol=1e-3) for other in others) == alike


def test_a_rival_that_breaks_as_it_is_built_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA driver version is insufficient")

    monkeypatch.setitem(RIVALS_ON_GPU, "kornia", broken)
    recipe = load_recipe("moco-v2", size=16)
    made = {each.executor: each for each in gpu_contenders(recipe, lists_of(recipe), IMAGES, (), Gpu(DEVICE, 1))}
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


def test_a_report_with_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("triton", reason="the fused GPU executor is written in Triton")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(augment, "gpu_device", lambda: DEVICE)
    monkeypatch.setattr(augment_report, "first_view", lambda: {"imports_s": 2.0, "first_view_s": 0.5})
    monkeypatch.setattr(augment_report, "triton_report", lambda quick: None)
    out, plot = tmp_path / "a.json", tmp_path / "a.png"
    for i, image in enumerate(IMAGES):
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
