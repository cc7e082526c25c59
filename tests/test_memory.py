"""Memory that is used again never changes under anyone who still holds it, or a part of it."""

from __future__ import annotations

import gc
import random
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from penstock.loaders.memory import KEPT, MOST, Recycler, Room

SHAPE = (4, 3, 5, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_what_is_given_out_is_as_asked_for(dtype: torch.dtype) -> None:
    tensor = Recycler().empty(SHAPE, dtype)
    assert tensor.shape == SHAPE and tensor.dtype == dtype
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert Recycler().empty((0, 3, 5, 7), dtype).shape == (0, 3, 5, 7)


def test_memory_that_nobody_holds_is_used_again() -> None:
    memory = Recycler()
    tensor = memory.empty(SHAPE, torch.float32)
    place = tensor.data_ptr()
    del tensor
    assert memory.empty((2, 3, 5, 7), torch.float32).data_ptr() != place  # another size has its own
    again = memory.empty(SHAPE, torch.float32)
    assert again.data_ptr() == place
    del again
    assert memory.empty(SHAPE[:2] + SHAPE[:1:-1], torch.int32).data_ptr() == place  # as many bytes


@pytest.mark.parametrize(
    "part",
    [
        lambda tensor: tensor,
        lambda tensor: tensor.chunk(2)[1],
        lambda tensor: tensor[1, 2, 3:],
        lambda tensor: tensor.permute(0, 2, 3, 1).flatten(1).view(torch.int32),
        lambda tensor: tensor.detach().requires_grad_(),
        lambda tensor: tensor.numpy()[2],
        lambda tensor: np.from_dlpack(tensor)[::2],
        lambda tensor: torch.from_dlpack(tensor),
        lambda tensor: tensor.untyped_storage(),
        lambda tensor: memoryview(tensor.numpy()),
    ],
    ids=["all", "half", "some", "other type", "gradient", "numpy", "numpy by DLPack", "DLPack", "storage", "buffer"],
)
def test_a_part_that_is_kept_keeps_its_memory(part) -> None:
    memory = Recycler()
    tensor = memory.empty(SHAPE, torch.float32)
    place, kept = tensor.data_ptr(), part(tensor.fill_(7))
    del tensor
    gc.collect()
    others = [memory.empty(SHAPE, torch.float32).fill_(9) for _ in range(3)]
    assert place not in [other.data_ptr() for other in others]
    del others, kept
    assert memory.empty(SHAPE, torch.float32).data_ptr() == place


def test_what_is_kept_outlives_the_recycler() -> None:
    memory = Recycler()
    tensor = memory.empty(SHAPE, torch.float32).fill_(7)
    del memory
    gc.collect()
    assert (tensor == 7).all()


def test_only_so_much_lies_ready() -> None:
    memory = Recycler()
    many = [memory.empty(SHAPE, torch.float32) for _ in range(3 * KEPT)]
    places = {tensor.data_ptr() for tensor in many}
    assert len(places) == 3 * KEPT
    many.clear()
    (ready,) = memory._free.values()
    assert len(ready) == KEPT and {array.ctypes.data for array in ready} <= places


def test_memory_of_a_kind_that_is_over_goes() -> None:
    """Views that have grown leave nothing behind but what is still held."""
    memory = Recycler()
    memory.turn_to("small")
    kept, dropped = (memory.empty(SHAPE, torch.float32).fill_(value) for value in (7, 8))
    place = dropped.data_ptr()
    del dropped
    memory.turn_to("small")  # the same: nothing changes
    dropped = memory.empty(SHAPE, torch.float32)
    assert dropped.data_ptr() == place
    del dropped
    ready = [weakref.ref(array) for shelf in memory._free.values() for array in shelf]
    assert len(ready) == 1
    memory.turn_to("large")
    assert [array() for array in ready] == [None] and not memory._free
    larger = memory.empty((2 * SHAPE[0], *SHAPE[1:]), torch.float32).fill_(9)
    assert (kept == 7).all()
    lent = kept.data_ptr()
    del kept, larger
    gc.collect()
    (shelf,) = memory._free.values()  # the large one's alone: what came back late does not lie ready either
    assert len(shelf) == 1 and shelf[0].ctypes.data != lent


def test_threads_never_share_memory() -> None:
    """Each writes its own number into what it takes, and finds it there as long as it holds it."""
    memory = Recycler()

    def work(number: int) -> None:
        rng, held = random.Random(number), []
        for turn in range(300):
            mine = 1000 * number + turn
            held.append((mine, memory.empty(SHAPE, torch.float32).fill_(mine)[1:]))
            rng.shuffle(held)
            del held[rng.randrange(1, 12) :]
            assert all((tensor == value).all() for value, tensor in held)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_a_room_grows_and_is_used_again() -> None:
    room = Room()
    first = room.take(1000)
    assert first.dtype == np.uint8 and first.shape == (1000,)
    first[:] = 7
    assert room.take(10).ctypes.data == room.take(1000).ctypes.data == first.ctypes.data
    larger = room.take(5000)
    larger[:] = 9
    assert (first == 7).all() and room.take(5001).ctypes.data == larger.ctypes.data


def test_a_room_does_not_keep_what_a_huge_image_took() -> None:
    room = Room()
    place = room.take(1000).ctypes.data
    huge = room.take(MOST + 1)
    assert huge.shape == (MOST + 1,)
    gone = weakref.ref(huge)
    del huge
    assert gone() is None and room.take(1000).ctypes.data == place
