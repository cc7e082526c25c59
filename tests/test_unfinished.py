"""A conversion that was killed goes on from what is whole, and gives the same bytes as one that was not."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import UserError
from penstock.loaders import convert as convert_module
from penstock.loaders import unfinished as unfinished_module
from penstock.loaders.convert import convert
from penstock.loaders.decode import encode_jpeg
from penstock.loaders.formats import open_shard
from penstock.loaders.shard import ShardWriter
from penstock.loaders.sources.arrays import ImageArrays
from penstock.loaders.sources.folder import ImageFolder
from penstock.loaders.unfinished import unfinished
from penstock.loaders.webdataset import index_path

ROOT = Path(__file__).resolve().parents[1]
COUNT = 200
both_formats = pytest.mark.parametrize("suffix", [".beton", ".tar"])


class Killed(BaseException):
    """Stands for a kill: nothing of ours handles it."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    """JPEGs, of which number 7 is broken and number 11 will be encoded anew."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        data = encode_jpeg(rng.integers(0, 256, (20 + i % 30, 40, 3), np.uint8), 90)
        (folder / f"{i:03d}.jpg").write_bytes({7: b"no image", 11: data + b"trailer"}.get(i, data))
    return ImageFolder(folder, name="photos")


def content(shard: Path) -> list[bytes]:
    files = [shard, index_path(shard)] if shard.suffix == ".tar" else [shard]
    return [file.read_bytes() for file in files]


def partial(shard: Path) -> Path:
    return shard.with_name(f".{shard.name}.partial")


def journal(shard: Path) -> Path:
    return shard.with_name(f".{shard.name}.journal")


