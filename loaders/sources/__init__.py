"""Sources: sets of images by name or by path, behind one interface (`base.Source`).

    open_source("shapes")                        the embedded default, generated once
    open_source("cifar10")                       downloaded once (cifar100, stl10, imagenette, imagenette-160 likewise)
    open_source("cifar10:~/data", "val")         that set from a folder
    open_source("imagenet", class_list=Path("imagenet100.txt"))
    open_source("photos")                        what lies there: class sub-folders, flat images, CIFAR or STL-10 files
    open_source("train.beton")                   a shard; FILE.tar is a WebDataset

A set under train/ and val/ (or test/), like ImageNet's, is one set with two splits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from penstock.errors import UserError
from penstock.files import cache_folder
from penstock.loaders.download import ARCHIVES, fetch_set
from penstock.loaders.sources.arrays import ImageArrays
from penstock.loaders.sources.base import UNLABELLED, Source, Subset
from penstock.loaders.sources.cifar import cifar_source, find_cifar
from penstock.loaders.sources.folder import ImageFolder, list_folder
from penstock.loaders.sources.stl10 import find_stl10, stl10_source

__all__ = ["UNLABELLED", "ImageArrays", "ImageFolder", "Source", "Subset", "open_source", "validation_source"]

NAMES = ("shapes", *ARCHIVES)
SPLITS = ("train", "val", "unlabeled")
IMAGE_SPLITS = {"train", "val", "test"}  # the folders of an image tree
FOLDERS = {"train": ("train",), "val": ("val", "test"), "unlabeled": ()}  # which of them a split is taken from


class NoSuchSplit(UserError):
    """The set is there, but has no split of that name."""

    def __init__(self, what: str, split: str, has: str) -> None:
        super().__init__(f"{what}: has no split {split!r}; it has {has}")


def open_source(
    spec: str,
    split: str = "train",
    *,
    class_list: Path | None = None,
    cache: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Source:
    """Open a set of images.

    Args:
        spec: a name, `NAME:FOLDER`, a folder or a shard; see the module's docstring.
        split: `train`, `val` (a set's test images where it has no other), or `unlabeled` (STL-10).
        class_list: a text file with one class folder on each line; only for image folders.
        cache: where downloads and generated sets are kept; default `cache_folder()`.
        limit: a class-balanced subset of that many images, the same for the same seed; a smaller one lies within it.
        seed: of that subset.

    Raises:
        UserError: nothing of that name, no such split, or nothing usable inside.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    source = _open(spec, split, class_list, cache or cache_folder())
    return source if limit is None else _limited(source, limit, seed)


def validation_source(spec: str, *, class_list: Path | None = None, cache: Path | None = None) -> Source | None:
    """The labelled split `val` of a set, its labels counted as the training split's; None where there is none."""
    try:
        source = open_source(spec, "val", class_list=class_list, cache=cache)
    except NoSuchSplit:
        return None
    return source if (source.labels != UNLABELLED).any() else None


def _open(spec: str, split: str, class_list: Path | None, cache: Path) -> Source:
    name, colon, folder = spec.partition(":")
    path = Path(folder if colon and name in NAMES else spec).expanduser()
    if name in NAMES:
        if colon and not path.is_dir():
            raise UserError(f"{spec}: no such folder as {path}; --data {name}:FOLDER takes the one that holds {name}")
        return _named(name, path if colon else None, split, class_list, cache)
    if path.is_dir():
        return _recognised(path, split, class_list, cache)
    if path.is_file():
        return _shard(path, split, class_list)
    if spec == "imagenet":
        raise UserError(
            "imagenet: there is no such folder here, and ImageNet is not ours to download: name the folder that holds"
            " its train/ and val/, --data path/to/imagenet"
        )
    raise UserError(
        f"{spec}: neither a path that exists nor a known set; name a folder of images, a shard (FILE.beton, "
        f"FILE.tar), or one of {', '.join(NAMES)}"
    )


def _named(name: str, folder: Path | None, split: str, class_list: Path | None, cache: Path) -> Source:
    """The set of that name, from a folder or (None) downloaded."""
    if class_list is not None and not name.startswith("imagenette"):
        raise UserError(f"{name}: a class list cuts image folders only; leave --class-list out")
    if split == "unlabeled" and name != "stl10":
        raise NoSuchSplit(name, split, "train and val")
    if name == "shapes":
        if folder is not None:
            raise UserError(f"shapes:{folder}: this set is generated, not read; say --data shapes, or --data {folder}")
        from penstock.loaders.sources.shapes import shapes_source

        return shapes_source(split, cache)
    folder = folder or fetch_set(name, cache)
    found = _find(name, folder)
    if found is None:
        raise UserError(
            f"{folder}: {name} is not there; name the folder {ARCHIVES[name].inside}, as the official archive unpacks "
            "it, or the one above it"
        )
    if name.startswith("imagenette"):
        return _images(found, split, class_list, name)
    return stl10_source(found, split) if name == "stl10" else cifar_source(found, name, split)


def _find(name: str, folder: Path) -> Path | None:
    """Where a set of `ARCHIVES` lies: in `folder` or in the official folder inside it; None if in neither."""
    if name.startswith("imagenette"):
        return next((place for place in (folder, folder / ARCHIVES[name].inside) if (place / "train").is_dir()), None)
    return find_stl10(folder) if name == "stl10" else find_cifar(folder, name)


def _recognised(folder: Path, split: str, class_list: Path | None, cache: Path) -> Source:
    """Whatever set lies in a folder."""
    found = [name for name in ("cifar10", "cifar100", "stl10") if _find(name, folder)]
    if len(found) > 1:
        raise UserError(f"{folder}: holds {' and '.join(found)}; say which: --data {found[0]}:{folder}")
    if found:
        return _named(found[0], folder, split, class_list, cache)
    return _images(folder, split, class_list, folder.resolve().name)


def _images(root: Path, split: str, class_list: Path | None, name: str) -> Source:
    """A folder of images, or one with a folder for each split."""
    folders, _ = list_folder(root)
    chosen = None if class_list is None else _read_class_list(class_list)
    if not _has_splits(folders):
        if split != "train":
            raise NoSuchSplit(str(root), split, f"one set of images, its train split (no {split}/ beside a train/)")
        return ImageFolder(root, name=name, class_list=chosen)
    place = next((place for place in FOLDERS[split] if place in folders), None)
    if place is None:
        raise NoSuchSplit(str(root), split, " and ".join(f"{place}/" for place in folders))
    if split == "val" and chosen is None and "train" in folders:
        return _labelled_as_train(root / place, list_folder(root / "train")[0], f"{name}-{split}")
    return ImageFolder(root / place, name=f"{name}-{split}", class_list=chosen)


def _labelled_as_train(root: Path, train_classes: list[str], name: str) -> ImageFolder:
    """A label means the same class in both splits, also where only one of them has all classes."""
    own_classes, _ = list_folder(root)
    if not train_classes or not own_classes or own_classes == train_classes:
        return ImageFolder(root, name=name)
    shared = sorted(set(own_classes) & set(train_classes))
    if not shared:
        raise UserError(f"{root}: has no class folder in common with train/ beside it; give both the same names")
    source = ImageFolder(root, name=name, class_list=shared)
    source.labels = np.searchsorted(train_classes, shared)[source.labels]
    source.classes = tuple(train_classes)
    return source


def _has_splits(folders: list[str]) -> bool:
    """Whether these are splits: a class may be called `train` too, but hardly with `val` or `test` beside it."""
    names = set(folders)
    return bool(names) and (names <= IMAGE_SPLITS or ("train" in names and len(names & IMAGE_SPLITS) > 1))


def _read_class_list(path: Path) -> list[str]:
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no readable class list ({error}); it is a text file, one name a line") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path}: an empty class list; write one class folder's name on each line")
    return names


