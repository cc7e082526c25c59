"""Decoded images of different sizes in one buffer: what executors take in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """N ragged images, uint8 RGB, interleaved.

    Attributes:
        data: uint8 [total], the images' [H, W, 3] bytes one after the other.
        offset: int64 [N], where each image begins in `data`.
        height, width: int64 [N], in pixels.
    """

    data: NDArray[np.uint8]
    offset: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offset)

    def image(self, i: int) -> NDArray[np.uint8]:
        """Image i as a view, uint8 [H, W, 3]."""
        height, width, start = int(self.height[i]), int(self.width[i]), int(self.offset[i])
        return self.data[start : start + height * width * 3].reshape(height, width, 3)

    @classmethod
    def from_images(cls, images: Sequence[NDArray[np.uint8]]) -> Pixels:
        """Copy uint8 [H, W, 3] images into one buffer."""
        shapes = np.array([image.shape for image in images], np.int64).reshape(-1, 3)
        sizes = shapes.prod(axis=1)
        data = np.concatenate([image.reshape(-1) for image in images]) if images else np.empty(0, np.uint8)
        return cls(data=data, offset=np.cumsum(sizes) - sizes, height=shapes[:, 0], width=shapes[:, 1])
