"""The one thread budget: how many CPUs this process may use, and pools that stay within it."""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch

from penstock.errors import UserError


def available_cpus() -> int:
    """CPUs this process may use: its affinity, cut by the cgroup's quota (v2 or v1), at least 1."""
    cpus = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return max(1, min(cpus, math.ceil(quota)) if quota else cpus)


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs' worth of time that the container's cgroup grants, or None where there is no limit."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def one_thread_each(workers: int, name: str) -> ThreadPoolExecutor:
    """A pool of threads in which torch's own operations use one thread, leaving the caller's setting alone.

    torch keeps its count per thread, copied from a process-wide value when a thread first asks for it. So each
    worker asks, then sets 1 for itself, and the process-wide value is put back once all have.

    Raises:
        UserError: so many threads cannot be had.
    """
    before = torch.get_num_threads()
    started = threading.Barrier(workers + 1)

    def start() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        with suppress(threading.BrokenBarrierError):
            started.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix=name, initializer=start)
    try:
        for _ in range(workers):  # a pool starts a thread per submitted call while none is idle
            pool.submit(int)
        started.wait()
    except RuntimeError as error:
        started.abort()  # else those that did start would wait for ever, and the interpreter for them
        pool.shutdown()
        raise UserError(f"--workers {workers}: the system gives no more threads ({error}); use fewer") from error
    finally:
        torch.set_num_threads(before)
    return pool