@pytest.fixture
def killed(photos: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A conversion that dies before it writes its n-th image."""

    def run(shard: Path, images: int, **options: object) -> Path:
        def add(writer: ShardWriter, *arguments: object) -> None:
            if writer.samples == images:
                raise Killed
            original(writer, *arguments)

        original = ShardWriter.add
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(ShardWriter, "add", add)
            convert(photos, shard, on_error="skip", progress=False, **options)
        assert not shard.exists()
        return shard

    return run


@both_formats
@pytest.mark.parametrize("images", [1, 6, 64, 150])
def test_going_on_equals_never_stopping(
    photos: ImageFolder, tmp_path: Path, killed: Callable[..., Path], suffix: str, images: int
) -> None:
    whole = convert(photos, tmp_path / f"whole{suffix}", on_error="skip", progress=False)
    shard = killed(tmp_path / f"x{suffix}", images)
    report = convert(photos, shard, on_error="skip", progress=False)
    assert report.kept == images and whole.kept == 0
    assert content(shard) == content(whole.path)
    for count in ("untouched", "reencoded", "skipped", "samples", "bytes"):
        assert getattr(report, count) == getattr(whole, count)
    assert not journal(shard).exists() and not partial(shard).exists()


def test_killed_again_and_again(photos: ImageFolder, tmp_path: Path, killed: Callable[..., Path]) -> None:
    for images in (3, 3, 90, 199 - 1):
        killed(tmp_path / "x.beton", images)
    report = convert(photos, tmp_path / "x.beton", on_error="skip", progress=False)
    whole = convert(photos, tmp_path / "whole.beton", on_error="skip", progress=False)
    assert report.kept == 198 and content(report.path) == content(whole.path)


def test_work_that_is_kept_is_not_done_again(
    photos: ImageFolder, tmp_path: Path, killed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path / "x.beton", 150)
    read: list[int] = []
    monkeypatch.setattr(ImageFolder, "encoded", lambda self, i: read.append(i) or Path(self.location(i)).read_bytes())
    convert(photos, tmp_path / "x.beton", on_error="skip", progress=False)
    assert min(read) == 151  # of 151 images one was skipped


@both_formats
@pytest.mark.parametrize(
    "what", ["data", "frame", "cut", "zeros", "rest", "torn line", "torn end", "lost line", "number", "label"]
)
def test_only_what_is_whole_is_kept(
    photos: ImageFolder, tmp_path: Path, killed: Callable[..., Path], suffix: str, what: str
) -> None:
    """Whatever a crash of the machine left of the two files, the bytes in the end are right."""
    whole = convert(photos, tmp_path / f"whole{suffix}", on_error="skip", progress=False)
    shard = killed(tmp_path / f"x{suffix}", 150)
    data, lines = bytearray(partial(shard).read_bytes()), journal(shard).read_bytes().splitlines(keepends=True)
    middle = data.rfind(photos.encoded(101)) + 50
    match what:
        case "data":
            data[middle] ^= 4
        case "frame":  # a tar's header; in a beton another image's last byte
            data[middle - 60] ^= 4
        case "cut":
            del data[middle:]
        case "zeros":
            data[middle - 1000 :] = bytes(len(data) - middle + 1000)
        case "rest":
            data += b"rest" * (3 << 20)  # longer than the shard will be
        case "torn end":
            lines[-1] = lines[-1][:-1]
        case "torn line":
            lines[-1] = lines[-1][:-5]
        case "lost line":
            del lines[100]
        case "number" | "label":
            lines[102] = json.dumps(json.loads(lines[102]) | {what: 4}).encode() + b"\n"
    partial(shard).write_bytes(data)
    journal(shard).write_bytes(b"".join(lines))
    report = convert(photos, shard, on_error="skip", progress=False)
    expected = {"torn line": (149, 149), "torn end": (149, 149), "rest": (150, 150), "lost line": (98, 98)}.get(
        what, (80, 101)
    )
    assert expected[0] <= report.kept <= expected[1]
    assert content(shard) == content(whole.path)


@pytest.mark.parametrize("change", [{"quality": 50}, {"check": "decode"}, {"part": "1/1"}])
def test_other_options_start_over(
    photos: ImageFolder, tmp_path: Path, killed: Callable[..., Path], change: dict[str, object]
) -> None:
    shard = killed(tmp_path / "x.beton", 150)
    assert convert(photos, shard, on_error="skip", progress=False, **change).kept == 0


def test_another_source_starts_over(photos: ImageFolder, tmp_path: Path, killed: Callable[..., Path]) -> None:
    shard = killed(tmp_path / "x.beton", 150)
    other = ImageFolder(photos.root, name="others")
    assert convert(other, shard, on_error="skip", progress=False).kept == 0


def test_a_broken_image_can_be_skipped_without_starting_over(photos: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"007\.jpg"):
        convert(photos, tmp_path / "x.beton", progress=False)
    report = convert(photos, tmp_path / "x.beton", on_error="skip", progress=False)
    assert report.kept == 7 and [Path(s["location"]).name for s in report.skipped] == ["007.jpg"]


def test_parts_resume_too(photos: ImageFolder, tmp_path: Path, killed: Callable[..., Path]) -> None:
    expected = convert(photos, tmp_path / "whole.tar", part="2/2", on_error="skip", progress=False)
    killed(tmp_path / "x.tar", 60, part="2/2")
    report = convert(photos, tmp_path / "x.tar", part="2/2", on_error="skip", progress=False)
    assert report.kept == 60 and content(report.path) == content(expected.path)


def test_a_full_disk_keeps_what_is_done(photos: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(writer: ShardWriter, *arguments: object) -> None:
        if writer.samples == 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(writer, *arguments)

    original = ShardWriter.add
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"No space left.*run it again"):
        patch.setattr(ShardWriter, "add", add)
        convert(photos, tmp_path / "x.beton", on_error="skip", progress=False)
    assert convert(photos, tmp_path / "x.beton", on_error="skip", progress=False).kept == 50


def test_a_disk_full_from_the_start_is_left_as_it_was(photos: ImageFolder, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            convert(photos, tmp_path / "x.beton", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())


def test_a_shard_that_another_process_finished_just_now_is_kept(
    photos: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: Callable[..., Path]
) -> None:
    """And so is what an earlier run left of this one."""
    shard = killed(tmp_path / "x.beton", 50)

    def locked(journal: Path, shard: Path) -> object:
        shard.write_bytes(b"another process's")
        return original(journal, shard)

    original = unfinished_module._locked
    with monkeypatch.context() as patch, pytest.raises(UserError, match="exists already: --overwrite"):
        patch.setattr(unfinished_module, "_locked", locked)
        convert(photos, shard, quality=50, on_error="skip", progress=False)
    assert shard.read_bytes() == b"another process's"
    assert convert(photos, shard, on_error="skip", overwrite=True, progress=False).kept == 50


def test_two_at_once_do_not_write_the_same_shard(photos: ImageFolder, tmp_path: Path) -> None:
    with (
        unfinished(tmp_path / "x.beton"),
        pytest.raises(UserError, match="another process is writing it"),
    ):
        convert(photos, tmp_path / "x.beton", on_error="skip", progress=False)
    assert not list(tmp_path.iterdir())
    convert(photos, tmp_path / "x.beton", on_error="skip", progress=False)


def test_an_interrupted_check_loses_nothing(
    photos: ImageFolder, tmp_path: Path, killed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it looks at what an earlier run left, before it believes the first image."""
    shard = killed(tmp_path / "x.beton", 150)

    def checksum(*_: object) -> int:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("penstock.loaders.unfinished.checksum", checksum)
        convert(photos, shard, on_error="skip", progress=False)
    assert convert(photos, shard, on_error="skip", progress=False).kept == 150


def test_nothing_appears_before_all_is_written(
    photos: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(writer: ShardWriter) -> dict[str, int | str]:
        original(writer)
        raise Killed

    writer = convert_module.WRITERS[".beton"]
    original = writer.finish
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(writer, "finish", finish)
        convert(photos, tmp_path / "x.beton", on_error="skip", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.beton.journal", ".x.beton.partial"]
    whole = convert(photos, tmp_path / "whole.beton", on_error="skip", progress=False)
    report = convert(photos, tmp_path / "x.beton", on_error="skip", progress=False)
    assert report.kept == COUNT - 1 and content(report.path) == content(whole.path)


def opened(shard: Path) -> tuple[str, tuple[str, ...], list[int]]:
    """What a shard says it holds, every image read against its checksum."""
    source = open_shard(shard)
    for i in range(len(source)):
        source.decode(i)
    return source.name, source.classes, source.labels.tolist()


@pytest.mark.parametrize(("suffix", "count"), [(".beton", 6), (".beton", 5), (".tar", 5)])
def test_an_overwrite_killed_at_any_point_leaves_the_old_the_new_or_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, count: int
) -> None:
    """Killed before each step by which a file comes or goes; run again, it is the new one.

    Of as many images, the new .beton has the old one's length and header: only the tables tell them apart.
    """
    images = np.random.default_rng(0).integers(0, 256, (6, 10, 14, 3), np.uint8)
    old = ImageArrays(images, [0, 1] * 3, ["cat", "dog"], "old")
    new = ImageArrays(images[:count], ([1, 2] * 3)[:count], ["ant", "bee", "cow"], "new")
    whole = [(each.name, each.classes, each.labels.tolist()) for each in (old, new)]
    found = []
    for step in range(100):
        shard = tmp_path / str(step) / f"x{suffix}"
        convert(old, shard, progress=False)
        with monkeypatch.context() as patch:
            killed_at(patch, step)
            try:
                convert(new, shard, overwrite=True, progress=False)
                finished = True
            except Killed:
                finished = False
        try:
            content = opened(shard)
            assert content in whole
            found.append(content[0])
        except UserError as error:
            assert "run it again with --overwrite" in str(error)
            found.append("a word")
        if finished:
            break
        convert(new, shard, overwrite=True, progress=False)
        assert opened(shard)[0] == "new"
        assert not [path for path in shard.parent.iterdir() if path.name.startswith(".")]
    assert list(dict.fromkeys(found)) == ["old", "a word", "new"]


def killed_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Die before the step-th time that a file is renamed, removed or synchronised, and do nothing of the kind after."""
    steps = itertools.count()

    def dying(original: Callable[..., None]) -> Callable[..., None]:
        def stand_in(*arguments: object, **options: object) -> None:
            if next(steps) >= step:
                raise Killed
            original(*arguments, **options)

        return stand_in

    for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "fsync")):
        patch.setattr(owner, name, dying(getattr(owner, name)))


def test_a_real_kill(photos: ImageFolder, tmp_path: Path) -> None:
    """SIGKILL, by the command that users type; the second run says what it goes on from."""
    shard = tmp_path / "x.beton"
    command = [sys.executable, str(ROOT / "loaders" / "convert.py"), str(photos.root), str(shard)]
    command += ["--on-error", "skip", "--encoding", "raw", "--workers", "1"]
    slow = [sys.executable, "-c", SLOWLY, str(ROOT), *command[2:]]
    process = subprocess.Popen(slow, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not journal(shard).exists() or journal(shard).read_bytes().count(b"\n") < 20:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not shard.exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd="/")
    assert done.returncode == 0, done.stderr
    assert re.search(r"going on from \d+ images that an interrupted run left whole", done.stderr)
    assert "of them done before" in done.stdout
    whole = convert(photos, tmp_path / "whole.beton", encoding="raw", on_error="skip", progress=False)
    assert content(shard) == content(whole.path)


SLOWLY = """
import sys, time
sys.path[:0] = [sys.argv.pop(1)]
from penstock.loaders import convert
from penstock.loaders.shard import ShardWriter
add = ShardWriter.add
ShardWriter.add = lambda *arguments: (time.sleep(0.01), add(*arguments))
convert.main(sys.argv[1:])
"""
