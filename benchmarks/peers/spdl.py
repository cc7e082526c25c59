"""SPDL: a pipeline of threads, in which FFmpeg decodes outside of the GIL and Albumentations makes the views.

Its example "multi_thread_preprocessing" has torchvision's transforms in the threads; Albumentations' hold the GIL for
less of their time, and are several times as fast there.

https://github.com/facebookresearch/spdl (Hira et al. 2025, arXiv 2504.20067).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import cv2
import spdl.io
import torch
from spdl.pipeline import PipelineBuilder

from penstock.augment import Recipe
from penstock.benchmarks.augment_rivals import albumentations_compose
from penstock.benchmarks.peers.peer import Batch, Peer, paths, upload, view_transforms
from penstock.errors import UserError
from penstock.loaders import Source

Sample = tuple[list[torch.Tensor], int]


class SPDL(Peer):
    """Its threads share the cores, so OpenCV's and torch's own operations take one thread each."""

    def __init__(self, source: Source, recipe: Recipe, *, batch: int, workers: int) -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        self.files, self.labels, self.recipe = paths(source), source.labels.tolist(), recipe
        self.mine = threading.local()  # transforms hold random state: a set for each thread
        check(self.files[0])
        builder: Any = PipelineBuilder()
        self.pipeline = (
            builder.add_source(self._shuffled())
            .pipe(self._load, concurrency=workers)
            .aggregate(batch)
            .pipe(_collate)
            .add_sink(2)
            .build(num_threads=workers)
        )
        self.pipeline.start()

    def _shuffled(self) -> Iterator[int]:
        while True:
            yield from random.sample(range(len(self.files)), len(self.files))

    def _load(self, index: int) -> Sample:
        if not hasattr(self.mine, "transforms"):
            self.mine.transforms = view_transforms(self.recipe, albumentations_compose)
        image = spdl.io.to_numpy(spdl.io.load_image(self.files[index]))
        return [transform(image) for transform in self.mine.transforms], self.labels[index]

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.pipeline:
            yield Batch([upload(view) for view in batch.views], batch.label)

    def close(self) -> None:
        self.pipeline.stop()


def check(file: str) -> None:
    """Raises UserError where FFmpeg's libraries, which its wheel does not bring, are missing."""
    try:
        spdl.io.load_image(file)
    except RuntimeError as error:
        raise UserError("SPDL finds no FFmpeg that it can decode with: sudo apt-get install -y ffmpeg") from error


def _collate(samples: list[Sample]) -> Batch:
    views, label = zip(*samples, strict=True)
    return Batch([torch.stack(view) for view in zip(*views, strict=True)], torch.tensor(label))
