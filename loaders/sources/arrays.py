"""Images of one size held as one array, in memory or mapped from a file: CIFAR, STL-10, whatever a test makes up."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from penstock.augment.pixels import Pixels
from penstock.loaders.decode import encode_png
from penstock.loaders.fetched import Ready
from penstock.loaders.sources.base import Source

HASHED_AT_ONCE = 4096  # images; bounds the memory that a fingerprint of a mapped array takes


class ImageArrays(Source):
    """Wraps `images` (uint8 [N, H, W, 3], any strides) without copying them.

    Args:
        images: the pixels, RGB.
        labels: [N], positions in `classes`, -1 where unlabelled.
        classes: class names; empty for an unlabelled set.
        name: what the set is called in logs and cache names.
    """

    storage = "arrays"

    def __init__(self, images: NDArray[np.uint8], labels: ArrayLike, classes: Sequence[str], name: str) -> None:
        self.images = images
        self.labels = np.asarray(labels, np.int64)
        self.classes = tuple(classes)
        self.name = name
        assert images.dtype == np.uint8 and images.shape == (len(self.labels), *images.shape[1:3], 3)

    def encoded(self, index: int) -> bytes:
        return encode_png(self.decode(index))

    def decode(self, index: int) -> NDArray[np.uint8]:
        return np.array(self.images[index], order="C")  # a copy: what a caller does to it stays with the caller

    def fetch(self, indices: NDArray[np.int64]) -> Ready:
        height, width = self.sizes(indices)
        if self.images.flags.c_contiguous:
            data, places = self.images.reshape(-1), indices
        else:
            data, places = np.ascontiguousarray(self.images[indices]).reshape(-1), np.arange(len(indices))
        return Ready(Pixels(data=data, offset=places * (3 * height * width), height=height, width=width))

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        _, height, width, _ = self.images.shape
        return np.full(len(indices), height, np.int64), np.full(len(indices), width, np.int64)

    def location(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def fingerprint(self) -> str:
        """Of all pixels, labels and class names."""
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode() + self.labels.tobytes())
        for start in range(0, len(self), HASHED_AT_ONCE):
            digest.update(np.ascontiguousarray(self.images[start : start + HASHED_AT_ONCE]).data)
        return digest.hexdigest()
