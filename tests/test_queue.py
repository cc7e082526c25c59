"""The queue against a plain list of the last K keys."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.methods.queue import Queue
from tests.method_steps import oldest_first

K, C = 12, 3
CPU = torch.device("cpu")


def keys(number: int, count: int) -> torch.Tensor:
    return torch.randn(count, C, generator=torch.Generator().manual_seed(number))


@given(st.lists(st.integers(0, K), max_size=12))
def test_it_holds_the_last_keys_whatever_the_batches(batches: list[int]) -> None:
    """Batches that divide K, that do not, and one as long as the queue."""
    queue = Queue(K, C, seed=0, device=CPU)
    plain = list(queue.keys)
    for number, count in enumerate(batches):
        new = keys(number, count)
        queue.push(new)
        plain = (plain + list(new))[-K:]
    assert torch.equal(oldest_first(queue), torch.stack(plain))


def test_new_keys_take_the_places_of_the_oldest_and_leave_the_others() -> None:
    queue = Queue(4, C, seed=0, device=CPU)
    start, first, second = queue.keys.clone(), keys(1, 3), keys(2, 2)
    queue.push(first)
    assert torch.equal(queue.keys, torch.cat([first, start[3:]]))
    queue.push(second)  # wraps around
    assert torch.equal(queue.keys, torch.cat([second[1:], first[1:], second[:1]]))


def test_it_starts_with_random_directions_that_follow_from_the_seed() -> None:
    queue = Queue(1000, C, seed=1, device=CPU)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(1000))
    assert queue.keys.mean(0).abs().max() < 0.1
    assert torch.equal(queue.keys, Queue(1000, C, seed=1, device=CPU).keys)
    assert not torch.equal(queue.keys, Queue(1000, C, seed=2, device=CPU).keys)


def test_a_restored_queue_goes_on_where_the_saved_one_was() -> None:
    saved, restored = Queue(K, C, seed=0, device=CPU), Queue(K, C, seed=1, device=CPU)
    saved.push(keys(0, 7))
    restored.load_state_dict(saved.state_dict())
    for queue in (saved, restored):
        queue.push(keys(1, 7))
    assert torch.equal(oldest_first(saved), oldest_first(restored))


def test_keys_that_carry_a_gradient_leave_it_behind() -> None:
    queue = Queue(K, C, seed=0, device=CPU)
    queue.push(keys(0, 2).requires_grad_())
    assert not queue.keys.requires_grad and queue.keys.grad_fn is None
