"""Conversion: what is passed through, encoded anew, shrunk, skipped; the same bytes each time; whole files or none."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from penstock.errors import UserError
from penstock.loaders import convert as convert_module
from penstock.loaders import jpeg_check
from penstock.loaders.beton import PAGE_SIZE, BetonSource
from penstock.loaders.convert import convert, main
from penstock.loaders.decode import decode_rgb, encode_jpeg
from penstock.loaders.formats import open_shard
from penstock.loaders.sidecar import sidecar_path
from penstock.loaders.sources.arrays import ImageArrays
from penstock.loaders.sources.folder import ImageFolder
from penstock.loaders.webdataset import WebDatasetSource
from tests.small_betons import smooth

ROOT = Path(__file__).resolve().parents[1]


def save(path: Path, image: Image.Image, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty plain JPEGs of several sizes in two classes."""
    for i in range(20):
        path = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(smooth(40 + 3 * i, 90 - i, i), 90))
    return tmp_path / "photos"


@pytest.fixture
def broken(photos: Path) -> Path:
    """The same with a text under a JPEG's name and a JPEG cut short."""
    (photos / "cat" / "04.jpg").write_text("no image")
    whole = (photos / "dog" / "05.jpg").read_bytes()
    (photos / "dog" / "05.jpg").write_bytes(whole[: len(whole) // 2])
    return photos


def folder(path: Path) -> ImageFolder:
    return ImageFolder(path, name="photos")


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.mark.parametrize("suffix", ["beton", "tar"])
def test_plain_jpegs_pass_through_untouched(photos: Path, tmp_path: Path, suffix: str) -> None:
    source = folder(photos)
    report = convert(source, tmp_path / f"x.{suffix}", progress=False)
    shard = BetonSource(report.path) if suffix == "beton" else WebDatasetSource(report.path)
    assert (report.samples, report.untouched, report.reencoded) == (20, 20, {})
    assert (shard.classes, shard.labels.tolist()) == (("cat", "dog"), source.labels.tolist())
    assert [shard.encoded(i) for i in range(20)] == [source.path(i).read_bytes() for i in range(20)]
    assert shard.sidecar is not None and shard.sidecar.provenance.fingerprint == source.fingerprint()


def test_what_decoders_read_differently_is_encoded_anew_and_counted(tmp_path: Path) -> None:
    image = Image.fromarray(smooth(40, 60, 0))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    save(tmp_path / "set" / "a.jpg", image, exif=rotated)
    save(tmp_path / "set" / "b.jpg", image.convert("CMYK"))
    save(tmp_path / "set" / "c.png", image)
    save(tmp_path / "set" / "d.jpg", image)
    (tmp_path / "set" / "e.jpg").write_bytes((tmp_path / "set" / "d.jpg").read_bytes() + b"a camera's own trailer")
    save(tmp_path / "set" / "f.jpg", image.convert("L"))
    (tmp_path / "set" / "c.png").rename(tmp_path / "set" / "c.jpg")  # a PNG under a JPEG's name
    source = folder(tmp_path / "set")
    report = convert(source, tmp_path / "x.beton", quality=95, progress=False)
    assert report.untouched == 2  # d, and f, which is grey
    assert report.reencoded == {"bytes after its end": 1, "not JPEG": 1, "not a plain upright JPEG": 2}
    shard = BetonSource(report.path)
    assert shard.images["mode"].tolist() == [0, 0, 1, 0, 0, 0]
    assert shard.decode(0).shape == (60, 40, 3)  # upright
    for i in range(6):
        assert np.abs(shard.decode(i).astype(int) - source.decode(i)).mean() < (3 if i in (0, 1, 4) else 1e-9)


@pytest.mark.parametrize("suffix", ["beton", "tar"])
def test_arrays_are_kept_losslessly(tmp_path: Path, suffix: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), np.uint8)
    report = convert(ImageArrays(images, [-1] * 30, [], "noise"), tmp_path / f"x.{suffix}", progress=False)
    shard = BetonSource(report.path) if suffix == "beton" else WebDatasetSource(report.path)
    assert shard.classes == () and shard.labels.tolist() == [-1] * 30
    for i in range(30):
        np.testing.assert_array_equal(shard.decode(i), images[i])


def test_limits_on_the_sides(photos: Path, tmp_path: Path) -> None:
    source = folder(photos)
    longest = convert(source, tmp_path / "max.beton", max_side=64, progress=False)
    sizes = np.array([BetonSource(longest.path).decode(i).shape[:2] for i in range(20)])
    assert (sizes.max(axis=1) == 64).all() and longest.untouched == 0
    convert(source, tmp_path / "short.beton", short_side=60, encoding="raw", progress=False)
    shard = BetonSource(tmp_path / "short.beton")
    assert shard.storage == "raw"
    for i in range(20):
        height, width = source.decode(i).shape[:2]
        expected = (60 / min(height, width)) if min(height, width) > 60 else 1  # never enlarged
        assert shard.decode(i).shape == (round(height * expected), round(width * expected), 3)
    larger = convert(source, tmp_path / "larger.beton", max_side=500, short_side=500, progress=False)
    assert larger.untouched == 20  # nothing is enlarged
    partly = convert(source, tmp_path / "part.beton", max_side=85, progress=False)
    assert 0 < partly.untouched < 20 and partly.reencoded == {"resized": 20 - partly.untouched}


def test_shrinking_averages_and_does_not_alias(tmp_path: Path) -> None:
    """One-pixel stripes become grey; nearest or plain bilinear sampling would keep black and white."""
    stripes = np.zeros((1, 120, 120, 3), np.uint8)
    stripes[:, :, ::2] = 255
    report = convert(ImageArrays(stripes, [0], ["s"], "s"), tmp_path / "s.beton", max_side=30, progress=False)
    inner = BetonSource(report.path).decode(0)[:, 2:-2].astype(int)
    assert np.abs(inner - 127).max() <= 6


def test_encoding_jpeg_encodes_all(photos: Path, tmp_path: Path) -> None:
    low = convert(folder(photos), tmp_path / "low.beton", encoding="jpeg", quality=20, progress=False)
    assert low.reencoded == {"as asked": 20} and BetonSource(low.path).storage == "jpeg"
    high = convert(folder(photos), tmp_path / "high.beton", encoding="jpeg", quality=95, progress=False)
    lengths = [BetonSource(report.path).lengths.sum() for report in (low, high)]
    assert 1.5 * lengths[0] < lengths[1]


def test_what_is_larger_than_a_page_becomes_jpeg(tmp_path: Path) -> None:
    images = np.zeros((1, 1700, 1700, 3), np.uint8)
    assert images.nbytes > PAGE_SIZE
    source = ImageArrays(images, [0], ["black"], "big")
    for encoding in ("keep", "raw"):
        report = convert(source, tmp_path / f"{encoding}.beton", encoding=encoding, progress=False)
        assert report.reencoded == {"larger than a page": 1} and BetonSource(report.path).storage == "jpeg"
    smaller = convert(source, tmp_path / "small.beton", encoding="raw", max_side=1672, progress=False)
    assert BetonSource(smaller.path).storage == "raw"


@pytest.mark.parametrize("suffix", ["beton", "tar"])
def test_names_that_are_no_utf8(tmp_path: Path, suffix: str) -> None:
    """As the file system may have them: a shard of such a set, and a shard of the shard."""
    place = tmp_path / "photos" / os.fsdecode(b"caf\xe9")
    save(place / "0.png", Image.fromarray(smooth(20, 30, 0)))
    first = convert(folder(tmp_path / "photos"), tmp_path / f"x.{suffix}", progress=False).path
    for other in ("beton", "tar"):
        second = convert(open_shard(first), tmp_path / f"y.{other}", progress=False).path
        assert open_shard(second).classes == (place.name,)


@pytest.mark.parametrize("suffix", ["beton", "tar"])
def test_the_same_bytes_whatever_the_number_of_workers(broken: Path, tmp_path: Path, suffix: str) -> None:
    written = []
    for workers in (1, 2, 7):
        path = tmp_path / str(workers) / f"x.{suffix}"
        convert(folder(broken), path, workers=workers, max_side=70, on_error="skip", progress=False)
        written.append([file.read_bytes() for file in sorted(path.parent.iterdir()) if file.suffix != ".json"])
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("suffix", ["beton", "tar"])
def test_a_broken_image_stops_and_leaves_no_shard(
    broken: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"04\.jpg.*leave such images out with --on-error skip$"):
        convert(folder(broken), out / f"x.{suffix}")
    assert "goes on from there" not in capsys.readouterr().err  # it would stop at the same image again
    assert names(out) == [f".x.{suffix}.journal", f".x.{suffix}.partial"]  # two images, to go on from
    first = sorted(broken.rglob("*.jpg"))[0]
    first.write_text("no image either")
    with pytest.raises(UserError, match=first.name):
        convert(folder(broken), out / f"x.{suffix}", progress=False)
    assert names(out) == []


@pytest.mark.parametrize("suffix", ["beton", "tar"])
def test_skipped_images_are_counted_and_listed(broken: Path, tmp_path: Path, suffix: str) -> None:
    report = convert(folder(broken), tmp_path / f"x.{suffix}", on_error="skip", progress=False)
    shard = BetonSource(report.path) if suffix == "beton" else WebDatasetSource(report.path)
    assert len(shard) == report.samples == 18
    listed = json.loads(sidecar_path(report.path).read_text())["provenance"]
    assert [Path(skipped["location"]).name for skipped in listed["skipped"]] == ["04.jpg", "05.jpg"]
    assert listed["source_samples"] == 20 and all(skipped["reason"] for skipped in listed["skipped"])
    source = folder(broken)
    kept = [i for i in range(20) if source.path(i).name not in ("04.jpg", "05.jpg")]
    assert shard.labels.tolist() == source.labels[kept].tolist()
    assert [shard.encoded(i) for i in range(18)] == [source.encoded(i) for i in kept]


def test_a_scan_cut_short_under_a_whole_end_is_found_by_decoding(photos: Path, tmp_path: Path) -> None:
    """On conversion with `check="decode"`, else when it is read: named either way, never grey pixels in silence."""
    victim = sorted(photos.rglob("*.jpg"))[0]
    data = victim.read_bytes()
    victim.write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    with pytest.raises(UserError, match=f"{victim.name}: cannot decode this image"):
        convert(folder(photos), tmp_path / "x.beton", check="decode", progress=False)
    assert not (tmp_path / "x.beton").exists()
    convert(folder(photos), tmp_path / "x.beton", progress=False)
    with pytest.raises(UserError, match=r"x\.beton\[0\]: cannot decode this image"):
        BetonSource(tmp_path / "x.beton").decode(0)


def damaged(jpeg: bytes, kind: str) -> bytes:
    half = len(jpeg) // 2
    return {
        "cut short": jpeg[:half],
        "cut by a byte": jpeg[:-1],
        "another one after a cut": jpeg[:half] + jpeg,
        "a hole": jpeg[: half - 300] + bytes(600) + jpeg[half + 300 :],
    }[kind]


@pytest.mark.parametrize("kind", ["cut short", "cut by a byte", "another one after a cut", "a hole"])
def test_a_quick_check_hands_what_is_odd_to_the_decoder(tmp_path: Path, kind: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    whole = encode_jpeg(image, 90)
    assert jpeg_check.looks_whole(whole)
    for options in ({"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 2}, {"comment": b"\xff\xd9"}):
        data = io.BytesIO()
        Image.fromarray(image).save(data, "JPEG", **options)
        assert jpeg_check.looks_whole(data.getvalue()), options
    assert not jpeg_check.looks_whole(damaged(whole, kind))
    assert not jpeg_check.looks_whole(whole[:-1] + b"\xe0")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(damaged(whole, kind))
    try:
        report = convert(folder(tmp_path / "set"), tmp_path / "x.beton", progress=False)
    except UserError:
        return
    assert report.untouched == 0 or kind == "a hole"  # the decoder may live with it


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xe0\xff", b"\xff" * 100, bytes(100)]
)
def test_a_stub_of_a_jpeg_does_not_look_whole(data: bytes) -> None:
    assert not jpeg_check.looks_whole(data)


def test_a_set_without_one_whole_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of its images \(1\) can be decoded"):
        convert(folder(tmp_path / "set"), tmp_path / "out" / "x.beton", on_error="skip", progress=False)
    assert names(tmp_path / "out") == []


def test_an_existing_shard_is_only_replaced_when_asked_for(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    convert(folder(photos), path, progress=False)
    before = path.read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        convert(folder(photos), path, encoding="raw", progress=False)
    assert path.read_bytes() == before
    convert(BetonSource(path), path, encoding="raw", overwrite=True, progress=False)  # from itself, even
    assert BetonSource(path).storage == "raw"


def test_a_failure_in_the_middle_keeps_the_old_shard(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out" / "x.beton"
    convert(folder(photos), path, progress=False)
    before, files = path.read_bytes(), names(tmp_path / "out")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(convert_module, "beside", interrupted)
        convert(folder(photos), path, encoding="raw", overwrite=True, progress=False)
    assert path.read_bytes() == before and len(BetonSource(path)) == 20
    convert(folder(photos), path, encoding="raw", overwrite=True, progress=False)
    assert names(tmp_path / "out") == files and BetonSource(path).storage == "raw"


def test_work_runs_only_a_bounded_way_ahead_of_the_writer(tmp_path: Path) -> None:
    """Memory stays flat when the disk is slower than the encoder."""

    class Counting(ImageArrays):
        decoded = 0

        def decode(self, index: int) -> NDArray[np.uint8]:
            self.decoded += 1
            return super().decode(index)

    images = np.zeros((2000, 4, 4, 3), np.uint8)
    source = Counting(images, [0] * 2000, ["a"], "many")
    encoded = convert_module.encode_all(source, convert_module.Encoding(), PAGE_SIZE, workers=2)
    next(encoded)
    time.sleep(0.2)
    assert source.decoded <= 2 * 2 * 8 + 8
    encoded.close()


def test_the_report_has_the_rate_that_the_bar_ended_with(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images that this run has written: neither of the two broken ones, nor of those done before."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    report = convert(folder(broken), tmp_path / "x.beton", on_error="skip")
    assert re.findall(r"(\d+) images/s", capsys.readouterr().err)[-1] == f"{18 / report.seconds:.0f}"
    assert f"18 images in {report.seconds:.1f} s, {18 / report.seconds:.0f} images/s, " in str(report)
    assert "18 images, 8 of them done before, in 5.0 s, 2 images/s, " in str(replace(report, kept=8, seconds=5.0))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"encoding": "webp"}, "--encoding 'webp'"),
        ({"quality": 0}, "--quality 0"),
        ({"max_side": 0}, "--max-side 0"),
        ({"short_side": -1}, "--short-side -1"),
        ({"check": "no"}, "--check 'no'"),
        ({"part": "0/3"}, "--part '0/3'"),
        ({"part": "4/3"}, "--part '4/3'"),
        ({"part": "half"}, "--part 'half'"),
        ({"part": "1/21"}, "--part 1/21: the source has 20 images"),
        ({"on_error": "ignore"}, "--on-error 'ignore'"),
        ({"workers": 0}, "--workers 0: at least one"),
        ({"workers": -1}, "--workers -1: at least one"),
        ({"format": "zip"}, "--format 'zip'"),
        ({"format": "webdataset"}, "give it such a name"),
    ],
)
def test_wrong_options(photos: Path, tmp_path: Path, options: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        convert(folder(photos), tmp_path / "x.beton", progress=False, **options)


def test_the_format_gives_the_suffix(photos: Path, tmp_path: Path) -> None:
    assert convert(folder(photos), tmp_path / "x", format="beton", progress=False).path == tmp_path / "x.beton"
    with pytest.raises(UserError, match=r"NAME\.beton"):
        convert(folder(photos), tmp_path / "x", progress=False)


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The command, by path and from another folder, as users type it."""
    command = [sys.executable, str(ROOT / "loaders" / "convert.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd="/", **options)


def test_the_command_converts_and_a_broken_image_is_exit_code_2(broken: Path, tmp_path: Path) -> None:
    stopped = run(broken, tmp_path / "x.beton")
    assert stopped.returncode == 2
    assert [line for line in stopped.stderr.splitlines() if "penstock:" in line and "04.jpg" in line]
    assert "Traceback" not in stopped.stderr and not (tmp_path / "x.beton").exists()
    done = run(broken, tmp_path / "x.beton", "--on-error", "skip", "--limit", 20)
    assert done.returncode == 0, done.stderr
    assert "18 images" in done.stdout and "2 broken ones skipped" in done.stdout and "05.jpg" in done.stdout


@pytest.mark.parametrize("suffix", ["beton", "tar"])
def test_inspect_says_what_a_shard_holds(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    convert(folder(photos), path, max_side=64, quality=77, progress=False)
    assert main(["--inspect", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "20,",
        "cat, dog",
        "max 64 px",
        "quality 77",
        "max_side 64",
        "20 encoded anew (resized)",
        "as written",
    ):
        assert words in shown
    sidecar_path(path).unlink()
    main(["--inspect", str(path)])
    assert "unknown: there is no" in capsys.readouterr().out


def test_brackets_in_names_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "photos" / "[red]cat" / "0.png", Image.fromarray(smooth(20, 30, 0)))
    convert(folder(tmp_path / "photos"), tmp_path / "[old].beton")
    assert "[old].beton" in capsys.readouterr().err
    assert main(["--inspect", str(tmp_path / "[old].beton")]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "[old].beton" in shown and "[red]cat" in shown


def test_inspect_sees_a_changed_label(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.beton"
    convert(folder(photos), path, progress=False)
    label = BetonSource(path)._rows[0].dtype.fields["label"][1] + len(BetonSource(path)._front)
    with open(path, "r+b") as file:
        file.seek(label)
        file.write(b"\1")
    main(["--inspect", str(path)])
    assert "CHANGED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "SRC DST"),
        (["src"], "SRC DST"),
        (["--join", "x.beton", "src"], "--join takes a file and --overwrite only: leave SRC out"),
        (["--join", "x.beton", "--quality", "50", "--part", "1/2"], "leave --part, --quality out"),
        (["--verify", "x.beton", "--overwrite"], "--verify takes a file and --workers only: leave --overwrite out"),
        (["--inspect", "x.beton", "--workers", "2"], "--inspect takes a file only: leave --workers out"),
        (["--verify", "x.beton", "--join", "x.beton"], "leave --verify out"),
    ],
)
def test_options_that_do_not_go_together_are_one_clear_line(arguments: list[str], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as error:
        main(arguments)
    assert "\n" not in str(error.value)


def test_ctrl_c_leaves_no_shard_but_what_to_go_on_from(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1400, 1400, 3), np.uint8)
    (tmp_path / "set").mkdir()
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "JPEG", quality=95)
    for i in range(200):
        (tmp_path / "set" / f"{i:03d}.jpg").write_bytes(data.getvalue())
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, str(ROOT / "loaders" / "convert.py"), str(tmp_path / "set"), str(out / "x.tar")]
    # A shell starts what it puts in the background with this signal ignored, and that is inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([*command, "--encoding", "jpeg"], stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    wait_until(lambda: (out / ".x.tar.journal").exists() and (out / ".x.tar.journal").read_bytes().count(b"\n") > 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "penstock: interrupted" in errors and "Traceback" not in errors
    assert "the same command goes on from there" in errors
    assert names(out) == [".x.tar.journal", ".x.tar.partial"]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not start in time"
        time.sleep(0.01)


def test_pixels_pass_through_the_one_decoder(photos: Path, tmp_path: Path) -> None:
    """RAW holds what `decode_rgb` gives."""
    convert(folder(photos), tmp_path / "x.beton", encoding="raw", progress=False)
    shard, source = BetonSource(tmp_path / "x.beton"), folder(photos)
    for i in range(20):
        np.testing.assert_array_equal(shard.decode(i), decode_rgb(source.encoded(i), "image"))
