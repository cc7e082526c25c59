"""`ffcv-package`: the ffcv package's own Loader and operations over a `.beton`, for comparison.

Order, indices and labels are ours; the augmentation is the package's, as far as it goes, and that is not all of a
MoCo list. It has no greyscale, no blur, no hue, no choice among operations; brightness, contrast and saturation each
decide on their own whether they apply and always come in that order; crops are resized by area averaging; JPEGs are
decoded once for every view, by the fast DCT. Its random values have no seed, so nothing repeats and a resumed run
differs. A JPEG that cannot be decoded gives stale pixels in silence: it ignores its decoder's return code; and sizes
in the table that are not an image's lead it beyond its memory.

What this file does about the rest: impossible sizes are refused before it starts, and no batch is handed over before
each of its images was read once by our own decoder or held against its checksum (`examined.py`). One Loader for each
kind of view is compiled once (and again where a recipe changes between epochs) and re-pointed at each epoch's order,
in which each batch's indices come once for every view of that kind; batches are copied, because it overwrites its
buffers; the thread of an epoch that was left early is ended; a pipeline that raises is noticed, where the package
would wait for ever; and torch gets back the threads that importing ffcv and starting its Loader take away.

https://github.com/libffcv/ffcv (Leclerc et al. 2023, arXiv 2306.12517). Importing it takes seconds, compiling more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.augment.operations import CenterCrop, ColorJitter, HorizontalFlip, Operation, RandomResizedCrop
from penstock.augment.recipe import Recipe, View
from penstock.errors import MissingExtra, UserError
from penstock.loaders.beton import BetonSource
from penstock.loaders.contract import Loader, Options, Views
from penstock.loaders.examined import Examined
from penstock.loaders.sources.base import UNLABELLED, Source, Subset

Batches = Generator[tuple[torch.Tensor, torch.Tensor], None, None]
LOG = logging.getLogger(__name__)
POLL = 0.0005  # seconds between looks at a queue that is empty
COMPILED: list[Any] = []  # ffcv's compiled loops are never freed: numba's finalizers print errors when they are


class FFCVPackageLoader(Loader):
    """Views of a `.beton`, made by the ffcv package.

    The source is a BetonSource, or some of its images. Operations that the package lacks are left out, with a warning.

    Raises:
        MissingExtra: the package is not installed.
        UserError: the source is no `.beton`, or broken images are to be skipped.
        BrokenImage: an image's size cannot be; while iterating: an image is damaged.
    """

    def __init__(self, source: Source, options: Options) -> None:
        super().__init__(source, options)
        if options.on_error == "skip":
            raise UserError(
                "--on-error skip: the ffcv package does not tell broken images from whole ones: use --loader ffcv"
            )
        self.shard, self.positions = _unwrap(source)
        self.shard.sizes(np.arange(len(self.shard)))  # the package trusts them
        self.examined = Examined(source)
        _import_ffcv()
        self.now = self.recipe.at(0)
        warn_of_left_out(self.now)
        self.loaders = [self._load(view) for view in self.now.views]

    def _load(self, view: View) -> Any:
        """The package's Loader of a kind of view; it compiles when it is first used."""
        with _torch_threads_kept():
            loader = _import_ffcv().loader.Loader(
                str(self.shard.path),
                batch_size=self.order.batch * view.count,
                num_workers=self.options.workers,
                order=_import_ffcv().loader.OrderOption.SEQUENTIAL,
                drop_last=False,
                pipelines=pipelines(self.shard, view, self.recipe),
            )
        COMPILED.append(loader.code)
        return loader

    def epoch(self, epoch: int, consumed: int = 0) -> Iterator[Views]:
        self._follow(epoch)
        steps = [self.order.indices(epoch, step, consumed) for step in range(self.order.steps(consumed))]
        with ExitStack() as stack:
            kinds = zip(self.loaders, self.now.views, strict=True)
            walks = [stack.enter_context(closing(self._walk(loader, view, steps))) for loader, view in kinds]
            for index in steps:
                self.examined.examine_in_threads(index, self.options.workers)
                # a rank that has no part in a kept tail still takes the step, with an empty batch
                batches = [next(walk) for walk in walks] if len(index) else list(map(_empty, self.now.views))
                yield Views(
                    groups=self._groups([views for views, _ in batches]),
                    index=torch.from_numpy(index),
                    label=batches[0][1],
                )

    def _follow(self, epoch: int) -> None:
        """Have the epoch's strengths and sizes. They are compiled in: half a minute at each stage of `gradual`."""
        before, self.now = self.now, self.recipe.at(epoch)
        kinds = zip(self.loaders, before.views, self.now.views, strict=True)
        self.loaders = [loader if view == was else self._load(view) for loader, was, view in kinds]

    def _walk(self, loader: Any, view: View, steps: list[NDArray[np.int64]]) -> Batches:
        """The package's batches for these steps: its own buffers, float [V·N, 3, S, S], and labels, int64 [N]."""
        order = np.concatenate([np.tile(self.positions[index], view.count) for index in steps])
        # `Sequential` gives these indices back as the epoch's order; the length is taken from the first order
        loader.traversal_order.indices = loader.first_traversal_order = order.astype(np.uint64)
        with _torch_threads_kept():
            thread = iter(loader)
        try:
            while (batch := _take(thread)) is not None:
                fields = dict(zip(loader.pipeline_specs, batch, strict=True))
                views = fields[self.shard.image_field]
                samples = len(views) // view.count
                label = fields.get(self.shard.label_field, torch.full((samples, 1), UNLABELLED))
                yield views, label[:samples, 0].clone()
        finally:
            _end(thread)

    def _groups(self, by_kind: list[torch.Tensor]) -> list[torch.Tensor]:
        """The batch's groups, of views of one kind each, [V·N, 3, S, S]; copied."""
        by_size = groupby(zip(self.now.views, by_kind, strict=True), key=lambda pair: pair[0].size)
        groups = [
            _joined([views for _, views in same], pinned=self.options.device.type == "cuda") for _, same in by_size
        ]
        return [group.to(self.options.device, non_blocking=True).to(self.options.dtype) for group in groups]


