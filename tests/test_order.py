"""The order: each sample once an epoch, however many ranks, wherever a run goes on; and how well quasi-random mixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UserError
from penstock.loaders import order as order_module
from penstock.loaders.order import (
    Order,
    Quasi,
    choose_shuffle,
    fits_in_memory,
    lay_out,
    permute,
    shuffle_windows,
    window_of,
)
from penstock.loaders.ram import memory_limit

SHUFFLES = st.one_of(
    st.booleans(),
    st.builds(lambda block, more: Quasi(block=block, window=block + more), st.integers(1, 60), st.integers(0, 200)),
)


def epoch_of(length, batch, world, epoch=0, consumed=0, until=None, **options):
    """The samples all ranks see, step by step."""
    orders = [Order(length, batch, rank=rank, world=world, **options) for rank in range(world)]
    steps = range(orders[0].steps(consumed))[:until]
    return [order.indices(epoch, step, consumed) for step in steps for order in orders]


def whole(length, batch=64, epoch=0, **options):
    """One rank's epoch, [N]."""
    return np.concatenate(epoch_of(length, batch, 1, epoch, keep_tail=True, **options))


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 5000), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**31))
def test_permute_is_a_permutation(length, seed, epoch):
    seen = permute(np.arange(length), length, np.uint64(seed), epoch)
    assert np.array_equal(np.sort(seen), np.arange(length))


@settings(deadline=None, max_examples=100)
@given(
    length=st.integers(1, 5000),
    block=st.integers(1, 6000),
    window=st.integers(1, 6000),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**31),
)
def test_both_halves_of_the_quasi_random_order_are_permutations(length, block, window, seed, epoch):
    places = shuffle_windows(np.arange(length), length, window, np.uint64(seed), epoch)
    assert np.array_equal(np.sort(places), np.arange(length))
    samples = lay_out(np.arange(length), length, block, np.uint64(seed), epoch)
    assert np.array_equal(np.sort(samples), np.arange(length))


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 300), batch=st.integers(1, 20), world=st.integers(1, 5), shuffle=SHUFFLES)
def test_an_epoch_with_its_tail_holds_each_sample_once(length, batch, world, shuffle):
    seen = np.concatenate(epoch_of(length, batch, world, shuffle=shuffle, keep_tail=True))
    assert np.array_equal(np.sort(seen), np.arange(length))


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 600),
    stages=st.lists(st.tuples(st.sampled_from([1, 3, 4, 8, 16]), st.integers(1, 9), st.integers(0, 5)), max_size=3),
    shuffle=SHUFFLES,
    epoch=st.integers(0, 9),
)
def test_going_on_with_other_ranks_again_and_again_sees_what_one_rank_sees(length, stages, shuffle, epoch):
    """(ranks, batch, steps until the next interruption), then one rank to the end."""
    seen, consumed = [np.empty(0, np.int64)], 0
    for world, batch, steps in [*stages, (1, 64, None)]:
        seen += epoch_of(length, batch, world, epoch, consumed, steps, shuffle=shuffle, keep_tail=True)
        consumed = sum(map(len, seen))
    assert np.array_equal(np.concatenate(seen), whole(length, epoch=epoch, shuffle=shuffle))


def test_training_drops_a_different_tail_each_epoch():
    dropped = [set(range(10)) - set(np.concatenate(epoch_of(10, 4, 1, epoch=epoch)).tolist()) for epoch in range(20)]
    assert all(len(tail) == 2 for tail in dropped)
    assert len({frozenset(tail) for tail in dropped}) > 5


@pytest.mark.parametrize("shuffle", [True, Quasi(block=4, window=24)])
def test_seeds_and_epochs_shuffle_differently(shuffle):
    orders = {tuple(whole(100, epoch=epoch, seed=seed, shuffle=shuffle)) for epoch in (0, 1) for seed in (0, 1)}
    assert len(orders) == 4


