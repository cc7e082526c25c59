"""DALI as its users write it: its file reader, its decoder and its operators in one graph, on the CPU or a GPU.

The flip is folded into the last operator, as in its examples. How far its operators are from torchvision's:
`augment/dali.py`.

https://docs.nvidia.com/deeplearning/dali.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from nvidia.dali import fn, pipeline_def
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

from penstock.augment import Recipe
from penstock.augment.operations import HorizontalFlip
from penstock.augment.recipe import View
from penstock.benchmarks import augment_dali
from penstock.benchmarks.peers.peer import Batch, Peer, paths
from penstock.loaders import Source

Node = Any  # a DALI DataNode


class DALINative(Peer):
    """Decoded once, both views in one graph, into torch's tensors by DALI's own iterator."""

    def __init__(self, source: Source, recipe: Recipe, *, batch: int, workers: int) -> None:
        files, labels, gpu = paths(source), source.labels.tolist(), torch.cuda.is_available()
        views = [_operators(view) for view in recipe.views for _ in range(view.count)]

        @pipeline_def(enable_conditionals=True)
        def graph() -> tuple[Node, ...]:
            encoded, label = fn.readers.file(files=files, labels=labels, random_shuffle=True, name="reader")
            image = fn.decoders.image(encoded, device="mixed" if gpu else "cpu")
            return (*(_view(image, *operators, recipe) for operators in views), label)

        pipeline = graph(batch_size=batch, num_threads=workers, device_id=0 if gpu else None, seed=0)
        self.names = [f"view{v}" for v in range(len(views))]
        self.iterator = DALIGenericIterator(
            pipeline,
            [*self.names, "label"],
            reader_name="reader",
            last_batch_policy=LastBatchPolicy.DROP,
            auto_reset=True,
        )

    def __iter__(self) -> Iterator[Batch]:
        for (outputs,) in self.iterator:
            yield Batch([outputs[name] for name in self.names], outputs["label"][:, 0])

    def close(self) -> None:
        del self.iterator  # ends DALI's threads


def _operators(view: View) -> tuple[list[tuple[float, augment_dali.Step]], float]:
    """Each operation's probability and operators, but for flips, which commute with all that follows a crop: theirs."""
    flips = [operation.p for operation in view.operations if isinstance(operation, HorizontalFlip)]
    others = tuple(operation for operation in view.operations if not isinstance(operation, HorizontalFlip))
    return augment_dali.view_steps(replace(view, operations=others)), sum(flips)


def _view(image: Node, steps: list[tuple[float, augment_dali.Step]], flip: float, recipe: Recipe) -> Node:
    """One view's list, and normalised pixels in planes."""
    for p, step in steps:
        image = step(image) if p == 1 else augment_dali.sometimes(p, step, image)
    mean, std = ([255 * value for value in values] for values in (recipe.mean, recipe.std))
    mirror = fn.random.coin_flip(probability=flip)
    return fn.crop_mirror_normalize(image, mirror=mirror, mean=mean, std=std, output_layout="CHW")
