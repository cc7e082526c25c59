"""Shards with random damage, anywhere: the right pixels, or a UserError that names the file. Nothing else, ever.

    python -m tests.test_damaged_shards 5000    # so many cases of each kind, where the test has fewer

No crash (which a read outside of the file would be), no other exception, no gigabytes of memory. Without checksums the
pixels may be others.
"""

from __future__ import annotations

import resource
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import BrokenImage, UserError
from penstock.loaders import beton
from penstock.loaders.convert import convert
from penstock.loaders.decode import encode_png
from penstock.loaders.formats import open_shard
from penstock.loaders.memory import Room
from penstock.loaders.sidecar import sidecar_path
from penstock.loaders.sources.arrays import ImageArrays
from penstock.loaders.sources.folder import ImageFolder
from penstock.loaders.webdataset import index_path, make_index
from tests.broken_images import good, photo

COUNT, CASES = 6, 120
PAGE = 1 << 14  # instead of 8 MiB, so that chance hits the images
MOST_MEMORY = 2 << 30  # bytes of addresses that a case may ask for beyond what the process has
KINDS = ("mixed.beton", "raw.beton", "bare.beton", "foreign.beton", "mixed.tar", "bare.tar", "foreign.tar")
Content = list[tuple[int, bytes] | None]  # label and pixels of each image, None for a broken one


def make_shard(folder: Path, kind: str) -> Path:
    """One of `KINDS`: `bare` has no sidecar, `foreign` no checksums either."""
    for i in range(COUNT):
        path = folder / "images" / "ab"[i % 2] / (f"{i}.jpg" if i < COUNT - 2 else f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(good(i) if path.suffix == ".jpg" else encode_png(photo(i)))
    what, shard = Path(kind).stem, folder / f"x{Path(kind).suffix}"
    arrays = ImageArrays(np.stack([photo(0)] * COUNT), np.arange(COUNT) % 2, ("a", "b"), "set")
    convert(arrays if what == "raw" else ImageFolder(folder / "images", name="set"), shard, progress=False)
    if what in ("bare", "foreign"):
        sidecar_path(shard).unlink()
    if kind == "foreign.beton":
        shard.write_bytes(shard.read_bytes().replace(beton.CHECKSUM_RULE, bytes(len(beton.CHECKSUM_RULE)), 1))
    elif kind == "foreign.tar":
        without_owners(shard)
    return shard


def without_owners(tar: Path) -> None:
    """Write it anew, as others would: there is no checksum in the place of the owner's name."""
    with tarfile.open(tar) as old:
        files = [(member.name, old.extractfile(member)) for member in old]
        contents = [(name, file.read()) for name, file in files if file]
    with tarfile.open(tar, "w") as new:
        for name, data in contents:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            with tempfile.TemporaryFile() as file:
                file.write(data)
                file.seek(0)
                new.addfile(member, file)
    index_path(tar).write_bytes(make_index(tar))


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, at one place or a few; or cut, or with more at the end."""
    out, place, length = bytearray(data), int(rng.integers(len(data))), int(rng.integers(1, 40))
    match rng.choice(
        ["bits", "bytes", "zeros", "ones", "moved", "digits", "cut", "longer"],
        p=[0.4] + 3 * [0.1] + [0.1, 0.1, 0.05, 0.05],
    ):
        case "bits":
            for place in rng.integers(len(data), size=rng.integers(1, 4)).tolist():
                out[place] ^= 1 << int(rng.integers(8))
        case "bytes":
            out[place : place + length] = rng.bytes(len(out[place : place + length]))
        case "zeros":
            out[place : place + length] = bytes(len(out[place : place + length]))
        case "ones":
            out[place : place + length] = b"\xff" * len(out[place : place + length])
        case "moved":
            length = min(length, len(data) - place)
            other = int(rng.integers(len(data) - length + 1))
            out[other : other + length] = data[place : place + length]
        case "digits":
            places = [p for p in range(len(out)) if 48 <= out[p] < 58]
            for place in rng.choice(places, 2).tolist() if places else []:
                out[place] = 48 + int(rng.integers(10))
        case "cut":
            del out[place:]
        case "longer":
            out += rng.bytes(length)
    return bytes(out)


def contents(shard: Path) -> Content:
    with closing(open_shard(shard, keep_index=False)) as source:
        return [content(source, i) for i in range(len(source))]


def content(source, i):
    try:
        ((_, pixels),) = source.fetch(np.array([i])).portions(Room())
        return int(source.labels[i]), pixels.image(0).tobytes()
    except BrokenImage as error:
        assert error.location == source.location(i)
        return None


@contextmanager
def little_memory() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def run(folder: Path, kind: str, cases: int, seed: int = 0) -> tuple[int, int, int]:
    """Damage a shard in so many ways. Returns how often it was refused, had broken images, and was as before."""
    shard = make_shard(folder, kind)
    expected = contents(shard)
    files = [path for path in (shard, shard, index_path(shard), sidecar_path(shard)) if path.exists()]
    whole = {path: path.read_bytes() for path in files}
    refused = broken = same = 0
    for case in range(cases):
        rng = np.random.default_rng([seed, case])
        path = files[rng.integers(len(files))]
        path.write_bytes(damaged(whole[path], rng))
        try:
            with little_memory():
                found = contents(shard)
        except UserError as error:
            assert str(shard.with_suffix("")) in str(error) and "\n" not in str(error), case
            refused += 1
        else:
            assert kind.startswith("foreign") or all(f in (None, e) for f, e in zip(found, expected, strict=True)), case
            broken += None in found
            same += found == expected
        path.write_bytes(whole[path])
    return refused, broken, same


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_and_harmless(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beton, "PAGE_SIZE", PAGE)
    refused, broken, same = run(tmp_path, kind, CASES)
    assert min(refused, same) > 2 and (broken > 2 or kind == "foreign.tar")  # else the damage tells nothing


if __name__ == "__main__":
    beton.PAGE_SIZE = PAGE
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            print(kind, run(Path(folder), kind, int(sys.argv[1]), seed=1))
