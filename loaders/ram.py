"""How much memory this process may use: the machine's, and what the limits of its cgroups leave of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT, GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
LIMITS = ("memory.max", "memory.limit_in_bytes")  # of cgroups v2, v1


def memory_limit(root: Path = ROOT, groups: Path = GROUPS) -> int:
    """Bytes of RAM that this process may use at all.

    The total and not what is free just now, so that ranks that ask one after the other are told the same.
    """
    limits = [psutil.virtual_memory().total]
    for group in _own_groups(root, groups):
        for name in LIMITS:
            try:
                limits.append(int((group / name).read_text()))
            except (OSError, ValueError):  # not this version, or no limit: `max`
                continue
    return min(limits)


def memory_available(root: Path = ROOT, groups: Path = GROUPS) -> int:
    """Bytes of RAM to be had without swapping.

    The page cache counts as free, as it does in the kernel's own estimate.
    """
    left = [psutil.virtual_memory().available]
    for group in _own_groups(root, groups):
        left += _left_in(group)
    return max(0, min(left))


def _own_groups(root: Path, groups: Path) -> Iterator[Path]:
    """The cgroups (v2, v1) that this process is in, and those around them: each may have a limit."""
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        top = root / controllers
        folder = top / path.lstrip("/")
        for group in (folder, *folder.parents):
            yield group
            if group == top:  # what a container shows of its own is here
                break


def _left_in(group: Path) -> list[int]:
    """What a cgroup's limit leaves, or nothing where it has none."""
    for limit, used, cache in zip(
        LIMITS,
        ("memory.current", "memory.usage_in_bytes"),
        (("active_file", "inactive_file"), ("total_active_file", "total_inactive_file")),
        strict=True,
    ):
        try:
            counted = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            cached = sum(int(counted[name]) for name in cache)
            return [int((group / limit).read_text()) - int((group / used).read_text()) + cached]
        except (OSError, ValueError, KeyError):  # not this version, or no limit: `max`
            continue
    return []
