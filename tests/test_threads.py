"""The thread budget: what the machine grants, and pools that leave the caller's torch alone."""

from __future__ import annotations

import os
import threading

import cv2
import pytest
import torch

from penstock.augment import albumentations
from penstock.augment.operations import Albumentations
from penstock.errors import UserError
from penstock.loaders import threads
from penstock.loaders.torchvision_baseline import OnArray


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_the_container_s_quota_is_read(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads._cgroup_quota(tmp_path) == expected


@pytest.mark.parametrize(("affinity", "quota", "expected"), [(8, None, 8), (8, 2.5, 3), (2, 16.0, 2), (1, 0.2, 1)])
def test_available_cpus_is_the_smaller_of_affinity_and_quota(monkeypatch, affinity, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    monkeypatch.setattr(threads, "_cgroup_quota", lambda: quota)
    assert threads.available_cpus() == expected


def test_workers_compute_on_one_thread_and_the_caller_keeps_its_own():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads.one_thread_each(3, "test") as pool:
            assert list(pool.map(lambda _: torch.get_num_threads(), range(6))) == [1] * 6
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_that_cannot_be_had_are_refused_and_none_is_left_waiting(monkeypatch):
    before, start, count = torch.get_num_threads(), threading.Thread.start, threading.active_count()

    def three_at_most(thread):
        if threading.active_count() - count == 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", three_at_most)
    with pytest.raises(UserError, match=r"--workers 9: .*fewer"):
        threads.one_thread_each(9, "test")
    assert threading.active_count() == count and torch.get_num_threads() == before


@pytest.mark.parametrize(
    "make",
    [lambda: albumentations.check("RandomFog", {}), lambda: OnArray(Albumentations(transform="RandomFog"), 32)],
    ids=["the executors'", "the baseline's"],
)
def test_opencv_computes_on_the_thread_that_calls_it(make):
    before = cv2.getNumThreads()
    albumentations.load_package.cache_clear()  # else it may have been imported, and OpenCV been told
    cv2.setNumThreads(before + 2)
    try:
        make()
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)
