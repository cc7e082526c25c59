"""A folder of images: class sub-folders in torchvision's ImageFolder order, or flat and unlabelled.

ImageNet's 1.28 million files are listed in seconds: one scandir for each folder and no stat of a file before
`fingerprint` asks for sizes; names are kept as fixed-width bytes, which forked workers share instead of copying. Files
have no checksums: what changed in one and still decodes is not noticed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BrokenImage, UserError
from penstock.loaders.decode import decode_rgb, fetch_encoded
from penstock.loaders.fetched import Fetched
from penstock.loaders.sources.base import UNLABELLED, Source

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's list


class ImageFolder(Source):
    """The images under `root`, sorted by class, folder and file name; hidden files and folders do not count.

    Args:
        root: a folder with one sub-folder for each class (images may lie deeper inside), or with images and no class.
        name: what the set is called in logs and cache names.
        class_list: take only these class folders; labels are positions among their sorted names, as if the other
            folders were not there.

    Raises:
        UserError: the folder is missing or holds no images, a class holds none or does not exist, or images lie
            beside class folders, so that either reading would leave some out.
    """

    storage = "files"

    def __init__(self, root: Path, *, name: str, class_list: Sequence[str] | None = None) -> None:
        self.root = Path(root).expanduser()
        self.name = name
        names, loose = list_folder(self.root)
        self.classes = _chosen(self.root, names, class_list)
        listed = [[(folder, files) for folder, files in _walk(self.root, c) if files] for c in self.classes]
        if class_list is None and not any(listed):
            self.classes, listed = (), [[("", loose)]]
            if not loose:
                raise UserError(
                    f"{root}: no images here ({' '.join(EXTENSIONS)}), neither in the folder nor in class sub-folders; "
                    "name a folder that holds some, or shapes: embedded images"
                )
        elif class_list is None and loose:
            raise UserError(
                f"{root}: holds class sub-folders and {len(loose)} images beside them ({loose[0]}…), so it is unclear "
                "whether it is labelled; move one or the other away, or name the classes with --class-list FILE"
            )
        _no_empty_class(self.root, self.classes, listed)
        self._keep(listed)

    def _keep(self, listed: list[list[tuple[str, list[str]]]]) -> None:
        """Flatten [class][folder][file] into arrays of length N."""
        folders = [(label, folder, files) for label, found in enumerate(listed) for folder, files in found]
        counts = [len(files) for _, _, files in folders]
        self._folders = [folder for _, folder, _ in folders]
        self._folder_of = np.repeat(np.arange(len(folders), dtype=np.int32), counts)
        self._files = np.array([os.fsencode(file) for _, _, files in folders for file in files])
        labels = [label if self.classes else UNLABELLED for label, _, _ in folders]
        self.labels = np.repeat(np.array(labels, np.int64), counts)

    def relative(self, index: int) -> str:
        """The file's path below the root, such as `n01440764/n01440764_10026.JPEG`."""
        return os.path.join(self._folders[self._folder_of[index]], os.fsdecode(self._files[index]))

    def path(self, index: int) -> Path:
        return self.root / self.relative(index)

    def location(self, index: int) -> str:
        return os.path.join(self.root, self.relative(index))

    def encoded(self, index: int) -> bytes:
        location = self.location(index)
        try:
            with open(location, "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise BrokenImage(location, error.strerror or str(error)) from error

    def decode(self, index: int) -> NDArray[np.uint8]:
        return decode_rgb(self.encoded(index), self.location(index))

    def fetch(self, indices: NDArray[np.int64]) -> Fetched:
        return fetch_encoded([self.encoded(int(i)) for i in indices], [self.location(int(i)) for i in indices])

    def fingerprint(self) -> str:
        """Of the classes, and of all files' paths, sizes and times of change: ten seconds for a million.

        The names of the classes, since what a label counts may be another folder's (`train/` beside `val/`).
        """
        digest = hashlib.sha256("\0".join(self.classes).encode(errors="surrogateescape"))
        for index in range(len(self)):
            relative = os.fsencode(self.relative(index))
            try:
                status = os.stat(os.path.join(os.fsencode(self.root), relative))
                digest.update(b"%s\0%d\0%d\n" % (relative, status.st_size, status.st_mtime_ns))
            except OSError:  # a dangling link: whoever reads it stops there, or skips it
                digest.update(relative + b"\0missing\n")
        return digest.hexdigest()


def list_folder(root: Path) -> tuple[list[str], list[str]]:
    """The sorted names of a folder's sub-folders and of its images, hidden ones left out."""
    folders, images = [], []
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.lower().endswith(EXTENSIONS):
                    images.append(entry.name)
    except OSError as error:
        raise UserError(f"{root}: cannot be read as a folder of images ({error.strerror}); check the path") from error
    return sorted(folders), sorted(images)


def _walk(root: Path, folder: str) -> list[tuple[str, list[str]]]:
    """Every folder from `folder` down, with its images, in the order of torchvision's `sorted(os.walk(...))`."""
    below, images = list_folder(root / folder)
    found = [(folder, images)]
    for name in below:
        found += _walk(root, os.path.join(folder, name))
    return sorted(found) if below else found


def _chosen(root: Path, names: list[str], class_list: Sequence[str] | None) -> tuple[str, ...]:
    if class_list is None:
        return tuple(names)
    unknown = sorted(set(class_list) - set(names))
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(
            f"{root}: has no class folder named {', '.join(unknown[:3])}{more}; the class list must hold one folder "
            f"name of {root} on each line"
        )
    return tuple(sorted(set(class_list)))


def _no_empty_class(root: Path, classes: tuple[str, ...], listed: list[list[tuple[str, list[str]]]]) -> None:
    empty = [name for name, found in zip(classes, listed, strict=False) if not found]
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise UserError(
            f"{root}: no images in the class folders {', '.join(empty[:3])}{more}; fill or remove them, or name the "
            "classes with --class-list FILE"
        )
