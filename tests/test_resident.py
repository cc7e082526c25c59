"""The resident loader: what it holds equals what the source decodes to, and what it cannot hold is refused."""

from __future__ import annotations

import _thread
import gc
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.augment import fused_gpu, load_recipe
from penstock.augment.draw import draw
from penstock.errors import BrokenImage, UserError
from penstock.loaders import Subset, make_loader, open_source
from penstock.loaders import resident as resident_module
from penstock.loaders.convert import convert
from penstock.loaders.ram import memory_available
from penstock.loaders.resident import ResidentSource, allowance
from penstock.loaders.sources import ImageArrays

COUNT, SIZE = 20, 16


def picture(i, height=24, width=40):
    coarse = np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width + i, height + 2 * i), Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """JPEG files of several sizes, and one each that decodes in another way."""
    root = tmp_path_factory.mktemp("images")
    for i in range(COUNT):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        picture(i).save(root / "ab"[i % 2] / f"{i:02}.jpg")
    picture(30).convert("L").save(root / "a" / "grey.jpg")
    picture(31).convert("CMYK").save(root / "a" / "cmyk.jpg")
    picture(32).convert("RGBA").save(root / "b" / "alpha.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(33).save(root / "b" / "turned.jpg", exif=turned)
    return root


@pytest.fixture(scope="module")
def files(folder):
    return open_source(str(folder))


def arrays(count=10, side=8):
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return ImageArrays(images, np.arange(count) % 2, ("a", "b"), "noise")


def needed(source):
    return sum(source.decode(i).nbytes for i in range(len(source)))


def assert_holds(resident, source):
    assert len(resident) == len(source)
    assert np.array_equal(resident.labels, source.labels) and resident.classes == source.classes
    images = resident.fetch(np.arange(len(source))).images
    for i in range(len(source)):
        assert np.array_equal(resident.decode(i), source.decode(i))
        assert np.array_equal(images.image(i), source.decode(i))


def no_threads():
    return not [thread for thread in threading.enumerate() if thread.name.startswith("in-order")]


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_it_holds_what_the_files_decode_to(files, workers):
    resident = ResidentSource(files, workers=workers)
    assert_holds(resident, files)
    assert resident.images.data.nbytes == needed(files)
    assert no_threads()


@pytest.mark.parametrize(("encoding", "storage"), [("raw", "raw"), ("jpeg", "jpeg")])
def test_a_shard_is_read_into_memory(files, tmp_path, encoding, storage):
    shard = convert(files, tmp_path / "some.beton", encoding=encoding, progress=False).path
    source = open_source(str(shard))
    resident = ResidentSource(source, workers=2)
    assert_holds(resident, source)
    assert resident.storage == storage
    held = resident.images.data.copy()
    shard.write_bytes(bytes(shard.stat().st_size))
    assert np.array_equal(resident.images.data, held)


def test_each_image_is_decoded_once(files, monkeypatch):
    decoded = []
    monkeypatch.setattr(files, "decode", lambda i, decode=files.decode: decoded.append(i) or decode(i))
    resident = ResidentSource(files, workers=2)
    for _ in range(2):
        resident.fetch(np.arange(len(files)))
    assert sorted(decoded) == list(range(len(files)))


def test_arrays_in_memory_are_not_copied():
    source = arrays()
    assert np.shares_memory(ResidentSource(source, workers=1, budget=0).images.data, source.images)
    chosen = Subset(Subset(source, [1, 3, 5, 7]), [2, 0])
    resident = ResidentSource(chosen, workers=1, budget=0)
    assert np.shares_memory(resident.images.data, source.images)
    assert_holds(resident, chosen)


@pytest.mark.parametrize("kind", ["mapped", "strided"])
def test_other_arrays_are_and_have_to_fit(kind, tmp_path):
    source = arrays()
    if kind == "mapped":
        source.images.tofile(tmp_path / "pixels")
        source.images = np.asarray(np.memmap(tmp_path / "pixels", np.uint8, mode="r")).reshape(source.images.shape)
    else:
        source.images = source.images.transpose(0, 2, 1, 3)
    with pytest.raises(UserError, match="--memory-budget"):
        ResidentSource(source, workers=1, budget=source.images.size - 1)
    resident = ResidentSource(Subset(source, [4, 2]), workers=1)
    assert not np.shares_memory(resident.images.data, source.images)
    assert_holds(resident, Subset(source, [4, 2]))


def test_a_budget_may_be_just_enough(files, monkeypatch):
    assert_holds(ResidentSource(files, workers=2, budget=needed(files)), files)
    monkeypatch.setattr(files, "decode", lambda i: pytest.fail("nothing is decoded before it is known to fit"))
    with pytest.raises(UserError) as error:
        ResidentSource(files, workers=2, budget=4000)
    line = str(error.value)
    assert (
        f"these {len(files)} take" in line and "4.0 kB is the --memory-budget here: raise --memory-budget, make" in line
    )
    assert "--encoding raw --short-side 256" in line and "\n" not in line
    assert no_threads()


def test_one_byte_too_few_is_refused(files):
    with pytest.raises(UserError, match="--memory-budget"):
        ResidentSource(files, workers=2, budget=needed(files) - 1)


def test_a_large_set_is_refused_before_all_of_it_is_measured(monkeypatch):
    source, asked = arrays(5000), []
    monkeypatch.setattr(resident_module, "in_memory", lambda source: None)
    monkeypatch.setattr(source, "sizes", lambda i, sizes=source.sizes: asked.append(len(i)) or sizes(i))
    with pytest.raises(UserError, match=r"these 5000 take about 960\.0 kB, and 100\.0 kB is"):
        ResidentSource(source, workers=2, budget=100_000)
    assert sum(asked) < 2500
    assert no_threads()


def test_half_of_what_is_free_is_shared_by_the_ranks_of_a_machine(monkeypatch):
    monkeypatch.setattr(resident_module, "memory_available", lambda: 1000)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert (allowance(None).size, allowance(800).size, allowance(4000).size) == (500, 800, 1000)
    assert allowance(4000).why == "all that is free here" and not allowance(4000).stretches
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (allowance(None).size, allowance(800).size) == (125, 200)
    assert allowance(None).why == "half of what is free here, for each of 4 ranks"


def cgroup(folder, names, limit, used, cache):
    folder.mkdir(parents=True, exist_ok=True)
    most, current, *cached = names
    (folder / most).write_text(f"{limit}\n")
    (folder / current).write_text(f"{used}\n")
    (folder / "memory.stat").write_text("anon 7\n" + "".join(f"{name} {cache}\n" for name in cached))


def test_free_memory_is_what_the_tightest_cgroup_leaves(tmp_path):
    two = ("memory.max", "memory.current", "active_file", "inactive_file")
    one = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file", "total_inactive_file")
    root, groups = tmp_path / "fs", tmp_path / "groups"
    groups.write_text("0::/job/step\n")
    unlimited = memory_available(root, groups)
    assert unlimited > 1 << 20
    cgroup(root / "job" / "step", two, "max", 100, 0)
    cgroup(root / "job", two, 5000, 3000, 400)  # the page cache gives way
    assert memory_available(root, groups) == 2800
    groups.write_text("4:memory:/not/shown/here\n3:cpuset:/\n0::/\n")
    cgroup(root / "memory", one, 900, 500, 0)
    assert memory_available(root, groups) == 400
    cgroup(root / "memory", one, 900, 950, 0)
    assert memory_available(root, groups) == 0


def broken_folder(tmp_path):
    """Of six images the first cannot be told the size of, and the fourth is cut short."""
    for i in range(6):
        (tmp_path / "c").mkdir(exist_ok=True)
        picture(i).save(tmp_path / "c" / f"{i}.jpg", quality=95)
    (tmp_path / "c" / "0.jpg").write_bytes(b"no image")
    whole = (tmp_path / "c" / "3.jpg").read_bytes()
    (tmp_path / "c" / "3.jpg").write_bytes(whole[: len(whole) // 2])
    return open_source(str(tmp_path))


def test_a_broken_image_is_named(tmp_path):
    source = broken_folder(tmp_path)
    with pytest.raises(BrokenImage, match=r"0\.jpg"):
        ResidentSource(source, workers=2)
    (tmp_path / "c" / "0.jpg").unlink()
    with pytest.raises(BrokenImage, match=r"3\.jpg"):
        ResidentSource(open_source(str(tmp_path)), workers=2)
    assert no_threads()


def test_or_skipped(tmp_path):
    source = broken_folder(tmp_path)
    resident = ResidentSource(source, workers=2, on_error="skip")
    assert sorted(resident.skipped) == [0, 3]
    for i in (1, 2, 4, 5):
        assert np.array_equal(resident.decode(i), source.decode(i))
    with pytest.raises(BrokenImage, match=r"3\.jpg.*truncated"):
        resident.decode(3)
    options = {"recipe": load_recipe("moco-v2", size=SIZE), "batch": 6, "workers": 2, "order": "stored"}
    with make_loader("resident", source, on_error="skip", **options) as loader:
        assert sorted(loader.skipped) == [0, 3]  # before the first batch
        (views,) = loader
        assert views.index.tolist() == [1, 1, 2, 4, 4, 5]


def test_none_left_is_an_error(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="not one of its 1 images"):
        ResidentSource(open_source(str(tmp_path)), workers=1, on_error="skip")


def test_an_image_that_lies_about_its_size_is_broken(files, monkeypatch):
    monkeypatch.setattr(files, "decode", lambda i, decode=files.decode: decode(i)[: None if i else -1])
    with pytest.raises(BrokenImage, match=r"00\.jpg.*decodes to 23×40 pixels, 24×40"):
        ResidentSource(files, workers=2)


def test_an_interrupt_leaves_no_thread_behind(files, monkeypatch):
    def decode(i):
        if i == 5:  # by then the threads have been started
            _thread.interrupt_main()
        time.sleep(0.01)
        return whole(i)

    whole = files.decode
    monkeypatch.setattr(files, "decode", decode)
    with pytest.raises(KeyboardInterrupt):
        ResidentSource(files, workers=2)
    assert no_threads()


def test_views_are_those_of_the_folder_loader(files):
    options = {"recipe": load_recipe("moco-v2", size=SIZE), "batch": 7, "workers": 2, "seed": 3, "keep_tail": True}
    with make_loader("folder", files, **options) as one, make_loader("resident", files, **options) as other:
        for expected, views in zip(one.epoch(1), other.epoch(1), strict=True):
            assert torch.equal(views.index, expected.index) and torch.equal(views.label, expected.label)
            assert torch.equal(views.groups[0], expected.groups[0])


def test_a_wrong_executor_is_refused_before_anything_is_decoded(files, monkeypatch):
    monkeypatch.setattr(files, "decode", lambda i: pytest.fail("decoded"))
    with pytest.raises(UserError, match="--executor"):
        make_loader("resident", files, recipe=load_recipe("moco-v2", size=SIZE), batch=4, executor="best")


def test_memory_is_let_go_of(files):
    loader = make_loader("resident", files, recipe=load_recipe("moco-v2", size=SIZE), batch=4, workers=2)
    memory = weakref.ref(loader.source.images.data)
    for _ in loader:
        break
    loader.close()
    del loader, _
    gc.collect()
    assert memory() is None


def test_what_is_held_cannot_be_written_to(files):
    image = ResidentSource(files, workers=1).decode(0)
    with pytest.raises(ValueError, match="read-only"):
        image[:] = 0


def test_progress_is_shown(files, capsys):
    ResidentSource(files, workers=1, progress=True)
    shown = capsys.readouterr().err
    assert "decoding" in shown and "MB/s" in shown
    ResidentSource(files, workers=1)
    assert not capsys.readouterr().err


def test_a_tensor_may_hold_them(files):
    """As on a GPU; the tensor is on the CPU here."""
    resident = ResidentSource(files, workers=2, device=torch.device("cpu"))
    assert isinstance(resident.images.data, torch.Tensor)
    assert_holds(resident, files)


def test_the_gpu_executor_cuts_views_from_that_tensor(files):
    pytest.importorskip("triton", reason="the fused GPU executor is written in Triton")
    if torch.cuda.is_available():
        pytest.skip("in Triton's interpreter, on tensors of the CPU: with a GPU, tests/test_loader_pixels.py does it")
    resident = ResidentSource(files, workers=2, device=torch.device("cpu"))
    index = np.array([3, 1], np.int64)
    recipe, pixels = load_recipe("moco-v2", size=SIZE), resident.fetch(index).images
    rows = draw(recipe, seed=0, epoch=0, index=index, height=pixels.height, width=pixels.width)
    found, expected = torch.empty(2, 2, 2, SIZE, SIZE, 3).permute(0, 1, 2, 5, 3, 4)
    fused_gpu.run(pixels, rows, recipe, found)
    fused_gpu.run(ResidentSource(files, workers=2).fetch(index).images, rows, recipe, expected)
    assert torch.equal(found, expected)