def _joined(views: list[torch.Tensor], *, pinned: bool) -> torch.Tensor:
    """A copy of views [n, 3, S, S], one after the other; in memory from which a GPU takes it without waiting."""
    shape = sum(map(len, views)), *views[0].shape[1:]
    joined = torch.empty(shape, dtype=views[0].dtype, memory_format=torch.channels_last, pin_memory=pinned)
    return torch.cat(views, out=joined)


def _empty(view: View) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(0, 3, view.size, view.size), torch.empty(0, dtype=torch.int64)


def warn_of_left_out(recipe: Recipe) -> None:
    """Say which operations of an epoch's recipe the package cannot do."""
    kinds = dict.fromkeys((operation, view.size) for view in recipe.views for operation in view.operations)
    left_out = [str(operation) for operation, size in kinds if not translate(operation, size)]
    left_out += ["hue" for operation, _ in kinds if isinstance(operation, ColorJitter) and operation.hue]
    if left_out:
        LOG.warning("ffcv-package: the package has no %s: left out", ", ".join(dict.fromkeys(left_out)))


def pipelines(shard: BetonSource, view: View, recipe: Recipe) -> dict[str, Any]:
    """What the package is to do with each field: the image's operations, the label as it is, nothing with others."""
    from ffcv.transforms import NormalizeImage, ToTensor, ToTorchImage

    image = [part for operation in view.operations for part in translate(operation, view.size)]
    image.append(NormalizeImage(255 * np.array(recipe.mean), 255 * np.array(recipe.std), np.float32))
    made: dict[str, Any] = dict.fromkeys(shard.field_names)
    made[shard.image_field] = [*image, ToTensor(), ToTorchImage()]
    if shard.label_field:
        del made[shard.label_field]  # the package's default: decoded, as a tensor
    return made


def translate(operation: Operation, size: int) -> list[Any]:
    """The package's operations that come nearest; none where it has nothing of the kind."""
    from ffcv import transforms
    from ffcv.fields import rgb_image

    match operation:
        case RandomResizedCrop(scale=scale, ratio=ratio):
            return [rgb_image.RandomResizedCropRGBImageDecoder((size, size), scale=scale, ratio=ratio)]
        case CenterCrop(fraction=fraction):
            return [rgb_image.CenterCropRGBImageDecoder((size, size), ratio=fraction)]
        case HorizontalFlip(p=p):
            return [transforms.RandomHorizontalFlip(p)]
        case ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, p=p):
            kinds = (transforms.RandomBrightness, transforms.RandomContrast, transforms.RandomSaturation)
            ranges = (brightness, contrast, saturation)
            return [kind(magnitude, p) for kind, magnitude in zip(kinds, ranges, strict=True) if magnitude]
    return []


def _unwrap(source: Source) -> tuple[BetonSource, NDArray[np.int64]]:
    """The shard under any subsets, and where in it each image of the source lies, int64 [N]."""
    if isinstance(source, Subset):
        shard, positions = _unwrap(source.source)
        return shard, positions[source.indices]
    if not isinstance(source, BetonSource):
        raise UserError(f"{source.name}: ffcv-package reads only .beton: python loaders/convert.py SRC NAME.beton")
    return source, np.arange(len(source))


def _import_ffcv() -> Any:
    try:
        import ffcv.loader
    except ImportError as error:
        raise MissingExtra("the ffcv package", "ffcv") from error
    return ffcv


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """ffcv sets torch's threads to 1 when imported, and to its own count whenever a Loader starts."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _take(thread: Any) -> tuple[torch.Tensor, ...] | None:
    """The next batch, or None at the epoch's end. Raises RuntimeError if the thread that makes them has died."""
    while thread.output_queue.empty():
        if not thread.is_alive() and thread.output_queue.empty():
            raise RuntimeError("ffcv's pipeline raised an error (printed above) and gives no more batches")
        time.sleep(POLL)
    return next(thread, None)


def _end(thread: Any) -> None:
    """End the thread of an epoch, whole or not: it may be waiting for room in its queue."""
    thread.close()
    while thread.is_alive():
        while not thread.output_queue.empty():
            thread.output_queue.get_nowait()
        thread.join(timeout=POLL)
