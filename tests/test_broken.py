"""Broken images: each is named, or skipped and counted. Never a crash, a hang, or pixels that were made up.

Which ones, and the sets that hold them: `broken_images.py`.
"""

from __future__ import annotations

import os
import re
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.augment import Recipe, load_recipe
from penstock.augment.operations import CenterCrop
from penstock.augment.recipe import View
from penstock.errors import BrokenImage, UserError
from penstock.loaders import LOADERS, Loader, Source, Subset, Views, make_loader, missing, open_source
from penstock.loaders.beton import BetonSource
from penstock.loaders.convert import convert
from penstock.loaders.examined import Examined
from penstock.loaders.skipped import Skipped
from penstock.loaders.sources.arrays import ImageArrays
from penstock.loaders.webdataset import BLOCK, GROUP, WebDatasetSource
from penstock.loaders.webdataset import SIZE as SIZE_FIELD
from tests.broken_images import (
    BROKEN,
    BY_CHECKSUM,
    CHANGES,
    COUNT,
    NUMBERS,
    SILENT,
    change,
    encoded,
    good,
    numbered,
    photo,
    write_set,
)

SIZE, BATCH, EPOCH, WITHIN = 16, 8, 1, 20  # seconds for anything, on a busy machine
READS = {  # what each loader is given
    "torchvision": ["files"],
    "folder": ["files"],
    "ffcv": ["jpeg", "foreign"],
    "resident": ["files", "jpeg", "webdataset"],
    "dali": ["webdataset"],
    "ffcv-package": ["jpeg", "foreign"],
}
PAIRS = [(name, storage) for name in READS for storage in READS[name] if name in LOADERS]
SKIPPING = [pair for pair in PAIRS if pair[0] != "ffcv-package"]
Sets = dict[tuple[str, bool], Source]  # by storage, and by whether images are broken in it
WHOLE = Recipe(name="whole", about="", views=(View(operations=(CenterCrop(fraction=1.0),), size=SIZE, count=2),))
SLOW = ("dali", "torchvision")  # to start
BLIND = ("12000 x 12000", *SILENT)  # what Pillow, and so the baseline, shows without a word


def need(name: str) -> None:
    if reason := missing(name):
        pytest.skip(reason)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sets]:
    folder = tmp_path_factory.mktemp("broken")
    made = {}
    for storage, broken in product(("files", "jpeg", "foreign", "webdataset"), (False, True)):
        made[storage, broken] = write_set(folder / f"{storage}-{broken}", storage, encoded(broken=broken))
    for name in {name for name, _ in SKIPPING if not missing(name)}:  # libraries start threads once, and keep them
        with make(name, made[READS[name][0], False]) as loader:
            next(loader.epoch(0))
    yield made
    for source in made.values():
        source.close()


def make(name: str, source: Source, **options: object) -> Loader:
    ours = LOADERS[name].own_augmentation is False
    recipe = load_recipe("moco-v2", size=SIZE) if ours else WHOLE
    return make_loader(name, source, **{"recipe": recipe, "batch": BATCH, "workers": 2, **options})  # type: ignore


def seen_by(name: str, source: Source) -> tuple[Source, set[int]]:
    """The part of a set that tells something about a loader, and which of its images are broken to it."""
    blind = {numbered(what) for what in BLIND} if name == "torchvision" else set()
    kept = [i for i in range(COUNT) if i not in blind]
    return Subset(source, kept), {n for n, i in enumerate(kept) if i in NUMBERS}


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def settle(before: int) -> None:
    """Wait until there are no more threads than before. Raises AssertionError."""
    deadline = time.monotonic() + WITHIN
    while threads() > before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def by_sample(batches: list[Views]) -> list[tuple[int, int, torch.Tensor]]:
    """(index, label, views [V, 3, S, S]) of everything handed out, in order."""
    found = []
    for views in batches:
        by_view = views.groups[0].unflatten(0, (-1, len(views)))
        found += [(int(i), int(views.label[n]), by_view[:, n]) for n, i in enumerate(views.index)]
    return found


