"""--verify: names what is broken, in data, tables or before the conversion; the exit code tells."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import UserError
from penstock.loaders.convert import convert, main
from penstock.loaders.decode import encode_jpeg
from penstock.loaders.formats import open_shard
from penstock.loaders.sidecar import sidecar_path
from penstock.loaders.sources.folder import ImageFolder
from penstock.loaders.verify import verify
from penstock.loaders.webdataset import BLOCK, index_path

both_formats = pytest.mark.parametrize("suffix", [".beton", ".tar"])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(30):
        path = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(rng.integers(0, 256, (20, 30 + i, 3), np.uint8), 90))
    return tmp_path / "photos"


@pytest.fixture
def shard(photos: Path, tmp_path: Path, suffix: str) -> Path:
    return convert(ImageFolder(photos, name="photos"), tmp_path / f"x{suffix}", progress=False).path


def change(shard: Path, index: int, *, at: int, to: bytes) -> None:
    """Overwrite bytes of an image, counted from its start (or its end)."""
    opened = open_shard(shard)
    start = opened.start(index) + (at if at >= 0 else int(opened.lengths[index]) + at)
    with open(shard, "r+b") as file:
        file.seek(start)
        file.write(to)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main(["--verify", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out + " ".join(printed.err.split())


@both_formats
def test_a_whole_shard(shard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = run(capsys, shard, "--workers", 3)
    assert code == 0 and "30 of 30 images are whole" in printed


@both_formats
def test_broken_images_are_named(shard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(shard, 4, at=-100, to=b"\x55")  # decodes, to other pixels
    change(shard, 17, at=0, to=b"no image at all")
    code, printed = run(capsys, shard)
    assert code == 2 and "28 of 30 images are whole" in printed
    assert f"x{shard.suffix}[4]" in printed and f"x{shard.suffix}[17]" in printed and "[5]" not in printed


@both_formats
def test_what_was_damaged_before_the_conversion_is_found_by_decoding(photos: Path, tmp_path: Path, suffix: str) -> None:
    victim = sorted(photos.rglob("*.jpg"))[3]
    data = victim.read_bytes()
    victim.write_bytes(data[: len(data) * 3 // 4] + b"\xff\xd9")
    lies = sorted(photos.rglob("*.jpg"))[8]
    lie = bytearray(lies.read_bytes())
    height = lie.index(b"\xff\xc0") + 5
    lie[height : height + 2] = (2000).to_bytes(2, "big")
    lies.write_bytes(lie)
    report = convert(ImageFolder(photos, name="photos"), tmp_path / f"x{suffix}", progress=False)
    broken = verify(open_shard(report.path), workers=2, progress=False)
    assert [error.location for error in broken] == [f"{report.path}[3]", f"{report.path}[8]"]
    assert all("damaged JPEG" in error.reason for error in broken)


@pytest.mark.parametrize("suffix", [".beton"])
def test_changed_tables(shard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = len(open_shard(shard)._front)
    with open(shard, "r+b") as file:
        file.seek(row + 16)  # the first image's label
        file.write(b"\1")
    code, printed = run(capsys, shard)
    assert code == 2 and "29 of 30" in printed and "its tables CHANGED" in printed


@both_formats
def test_without_a_sidecar(shard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checksums are in the shard itself."""
    sidecar_path(shard).unlink()
    assert run(capsys, shard)[0] == 0
    change(shard, 9, at=-50, to=b"\x55")
    code, printed = run(capsys, shard)
    assert code == 2 and "29 of 30" in printed and "[9]" in printed


@pytest.mark.parametrize("suffix", [".tar"])
@pytest.mark.parametrize("mode", ["--verify", "--inspect"])
def test_looking_at_a_tar_leaves_nothing_beside_it(shard: Path, mode: str) -> None:
    sidecar_path(shard).unlink()
    index_path(shard).unlink()
    before = sorted(shard.parent.iterdir())
    assert main([mode, str(shard)]) == 0
    assert sorted(shard.parent.iterdir()) == before


@pytest.mark.parametrize("suffix", [".tar"])
def test_a_tar_cut_between_two_images_is_not_whole(shard: Path) -> None:
    """With neither index nor sidecar to tell."""
    opened = open_shard(shard)
    end = opened.start(15) - BLOCK
    sidecar_path(shard).unlink()
    index_path(shard).unlink()
    os.truncate(shard, end)
    before = sorted(shard.parent.iterdir())
    with pytest.raises(UserError, match="cut short or damaged"):
        main(["--verify", str(shard)])
    assert sorted(shard.parent.iterdir()) == before


@pytest.mark.parametrize("workers", ["0", "-2"])
def test_no_workers_is_one_clear_line(photos: Path, workers: str) -> None:
    with pytest.raises(UserError, match=f"--workers {workers}: at least one"):
        main(["--verify", str(photos), "--workers", workers])


def test_a_folder_can_be_verified_too(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = sorted(photos.rglob("*.jpg"))[3]
    victim.write_bytes(victim.read_bytes()[:200])
    code, printed = run(capsys, photos)
    assert code == 2 and "29 of 30" in printed and victim.name in printed
