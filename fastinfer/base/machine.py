"""The cores and memory that this process may use, by CPU affinity and limits (ulimit; cgroups v1 and v2).

In a container the machine's own numbers are too large: with threads for 64 cores and a quota of two cores, all threads
are throttled together; with a budget computed from the host's memory, the process is killed.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

_MAX_MEMORY = 1 << 62  # cgroup v1 says "unlimited" as a number near 2^63


def usable_cores(root: Path = Path("/")) -> int:
    """The number of usable cores: the CPU affinity, limited by the cgroup's quota (rounded up); at least 1.

    Args:
        root: the directory of ``proc`` and ``sys``.
    """
    cores = len(os.sched_getaffinity(0))
    for directory in _cgroups(root, "cpu"):
        quota = _quota(directory)
        if quota is not None:
            cores = min(cores, quota)
    return max(cores, 1)


def shared_memory(name: str, size: int) -> int:
    """Creates zeroed memory for several processes, and returns its file descriptor.

    The kernel treats the memory as a file and limits its size (``ulimit -f``); the soft limit is raised meanwhile.

    Raises:
        OSError: the hard limit is too low, or there is no free descriptor.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    descriptor = os.memfd_create(name)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits[1], limits[1]))
        os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return descriptor


def memory_bytes(root: Path = Path("/")) -> int:
    """The memory that the process may use: the machine's, limited by the cgroup.

    Args:
        root: the directory of ``proc`` and ``sys``.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for directory in _cgroups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _integer(_read(directory / name))
            if limit is not None and 0 < limit < _MAX_MEMORY:
                memory = min(memory, limit)
    return memory


def _quota(directory: Path) -> int | None:
    """The cores of one cgroup's quota, rounded up; None if there is no quota."""
    parts = (_read(directory / "cpu.max") or "").split()  # v2: "200000 100000" or "max 100000"
    if len(parts) != 2:
        parts = [_read(directory / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]  # v1: -1 is no quota
    quota, period = (_integer(text) for text in parts)
    if quota is None or period is None or quota <= 0 or period <= 0:
        return None
    return -(-quota // period)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The directories of this process's cgroup and of its parents, because each of their limits applies.

    In a container the kernel may report the path on the host; then only the mount's root exists, which is the
    container's cgroup.
    """
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mount = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controllers
            if not mount.exists():
                mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        yield from (mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return None


def _integer(text: str | None) -> int | None:
    try:
        return int(text) if text else None
    except ValueError:
        return None
