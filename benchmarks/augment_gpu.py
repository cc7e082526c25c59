"""Who runs on a GPU in benchmarks/augment.py: passes over a whole batch, from decoded images in the GPU's memory.

| name | a pass |
|---|---|
| `fused_gpu` | rows drawn and planned on the host, then our kernels; `fused_gpu-bf16` writes bfloat16, not float32 |
| `torchvision-v2-gpu` | torchvision's v2 transforms on uint8 tensors, one image after the other |
| `torchvision-v2-gpu-batch` | the same on the whole batch in one call |
| `kornia` | Kornia, with random values for each image |
| `dali-pipeline` | DALI's GPU operators in one graph, with random values for each image |

**`torchvision-v2-gpu-batch` is another augmentation**: all images of a batch have one draw of random values in common,
the same crop, jitter and flip. It stands here for what these kernels could do if they took a value for each image.

All end in normalised float32 views (but for bf16) and draw new random values in each pass. No pass is waited for before
the next is launched; AHEAD are under way at most, as where a loader prefetches. DALI alone waits in each pass: it makes
batches in threads of its own, and `run` returns the oldest of them when it is made. But for torchvision's loop, rivals
take batches of one size, so their images are resized to the first one's beforehand, at no cost to them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from penstock.augment import Recipe
from penstock.augment.executors import choose_executor
from penstock.augment.operations import Operation
from penstock.benchmarks.augment_dali import dali_pipeline
from penstock.benchmarks.augment_passes import Contender, Share, nothing, passes_of
from penstock.benchmarks.augment_rivals import Bytes, Lacks, kornia_compose, torchvision_v2, tv_image
from penstock.errors import UserError

FUSED = {"fused_gpu": torch.float32, "fused_gpu-bf16": torch.bfloat16}
DALI = "dali-pipeline"
DALI_THREADS = 4  # for what its graph does on the CPU
AHEAD = 4
CAVEATS = {"torchvision-v2-gpu-batch": "all images of a batch have one draw of random values: another augmentation"}

Lists = Sequence[tuple[Sequence[Operation], int]]  # for each view of an image, its operations and its side


@dataclass(frozen=True)
class Gpu:
    """Where batches are made.

    Attributes:
        device: "cuda"; tests run the same code on "cpu", where Triton interprets the kernels.
        images: of a batch.
    """

    device: str
    images: int


def gpu_contenders(
    recipe: Recipe, lists: Lists, images: list[Bytes], executors: Sequence[str], gpu: Gpu
) -> list[Contender]:
    """All that can make these views on the GPU.

    Args:
        recipe: what `fused_gpu` runs, and how views are normalised.
        lists: the same, as rivals are told.
    """
    crowd = [images[k % len(images)] for k in range(gpu.images)]
    contenders = [each for name in RIVALS_ON_GPU if (each := _rival(name, recipe, lists, crowd, gpu))]
    if "fused_gpu" in executors:
        contenders += [_fused(name, recipe, crowd, gpu) for name in FUSED]
    return contenders


def _fused(name: str, recipe: Recipe, images: list[Bytes], gpu: Gpu) -> Contender:
    try:
        executor = choose_executor("fused_gpu", recipe)
    except (UserError, ImportError) as error:
        return Contender(executor=name, run=nothing, views=1, device=gpu.device, error=str(error))
    share = Share.of(images, recipe, gpu.device, FUSED[name])
    return _contender(name, passes_of(executor, recipe, [share]), recipe.count, gpu, FUSED[name])


def _rival(name: str, recipe: Recipe, lists: Lists, images: list[Bytes], gpu: Gpu) -> Contender | None:
    """None where it has no such operation or is not installed; another's error is for its row to tell."""
    try:
        return _contender(name, RIVALS_ON_GPU[name](lists, recipe, images, gpu.device), len(lists), gpu)
    except Lacks:
        return None
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return Contender(executor=name, run=nothing, views=1, device=gpu.device, error=said)


def _contender(
    name: str, run: Callable[[], Any], views: int, gpu: Gpu, writes: torch.dtype = torch.float32
) -> Contender:
    """One whose `run` makes so many views of each image."""
    on_cuda = gpu.device != "cpu"
    return Contender(
        executor=name,
        run=_paced(run) if on_cuda else run,
        views=gpu.images * views,
        writes=writes,
        device=gpu.device,
        settle=torch.cuda.synchronize if on_cuda else nothing,
        batch=gpu.images,
        own_threads=name == DALI,
    )


def _paced(run: Callable[[], Any]) -> Callable[[], Any]:
    """`run`, but no more than AHEAD passes ahead of the device: unbounded, each would take new pinned memory."""
    under_way: deque[torch.cuda.Event] = deque()

    def paced() -> Any:
        made = run()
        under_way.append(torch.cuda.current_stream().record_event())
        if len(under_way) > AHEAD:
            under_way.popleft().synchronize()
        return made

    return paced


# The rivals' passes.

Make = Callable[[Lists, Recipe, list[Bytes], str], Callable[[], Any]]


def _equal(images: list[Bytes]) -> Bytes:
    """uint8 [N, H, W, 3], of the first one's size."""
    height, width, _ = images[0].shape
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height))) for image in images])


def _planes(images: list[Bytes], device: str) -> torch.Tensor:
    """uint8 [N, 3, H, W] on the device."""
    return torch.from_numpy(_equal(images)).permute(0, 3, 1, 2).contiguous().to(device)


def _torchvision_loop(lists: Lists, recipe: Recipe, images: list[Bytes], device: str) -> Callable[[], Any]:
    steps = [torchvision_v2(operations, size, recipe) for operations, size in lists]
    taken = [tv_image(image, device) for image in images]
    return lambda: [step(image) for image in taken for step in steps]


def _torchvision_batch(lists: Lists, recipe: Recipe, images: list[Bytes], device: str) -> Callable[[], Any]:
    steps = [torchvision_v2(operations, size, recipe) for operations, size in lists]
    batch = _planes(images, device)
    return lambda: [step(batch) for step in steps]


def _kornia(lists: Lists, recipe: Recipe, images: list[Bytes], device: str) -> Callable[[], Any]:
    steps = [kornia_compose(operations, size, recipe) for operations, size in lists]
    batch = _planes(images, device)
    return lambda: [step(batch) for step in steps]


def _dali(lists: Lists, recipe: Recipe, images: list[Bytes], device: str) -> Callable[[], Any]:
    return dali_pipeline(lists, recipe, _equal(images), "cpu" if device == "cpu" else "gpu", DALI_THREADS)


RIVALS_ON_GPU: dict[str, Make] = {
    "torchvision-v2-gpu": _torchvision_loop,
    "torchvision-v2-gpu-batch": _torchvision_batch,
    "kornia": _kornia,
    DALI: _dali,
}