def assert_same(first: list[tuple[int, int, torch.Tensor]], second: list[tuple[int, int, torch.Tensor]]) -> None:
    assert [(index, label) for index, label, _ in first] == [(index, label) for index, label, _ in second]
    assert all(torch.equal(one, other) for (_, _, one), (_, _, other) in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 7 worker processes")
@pytest.mark.parametrize(("name", "storage"), SKIPPING)
def test_a_broken_image_gives_way_to_the_next_one_and_is_counted(name: str, storage: str, sets: Sets) -> None:
    """For any number of workers, and wherever a run goes on; all else is as if nothing were broken."""
    need(name)
    source, broken = seen_by(name, sets[storage, True])
    with make(name, seen_by(name, sets[storage, False])[0], keep_tail=True) as loader:
        undamaged = {index: (index, label, views) for index, label, views in by_sample(list(loader.epoch(EPOCH)))}
        order = np.concatenate([loader.order.indices(EPOCH, step) for step in range(loader.order.steps())])
    readable = [next(i % len(source) for i in range(n, 2 * len(source)) if i % len(source) not in broken)
                for n in order.tolist()]  # fmt: skip
    expected = [undamaged[index] for index in readable]
    for workers in (1, 7) if name in SLOW else (1, 2, 7):
        before = threads()
        with make(name, source, keep_tail=True, workers=workers, on_error="skip") as loader:
            for _ in range(2):  # found out, then known
                batches = list(loader.epoch(EPOCH))
                assert [len(views) for views in batches] == [BATCH] * (len(source) // BATCH) + [len(source) % BATCH]
                assert_same(by_sample(batches), expected)
            assert set(loader.skipped) == broken and all(loader.skipped.values())
        with make(name, source, keep_tail=True, workers=workers, on_error="skip") as loader:
            assert_same(by_sample(list(loader.epoch(EPOCH, 2 * BATCH))), expected[2 * BATCH :])
        del loader
        settle(before)


def stopped(name: str, source: Source, **options: object) -> None:
    """One epoch of a loader that is closed, whatever happens."""
    with make(name, source, keep_tail=True, **options) as loader:
        list(loader.epoch(0))


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize(("name", "storage"), SKIPPING)
def test_a_broken_image_stops_the_loader_and_is_named(name: str, storage: str, what: str, sets: Sets) -> None:
    need(name)
    if name == "torchvision" and what in BLIND:
        pytest.skip("Pillow shows it without a word, and this loader is Pillow as everybody uses it")
    source, before, begin = sets[storage, True], threads(), time.monotonic()
    chosen = Subset(source, [0, 2, numbered(what), 5, 7])
    with pytest.raises(BrokenImage, match=re.escape(chosen.location(2))):
        stopped(name, chosen, batch=2, order="stored")
    assert time.monotonic() - begin < WITHIN
    settle(before)


@pytest.mark.parametrize(("name", "storage"), SKIPPING)
def test_a_set_of_broken_images_alone_is_an_error(name: str, storage: str, sets: Sets) -> None:
    need(name)
    source, broken = seen_by(name, sets[storage, True])
    before = threads()
    with pytest.raises(UserError, match=f"not one of its {len(broken)} images can be read"):
        stopped(name, Subset(source, sorted(broken)), batch=4, on_error="skip")
    settle(before)


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("storage", ["jpeg", "raw", "foreign", "foreign raw"])
@pytest.mark.parametrize("name", ["ffcv", "resident", "torchvision"])
def test_what_changed_in_a_beton_since_it_was_written_is_found(
    name: str, storage: str, what: str, tmp_path: Path
) -> None:
    need(name)
    if storage.startswith("foreign") and (name == "torchvision" or what in BY_CHECKSUM):
        pytest.skip("without checksums, nobody can tell" if what in BY_CHECKSUM else "it reads as the others do")
    images = [photo(i).tobytes() if storage.endswith("raw") else good(i) for i in range(8)]
    with closing(write_set(tmp_path, storage, images)):
        change(tmp_path / "x.beton", 5, what)
    with closing(BetonSource(tmp_path / "x.beton")) as source:
        with pytest.raises(BrokenImage, match=re.escape(f"{tmp_path / 'x.beton'}[5]")):
            stopped(name, source, batch=4)
        with make(name, source, batch=4, on_error="skip", order="stored") as loader:
            assert torch.cat([views.index for views in loader.epoch(0)]).tolist() == [0, 1, 2, 3, 4, 6, 6, 7]
            assert list(loader.skipped) == [5]


def members(tar: Path) -> dict[str, tuple[int, int]]:
    """Where the bytes of each file in a tar begin, and how many they are."""
    with tarfile.open(tar) as archive:
        return {member.name: (member.offset_data, member.size) for member in archive}


@pytest.mark.parametrize("what", ["a bit of its data", "its checksum", "its size", "its label"])
@pytest.mark.parametrize("name", ["dali", "folder", "resident"])
def test_what_changed_in_a_tar_since_it_was_written_is_found(name: str, what: str, tmp_path: Path) -> None:
    need(name)
    tar = tmp_path / "x.tar"
    write_set(tmp_path, "webdataset", [good(i) for i in range(8)]).close()
    start, size = members(tar)["000000005.jpg"]
    label, _ = members(tar)["000000005.cls"]
    header = start - BLOCK
    place = {"a bit of its data": start + size // 2, "its label": label}
    place |= {"its size": header + SIZE_FIELD.stop - 2, "its checksum": header + GROUP.start}
    flip(tar, place[what], 1)
    with closing(WebDatasetSource(tar)) as source:
        with pytest.raises(BrokenImage, match=re.escape(f"{tar}[5]")):
            stopped(name, source, batch=4)
        with make(name, source, batch=4, on_error="skip", order="stored") as loader:
            assert torch.cat([views.index for views in loader.epoch(0)]).tolist() == [0, 1, 2, 3, 4, 6, 6, 7]
            assert list(loader.skipped) == [5]


def flip(path: Path, place: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ bit]))


@pytest.mark.parametrize("storage", ["jpeg", "raw", "webdataset"])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_shard_that_is_cut_while_it_is_read_is_an_error_and_no_signal(
    storage: str, on_error: str, tmp_path: Path
) -> None:
    """As when another is copied over it. It is no broken image: all others would be, too."""
    images = [photo(i).tobytes() if storage == "raw" else good(i) for i in range(16)]
    with closing(write_set(tmp_path, storage, images)) as source, make("folder", source, on_error=on_error) as loader:
        list(loader.epoch(0))
        os.truncate(source.path, 4000)  # type: ignore[attr-defined]  # nothing is at work: see `shard_file.py`
        with pytest.raises(UserError, match=r"x\.(beton|tar): was cut since it was opened") as error:
            list(loader.epoch(1))
        assert not isinstance(error.value, BrokenImage) and not loader.skipped


def test_a_file_that_goes_away_is_named(sets: Sets, tmp_path: Path) -> None:
    source = write_set(tmp_path, "files", [good(i) for i in range(8)])
    (tmp_path / "a" / "03.jpg").unlink()
    with make("folder", source, batch=4, on_error="skip", order="stored") as loader:
        assert torch.cat([views.index for views in loader.epoch(0)]).tolist() == [0, 1, 2, 4, 4, 5, 6, 7]
        assert "No such file" in loader.skipped[3]


def test_what_to_do_about_broken_images_is_one_of_two(sets: Sets) -> None:
    with pytest.raises(UserError, match="--on-error 'ignore' is not known: choose one of stop, skip"):
        make("folder", sets["files", True], on_error="ignore")


def test_threads_that_find_the_last_images_broken_at_once_do_not_wait_for_one_that_is_not() -> None:
    source = ImageArrays(np.zeros((40, 4, 4, 3), np.uint8), [0] * 40, ["a"], "bad")
    for _ in range(20):
        skipped = Skipped(source, "skip")

        def work(first: int, skipped: Skipped = skipped) -> str:
            index = np.array([first])
            try:
                while True:
                    skipped.replace(index)
                    skipped.add(index, BrokenImage(source.location(int(index[0])), "bad"))
            except UserError as error:
                return str(error)

        with ThreadPoolExecutor(8) as pool:
            ends = list(pool.map(work, range(0, 40, 5)))
        assert all(end.startswith("bad: not one of its 40 images can be read; bad[") for end in ends)
        assert sorted(skipped) == list(range(40))


@pytest.mark.parametrize("suffix", [".beton", ".tar"])
@pytest.mark.parametrize(("options", "decoded"), [({}, True), ({"check": "decode"}, False), ({"quality": 50}, False)])
def test_images_are_examined_once_and_only_where_nobody_decoded_them_before(
    suffix: str, options: dict, decoded: bool, sets: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"encoding": "jpeg"} if "quality" in options else {}
    convert(sets["files", False], tmp_path / f"x{suffix}", progress=False, **options, **how)
    read: list[int] = []
    with closing(open_source(str(tmp_path / f"x{suffix}"))) as source:
        kind = type(source)
        original = kind.decode
        monkeypatch.setattr(kind, "decode", lambda self, i: read.append(i) or original(self, i))
        chosen = Subset(source, [5, 3, 9])
        examined = Examined(chosen)
        for asked in ([0, 2], [2], [0, 1, 2]):
            examined.examine(np.array(asked))
        assert read == ([5, 9, 3] if decoded else [])
        place = source.start(4) + 200  # type: ignore[attr-defined]
        flip(source.path, place, 4)  # type: ignore[attr-defined]
        with pytest.raises(BrokenImage, match=re.escape(source.location(4))):
            Examined(source).examine_in_threads(np.arange(len(source)), 3)


@pytest.mark.parametrize("storage", ["jpeg", "foreign"])
def test_the_ffcv_package_hands_over_no_batch_with_a_broken_image(storage: str, tmp_path: Path) -> None:
    """It would show what its buffer held before. One loader for all of them: each compiles for seconds."""
    need("ffcv-package")
    images = encoded(broken=True)
    images[numbered("empty")] = good(1)  # which no table can hide
    source, before = write_set(tmp_path, storage, images), threading.active_count()  # numba keeps its own
    with closing(source), make("ffcv-package", source, batch=1, order="stored", workers=1) as loader:
        for what in BROKEN.keys() - {"empty"}:
            loader.order.indices = lambda *_, what=what: np.array([numbered(what)])  # type: ignore
            with pytest.raises(BrokenImage, match=re.escape(source.location(numbered(what)))):
                next(loader.epoch(0))
        loader.order.indices = lambda *_: np.array([2])  # type: ignore
        assert next(loader.epoch(0)).index.tolist() == [2]
    assert threading.active_count() == before


@pytest.mark.parametrize("what", ["of no size and length", "higher in the table", "huge in the table"])
def test_the_ffcv_package_is_not_given_sizes_that_cannot_be(what: str, tmp_path: Path) -> None:
    need("ffcv-package")
    write_set(tmp_path, "raw", [photo(i).tobytes() for i in range(8)]).close()
    change(tmp_path / "x.beton", 5, what)
    with (
        closing(BetonSource(tmp_path / "x.beton")) as source,
        pytest.raises(BrokenImage, match=re.escape("x.beton[5]")),
    ):
        make("ffcv-package", source)


def test_the_ffcv_package_does_not_skip(sets: Sets) -> None:
    need("ffcv-package")
    with pytest.raises(UserError, match="--on-error skip: the ffcv package does not tell broken images from whole"):
        make("ffcv-package", sets["jpeg", True], on_error="skip")
