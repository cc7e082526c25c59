"""Sources by name and by path: what is found, in which order, and what is said when it cannot be."""

from __future__ import annotations

import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from penstock.errors import BrokenImage, UserError
from penstock.files import cache_folder
from penstock.loaders.convert import convert
from penstock.loaders.sources import ImageArrays, ImageFolder, open_source, validation_source
from penstock.loaders.sources.cifar import BATCHES, LABELS, META, SUBFOLDER


def write_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (7, 5), (value, value, value)).save(path, "PNG")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Class folders whose names sort differently by case and by depth, hidden files and things that are no images."""
    root = tmp_path / "set"
    names = [
        "b/2.png",
        "b/10.PNG",
        "b/deeper/1.jpg",
        "b-side/x.webp",
        "A/z.jpeg",
        "c/a/x/1.bmp",
        "c/a-b/1.tif",
        "c/9.pgm",
    ]
    for value, name in enumerate(names):
        write_image(root / name, value)
    (root / "b" / "notes.txt").write_text("no image")
    return root


def values(source: ImageFolder) -> list[int]:
    return [int(source.decode(index)[0, 0, 0]) for index in range(len(source))]


def test_order_and_labels_are_torchvisions(tree: Path) -> None:
    ours, theirs = ImageFolder(tree, name="set"), TorchvisionFolder(tree)
    assert list(ours.classes) == theirs.classes == ["A", "b", "b-side", "c"]
    assert [(str(ours.path(i)), label) for i, label in enumerate(ours.labels)] == theirs.samples
    assert values(ours) == [np.asarray(image)[0, 0, 0] for image, _ in theirs]
    assert ours.storage == "files" and ours.labels.dtype == np.int64


def test_hidden_files_and_folders_do_not_count(tree: Path) -> None:
    before = ImageFolder(tree, name="set").fingerprint()
    write_image(tree / "b" / "._2.png")
    write_image(tree / ".ipynb_checkpoints" / "1.png")
    assert ImageFolder(tree, name="set").fingerprint() == before


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    for value, name in enumerate(["10.png", "2.png", "é.png"]):
        write_image(tmp_path / name, value)
    (tmp_path / "meta").mkdir()
    source = open_source(str(tmp_path))
    assert source.classes == () and source.labels.tolist() == [-1, -1, -1] and values(source) == [0, 1, 2]
    assert validation_source(str(tmp_path)) is None


def test_a_fingerprint_follows_names_sizes_and_times(tree: Path) -> None:
    seen = {ImageFolder(tree, name="set").fingerprint()}
    (tree / "b" / "2.png").rename(tree / "b" / "3.png")
    seen.add(ImageFolder(tree, name="set").fingerprint())
    with (tree / "b" / "3.png").open("ab") as file:
        file.write(b"x")
    seen.add(ImageFolder(tree, name="set").fingerprint())
    os.utime(tree / "b" / "3.png", ns=(1, 1))
    seen.add(ImageFolder(tree, name="set").fingerprint())
    seen.add(ImageFolder(tree, name="set", class_list=["b"]).fingerprint())
    assert len(seen) == 5
    assert ImageFolder(tree, name="other").fingerprint() in seen


def test_a_class_list_cuts_a_set_out(tree: Path, tmp_path: Path) -> None:
    names = tmp_path / "two.txt"
    names.write_text("c\n\n b \n")
    source = open_source(str(tree), class_list=names)
    assert source.classes == ("b", "c") and source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    names.write_text("b\nnope1\nnope2\nnope3\nnope4\n")
    with pytest.raises(UserError, match="no class folder named nope1, nope2, nope3 and 1 more"):
        open_source(str(tree), class_list=names)
    names.write_text("\n")
    with pytest.raises(UserError, match="an empty class list"):
        open_source(str(tree), class_list=names)
    with pytest.raises(UserError, match=r"no readable class list .*absent\.txt"):
        open_source(str(tree), class_list=tmp_path / "absent.txt")


def test_folders_without_images_are_told_apart(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing: neither a path that exists nor a known set; .* shapes, cifar10"):
        open_source(str(tmp_path / "missing"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"empty: no images here \(\.jpg .*or shapes: embedded images"):
        open_source(str(empty))
    (empty / "class").mkdir()
    (empty / "class" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="empty: no images here"):
        open_source(str(empty))
    (tree / "hollow").mkdir()
    with pytest.raises(UserError, match="no images in the class folders hollow"):
        open_source(str(tree))


def test_images_beside_class_folders_are_ambiguous(tree: Path) -> None:
    write_image(tree / "stray.png")
    with pytest.raises(UserError, match=r"class sub-folders and 1 images beside them \(stray\.png"):
        open_source(str(tree))
    assert len(ImageFolder(tree, name="set", class_list=["b"])) == 3


def test_a_text_file_and_a_vanished_one_are_broken_images(tree: Path) -> None:
    (tree / "A" / "z.jpeg").write_text("hello")
    source = open_source(str(tree))
    with pytest.raises(BrokenImage, match=r"A/z\.jpeg: .*not an image: it starts with b'hello'"):
        source.decode(0)
    source.path(1).unlink()
    with pytest.raises(BrokenImage, match=r"b/10\.PNG: .*No such file"):
        source.encoded(1)


def test_a_fingerprint_knows_a_file_that_is_not_there(tree: Path) -> None:
    """A set with a dangling link can be converted, its broken images skipped."""
    before = open_source(str(tree)).fingerprint()
    (tree / "b" / "dead.png").symlink_to("/nonexistent")
    dangling = open_source(str(tree))
    assert dangling.fingerprint() == open_source(str(tree)).fingerprint() != before
    report = convert(dangling, tree.parent / "x.beton", on_error="skip", progress=False)
    assert [Path(broken["location"]).name for broken in report.skipped] == ["dead.png"]


def test_a_fingerprint_follows_what_labels_count(tmp_path: Path) -> None:
    """Those of val/ count the classes of train/: a class more there, and val/ is another set."""
    for name in ("train/b/1.png", "train/c/1.png", "val/b/1.png", "val/c/1.png"):
        write_image(tmp_path / name)
    before = open_source(str(tmp_path), "val")
    write_image(tmp_path / "train" / "a" / "1.png")
    after = open_source(str(tmp_path), "val")
    assert before.labels.tolist() == [0, 1] and after.labels.tolist() == [1, 2]
    assert before.fingerprint() != after.fingerprint()


def test_splits_of_a_tree_and_labels_that_agree(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "train/c/1.png", "test/c/1.png", "test/b/2.png", "test/zoo/3.png"):
        write_image(tmp_path / name)
    train, val = open_source(str(tmp_path)), validation_source(str(tmp_path))
    assert val is not None and train.name.endswith("-train") and val.name.endswith("-val")
    assert val.classes == train.classes == ("a", "b", "c")
    assert [(Path(val.location(i)).parent.name, val.classes[val.labels[i]]) for i in range(2)] == [
        ("b", "b"),
        ("c", "c"),
    ]
    write_image(tmp_path / "val" / "zoo" / "1.png")
    with pytest.raises(UserError, match="no class folder in common with train/"):
        validation_source(str(tmp_path))
    write_image(tmp_path / "val" / "a" / "1.png")
    val = validation_source(str(tmp_path))
    assert val is not None and val.location(0).endswith("val/a/1.png") and len(val) == 1


def test_a_flat_validation_folder_is_no_labelled_split(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a" / "1.png")
    write_image(tmp_path / "val" / "1.png")
    assert open_source(str(tmp_path), "val").labels.tolist() == [-1]
    assert validation_source(str(tmp_path)) is None


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        write_image(tmp_path / name / "1.png")
    assert open_source(str(tmp_path)).classes == ("bus", "train")


def test_a_split_that_does_not_exist_says_what_there_is(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'val'; it has one set of images"):
        open_source(str(tree), "val")
    write_image(tmp_path / "val-only" / "val" / "a" / "1.png")
    with pytest.raises(UserError, match="no split 'train'; it has val/"):
        open_source(str(tmp_path / "val-only"))
    with pytest.raises(UserError, match="'dev' is unknown; choose one of train, val, unlabeled"):
        open_source(str(tree), "dev")
    with pytest.raises(UserError, match="cifar10: has no split 'unlabeled'"):
        open_source("cifar10", "unlabeled")


def test_a_limit_is_balanced_nested_and_repeatable() -> None:
    labels = np.repeat(np.arange(4), [500, 3, 200, 297])
    arrays = ImageArrays(np.zeros((1000, 2, 2, 3), np.uint8), labels, "abcd", "x")

    def chosen(limit: int, seed: int = 0) -> np.ndarray:
        from penstock.loaders.sources import _limited

        return _limited(arrays, limit, seed).indices

    assert np.bincount(labels[chosen(103)]).tolist() in ([34, 3, 33, 33], [33, 3, 34, 33], [33, 3, 33, 34])
    assert set(chosen(8)) < set(chosen(103)) < set(chosen(900)) and len(set(chosen(900))) == 900
    assert chosen(103).tolist() == chosen(103).tolist() == sorted(chosen(103)) != chosen(103, seed=1).tolist()
    assert chosen(6).tolist() == [293, 382, 502, 617, 652, 707], "other numpy versions must draw the same subset"


def test_a_limit_beyond_the_set_names_its_size(tree: Path) -> None:
    assert len(open_source(str(tree), limit=8)) == 8
    for limit in (9, 0):
        with pytest.raises(UserError, match=f"a subset of {limit} images, but the set has 8; choose 1 to 8"):
            open_source(str(tree), limit=limit)


def test_arrays_are_copied_out_and_encode_without_loss() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 6), np.uint8)
    source = ImageArrays(images.copy().transpose(0, 2, 3, 1), [0, 1, -1, 0, 1], ["a", "b"], "x")
    source.decode(3)[:] = 0
    with Image.open(io.BytesIO(source.encoded(3))) as image:
        np.testing.assert_array_equal(np.asarray(image), images[3].transpose(1, 2, 0))
    assert source.location(3) == "x[3]"
    same = ImageArrays(np.ascontiguousarray(source.images), source.labels, source.classes, "y")
    other = ImageArrays(np.roll(source.images, 1), source.labels, source.classes, "x")
    assert source.fingerprint() == same.fingerprint() != other.fingerprint()


def write_cifar(folder: Path, name: str, protocol: int = 2, per_batch: int = 6) -> np.ndarray:
    """Batches as the official archive has them; returns the training pixels, [N, 32, 32, 3]."""
    rng, pixels = np.random.default_rng(0), []
    folder.mkdir(parents=True)
    for file in BATCHES[name]["train"] + BATCHES[name]["val"]:
        pixels.append(rng.integers(0, 256, (per_batch, 3072), np.uint8))
        batch = {"data": pixels[-1], LABELS[name]: [k % 3 for k in range(per_batch)], "filenames": ["x"] * per_batch}
        (folder / file).write_bytes(pickle.dumps(batch, protocol=protocol))
    file, key = META[name]
    (folder / file).write_bytes(pickle.dumps({key: ["x", "y", "z"]}, protocol=protocol))
    return np.concatenate(pixels[:-1]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_batches_from_their_folder_or_its_parent(name: str, protocol: int, tmp_path: Path) -> None:
    pixels = write_cifar(tmp_path / SUBFOLDER[name], name, protocol)
    for spec in (f"{name}:{tmp_path}", str(tmp_path), str(tmp_path / SUBFOLDER[name])):
        source = open_source(spec)
        assert source.name == f"{name}-train" and source.classes == ("x", "y", "z") and len(source) == len(pixels)
    np.testing.assert_array_equal(source.decode(len(pixels) - 1), pixels[-1])
    val = validation_source(f"{name}:{tmp_path}")
    assert val is not None and val.labels.tolist() == [0, 1, 2, 0, 1, 2] and val.location(2) == f"{name}-val[2]"


def test_a_folder_with_two_sets_must_be_named(tmp_path: Path) -> None:
    for name in ("cifar10", "cifar100"):
        write_cifar(tmp_path / SUBFOLDER[name], name, 4)
    with pytest.raises(UserError, match=r"holds cifar10 and cifar100; say which: --data cifar10:"):
        open_source(str(tmp_path))


def test_a_cifar_pickle_cannot_run_code(tmp_path: Path) -> None:
    folder = tmp_path / SUBFOLDER["cifar10"]
    write_cifar(folder, "cifar10", 4)
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(marker),)

    for payload in (pickle.dumps(Attack()), pickle.dumps({"data": np.zeros(3)}), b"not a pickle", b""):
        (folder / "data_batch_3").write_bytes(payload)
        with pytest.raises(UserError, match="data_batch_3: not a CIFAR python batch"):
            open_source(str(folder))
    assert not marker.exists()


def test_a_batch_as_python_2_wrote_it(tmp_path: Path) -> None:
    """The official files: byte strings for str, and numpy's modules under their old names."""
    write_cifar(tmp_path / SUBFOLDER["cifar10"], "cifar10", 4)
    pixels = np.random.default_rng(1).integers(0, 256, 2 * 3072, np.uint8)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\n"
        b"U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x18\x00\x00"
    )
    batch = b"\x80\x02}(U\x06labels](K\x02K\x01eU\x04data" + array + pixels.tobytes() + b"tbu."
    (tmp_path / SUBFOLDER["cifar10"] / "test_batch").write_bytes(batch)
    source = open_source(str(tmp_path), "val")
    assert source.labels.tolist() == [2, 1]
    np.testing.assert_array_equal(source.decode(1), pixels[3072:].reshape(3, 32, 32).transpose(1, 2, 0))


