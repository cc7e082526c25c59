"""The order: each sample once an epoch, however many ranks, wherever a run goes on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UserError
from penstock.loaders.order import Order, permute


def epoch_of(length, batch, world, epoch=0, consumed=0, until=None, **options):
    """The samples all ranks see, step by step."""
    orders = [Order(length, batch, rank=rank, world=world, **options) for rank in range(world)]
    steps = range(orders[0].steps(consumed))[:until]
    return [order.indices(epoch, step, consumed) for step in steps for order in orders]


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 5000), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**31))
def test_permute_is_a_permutation(length, seed, epoch):
    seen = permute(np.arange(length), length, np.uint64(seed), epoch)
    assert np.array_equal(np.sort(seen), np.arange(length))


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 300), batch=st.integers(1, 20), world=st.integers(1, 5), shuffle=st.booleans())
def test_an_epoch_with_its_tail_holds_each_sample_once(length, batch, world, shuffle):
    seen = np.concatenate(epoch_of(length, batch, world, shuffle=shuffle, keep_tail=True))
    assert np.array_equal(np.sort(seen), np.arange(length))


def test_training_drops_a_different_tail_each_epoch():
    dropped = [set(range(10)) - set(np.concatenate(epoch_of(10, 4, 1, epoch=epoch)).tolist()) for epoch in range(20)]
    assert all(len(tail) == 2 for tail in dropped)
    assert len({frozenset(tail) for tail in dropped}) > 5


def test_seeds_and_epochs_shuffle_differently():
    orders = [tuple(np.concatenate(epoch_of(100, 10, 1, epoch=e, seed=s)).tolist()) for e in (0, 1) for s in (0, 1)]
    assert len(set(orders)) == 4


@pytest.mark.parametrize(("before", "after"), [((8, 4), (4, 4)), ((1, 7), (2, 5)), ((3, 4), (8, 1))])
def test_going_on_with_other_ranks_sees_each_sample_once(before, after):
    (world, batch), (new_world, new_batch) = before, after
    first = np.concatenate(epoch_of(500, batch, world, keep_tail=True, until=4))
    rest = np.concatenate(epoch_of(500, new_batch, new_world, keep_tail=True, consumed=4 * world * batch))
    assert np.array_equal(np.sort(np.concatenate([first, rest])), np.arange(500))


def test_positions_of_a_huge_set_need_no_table():
    length = 10**11
    seen = permute(np.arange(0, length, length // 1000), length, np.uint64(1), 0)
    assert len(set(seen.tolist())) == len(seen) and seen.min() >= 0 and seen.max() < length


def test_neighbours_are_torn_apart():
    seen = permute(np.arange(10_000), 10_000, np.uint64(0), 0)
    assert abs(np.corrcoef(seen[:-1], seen[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(seen, np.arange(10_000))[0, 1]) < 0.05


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match=r"--batch 64 on each of 2 ranks is larger than the data \(100 images\)"):
        Order(100, 64, world=2)