def _shard(path: Path, split: str, class_list: Path | None) -> Source:
    if path.suffix not in (".beton", ".tar"):
        raise UserError(f"{path}: not a folder of images and not a shard; shards are called FILE.beton or FILE.tar")
    if split != "train":
        raise NoSuchSplit(str(path), split, "one set of images, as every shard has; name the other shard instead")
    if class_list is not None:
        raise UserError(f"{path}: a class list cuts image folders only; give it when converting the folder")
    if path.suffix == ".beton":
        from penstock.loaders.beton import BetonSource

        return BetonSource(path)
    from penstock.loaders.webdataset import WebDatasetSource

    return WebDatasetSource(path)


def _limited(source: Source, limit: int, seed: int) -> Source:
    """Each class in an order of its own, one image of each class in turn, until there are `limit`; then as stored."""
    if not 1 <= limit <= len(source):
        raise UserError(
            f"{source.name}: a subset of {limit} images, but the set has {len(source)}; choose 1 to {len(source)}"
        )
    keys = np.random.Philox(seed).random_raw(len(source))
    by_class = np.lexsort((keys, source.labels))
    starts = np.searchsorted(source.labels[by_class], source.labels[by_class])
    turn = np.empty(len(source), np.int64)
    turn[by_class] = np.arange(len(source)) - starts
    return Subset(source, np.sort(np.lexsort((keys, turn))[:limit]))