def write_stl10(folder: Path) -> np.ndarray:
    """Four labelled images and three unlabelled ones; returns the latter, [N, 96, 96, 3]."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        rng.integers(0, 256, 4 * 27648, np.uint8).tofile(folder / f"{name}_X.bin")
        np.array([1, 10, 3, 4], np.uint8).tofile(folder / f"{name}_y.bin")
    pixels = rng.integers(0, 256, (3, 96, 96, 3), np.uint8)
    pixels.transpose(0, 3, 2, 1).tofile(folder / "unlabeled_X.bin")  # column by column, as the set's page has it
    return pixels


def test_stl10_and_its_unlabelled_split(tmp_path: Path) -> None:
    pixels = write_stl10(tmp_path / "stl10_binary")
    unlabelled = open_source(f"stl10:{tmp_path}", "unlabeled")
    np.testing.assert_array_equal(unlabelled.decode(2), pixels[2])
    assert unlabelled.labels.tolist() == [-1] * 3 and unlabelled.classes == ()
    train = open_source(str(tmp_path))
    assert train.name == "stl10-train" and train.labels.tolist() == [0, 9, 2, 3] and train.classes[9] == "truck"
    assert len(validation_source(str(tmp_path / "stl10_binary")) or []) == 4
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(train.decode, range(4)))) == 4


def test_damaged_stl10_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    write_stl10(folder)
    (folder / "test_y.bin").write_bytes(b"\x01\x02\x0b\x01")
    with pytest.raises(UserError, match=r"test_y\.bin: not the labels of 4 STL-10 images"):
        open_source(str(tmp_path), "val")
    (folder / "train_X.bin").write_bytes(b"123")
    with pytest.raises(UserError, match=r"train_X\.bin: 3 bytes are no whole number of images"):
        open_source(str(tmp_path))
    (folder / "unlabeled_X.bin").unlink()
    with pytest.raises(UserError, match=r"unlabeled_X\.bin: cannot be read \(No such file"):
        open_source(str(tmp_path), "unlabeled")


def test_imagenette_from_a_folder_or_its_parent(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_image(tmp_path / "imagenette2-320" / split / "n01440764" / "1.JPEG")
    for spec in (f"imagenette:{tmp_path}", f"imagenette:{tmp_path / 'imagenette2-320'}"):
        assert open_source(spec).name == "imagenette-train" and validation_source(spec) is not None


def test_a_named_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cifar10:.*absent: no such folder"):
        open_source(f"cifar10:{tmp_path / 'absent'}")
    with pytest.raises(UserError, match="cifar100 is not there; name the folder cifar-100-python"):
        open_source(f"cifar100:{tmp_path}")
    with pytest.raises(UserError, match="imagenette is not there"):
        open_source(f"imagenette:{tmp_path}")
    with pytest.raises(UserError, match=r"shapes:.*: this set is generated"):
        open_source(f"shapes:{tmp_path}")
    with pytest.raises(UserError, match=r"notes\.txt: not a folder of images and not a shard"):
        (tmp_path / "notes.txt").write_text("x")
        open_source(str(tmp_path / "notes.txt"))


def test_a_shard_has_one_split(tmp_path: Path) -> None:
    (tmp_path / "train.beton").write_bytes(b"x")
    assert validation_source(str(tmp_path / "train.beton")) is None
    with pytest.raises(UserError, match="a class list cuts image folders only"):
        open_source(str(tmp_path / "train.beton"), class_list=tmp_path / "x.txt")


def test_the_cache_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("PENSTOCK_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "penstock"