def test_orders_stay_what_they_are():
    """A checkpoint counts samples: were these to change, a run would see some twice and others never."""
    full, quasi = Order(1000, 6, seed=7), Order(1000, 6, seed=7, shuffle=Quasi(block=30, window=200))
    assert full.indices(3, 100).tolist() == [362, 888, 319, 9, 232, 213]
    assert quasi.indices(3, 100).tolist() == [970, 866, 989, 858, 981, 840]


@pytest.mark.parametrize(("before", "after"), [((8, 4), (4, 4)), ((1, 7), (2, 5)), ((3, 4), (8, 1))])
def test_going_on_with_other_ranks_sees_each_sample_once(before, after):
    (world, batch), (new_world, new_batch) = before, after
    first = np.concatenate(epoch_of(500, batch, world, keep_tail=True, until=4))
    rest = np.concatenate(epoch_of(500, new_batch, new_world, keep_tail=True, consumed=4 * world * batch))
    assert np.array_equal(np.sort(np.concatenate([first, rest])), np.arange(500))


@pytest.mark.parametrize("shuffle", [True, Quasi(block=100, window=10**6)])
def test_positions_of_a_huge_set_need_no_table(shuffle):
    length = 10**11
    order = Order(length, 1, shuffle=shuffle)
    seen = np.concatenate([order.indices(0, step) for step in range(0, length, length // 1000)])
    assert len(set(seen.tolist())) == len(seen) and seen.min() >= 0 and seen.max() < length


def test_neighbours_are_torn_apart():
    seen = permute(np.arange(10_000), 10_000, np.uint64(0), 0)
    assert abs(np.corrcoef(seen[:-1], seen[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(seen, np.arange(10_000))[0, 1]) < 0.05


def test_a_window_reads_only_its_blocks():
    length, shuffle = 10_007, Quasi(block=50, window=1000)
    seen = whole(length, shuffle=shuffle)
    windows = [np.unique([window_of(p, length, 1000)[0] == w for p in range(length)]) for w in range(2)]
    assert all(len(found) == 2 for found in windows)
    for start, size in {window_of(position, length, 1000)[1:] for position in range(length)}:
        assert 900 < size <= 1000
        assert len(np.unique(seen[start : start + size] // 50)) <= 1000 // 50 + 2  # and parts of two more


@settings(deadline=None, max_examples=40)
@given(length=st.integers(1, 2000), block=st.integers(1, 70), batch=st.integers(1, 90), consumed=st.integers(0, 2000))
def test_what_is_read_ahead_is_there_in_time_and_read_once(length, block, batch, consumed):
    order = Order(length, batch, shuffle=Quasi(block=block, window=block + 100), keep_tail=True)
    read = np.zeros(length, int)
    for step in range(order.steps(consumed)):
        for first, last in order.ahead(2, step, consumed):
            read[first:last] += 1
        assert read[order.indices(2, step, consumed)].all()
    assert read.max() <= 1
    assert consumed or read.all()


def test_the_quasi_random_order_is_read_ahead_block_by_block():
    order = Order(10_000, 100, shuffle=Quasi(block=50, window=1000))
    assert len(order.ahead(0, 0)) <= 1100 // 50 + 2
    assert len(order.ahead(0, 5)) <= 100 // 50 + 2
    assert len(order.ahead(0, 99)) == len(Order(10_000, 100).ahead(0, 0)) == 0


def test_samples_of_different_blocks_meet_as_often_as_in_a_full_permutation():
    """Pairs in a batch, counted over epochs and held against (batch - 1) / (samples - 1), by how far apart they lie."""
    samples, block, window, batch, epochs = 2048, 16, 512, 32, 200
    blocks = samples // block
    met = np.zeros(blocks)  # by distance in blocks
    for epoch in range(epochs):
        seen = whole(samples, batch, epoch, shuffle=Quasi(block=block, window=window)).reshape(-1, batch) // block
        met += np.bincount(np.abs(seen[:, :, None] - seen[:, None]).ravel(), minlength=blocks)
    met[0] -= epochs * samples  # each sample with itself
    pairs = np.array([samples * (block - 1), *(2 * block**2 * (blocks - apart) for apart in range(1, blocks))])
    chance = epochs * (batch - 1) / (samples - 1)
    distances = [slice(0, 1), slice(1, 3), slice(3, 30), slice(30, 60), slice(60, blocks)]
    rates = [met[some].sum() / pairs[some].sum() / chance for some in distances]
    assert rates[0] == pytest.approx(samples / window, rel=0.1)  # of one block: as if the window were the whole set
    assert rates[1:] == pytest.approx([1, 1, 1, 1], abs=0.05)  # of neighbouring blocks, and of ever farther ones


@pytest.mark.parametrize("sample", [0, 1000, 2046])  # the last one is of the short block
def test_over_epochs_a_sample_comes_in_any_window(sample):
    order = Order(2047, 1, shuffle=Quasi(block=40, window=512), keep_tail=True)
    window = [np.flatnonzero(whole(2047, epoch=e, shuffle=order.shuffle) == sample)[0] // 512 for e in range(400)]
    assert np.bincount(window, minlength=4).min() > 60  # of 100 expected, 4.6 deviations below


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match=r"--batch 64 on each of 2 ranks is larger than the data \(100 images\)"):
        Order(100, 64, world=2)


@pytest.mark.parametrize("name", ["full", "stored", "quasi:64:4096"])
def test_an_order_s_name_makes_the_same_order(name):
    shuffle = choose_shuffle(name, samples=1000, stored_bytes=None)
    assert Order(1000, 10, shuffle=shuffle).name == name


def test_auto_shuffles_in_full_what_fits_in_memory(monkeypatch):
    monkeypatch.setattr(order_module, "memory_limit", lambda: 30 << 30)
    assert fits_in_memory(15 << 30) and not fits_in_memory((15 << 30) + 1)
    assert choose_shuffle("auto", samples=1000, stored_bytes=15 << 30) is True
    assert choose_shuffle("auto", samples=1000, stored_bytes=None) is True  # files, wherever they lie
    imagenet = choose_shuffle("auto", samples=1_280_000, stored_bytes=128 << 30)
    assert imagenet == Quasi(block=78, window=20_000)  # 8 MiB and 2 GiB of 107 KB each
    assert imagenet == choose_shuffle("quasi", samples=1_280_000, stored_bytes=128 << 30)
    monkeypatch.setattr(order_module, "memory_limit", lambda: (30 << 30) + 4096)  # another machine of this kind
    assert imagenet == choose_shuffle("quasi", samples=1_280_000, stored_bytes=128 << 30)


@pytest.mark.parametrize("stored_bytes", [1, 10**6, 10**12])
def test_blocks_and_windows_of_any_shard_can_be_used(stored_bytes, monkeypatch):
    monkeypatch.setattr(order_module, "memory_limit", lambda: 1 << 20)  # less than a block
    shuffle = choose_shuffle("quasi", samples=100, stored_bytes=stored_bytes)
    assert np.array_equal(np.sort(whole(100, shuffle=shuffle)), np.arange(100))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("random", "--order 'random' is not known: choose auto, full"),
        ("quasi:64", "--order 'quasi:64' is not known"),
        ("quasi:a:b", "--order 'quasi:a:b' is not known"),
        ("quasi:64:32", "quasi:64:32: a block holds at least one sample, and a window at least one block"),
        ("quasi:0:32", "quasi:0:32: a block"),
        ("quasi", "--order quasi: only in a shard"),
    ],
)
def test_wrong_orders_are_refused(name, said):
    with pytest.raises(UserError, match=said):
        choose_shuffle(name, samples=100, stored_bytes=None)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "1048576\n"}, 1 << 20),
        ({"job/memory.max": "1048576\n", "memory.max": "max"}, 1 << 20),
        ({"memory.max": "max\n"}, None),
        ({"memory/memory.limit_in_bytes": "2097152\n"}, 2 << 20),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({}, None),
    ],
)
def test_the_container_s_memory_is_read(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    groups = tmp_path / "groups"
    groups.write_text("4:memory:/job\n0::/job/step\n")
    assert memory_limit(tmp_path, groups) == (expected or memory_limit(tmp_path / "none", groups)) > 0
