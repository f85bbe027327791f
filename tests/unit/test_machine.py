"""What of the machine the process may use, against made-up cgroup trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastinfer.base import machine


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 20}[name])


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = "0::/pod/box\n"
V1 = "9:name=systemd:/\n4:cpu,cpuacct:/pod\n3:memory:/pod\n"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),  # no /proc at all
        ({"proc/self/cgroup": V2}, 8),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/cpu.max": "150000 100000\n"}, 2),  # rounded up
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/cpu.max": "1000 100000\n"}, 1),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/cpu.max": "9900000 100000\n"}, 8),  # affinity is lower
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/cpu.max": "300000 100000\n"}, 3),  # the parent's counts
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),  # a container's own mount
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/cpu.max": "nonsense"}, 8),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/cpu.max": "100000 0"}, 8),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us": "100000",
            },
            8,
        ),
        ({"proc/self/cgroup": "garbage\n::::\n0::/../../x\n"}, 8),
    ],
)
def test_usable_cores(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert machine.usable_cores(write(tmp_path, files)) == cores


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, 4 << 30),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/memory.max": "1073741824\n"}, 1 << 30),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/memory.max": "max\n"}, 4 << 30),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/memory.max": "536870912\n"}, 1 << 29),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "1073741824"}, 1 << 30),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "9223372036854771712"}, 4 << 30),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "8589934592"}, 4 << 30),
    ],
)
def test_memory(tmp_path: Path, files: dict[str, str], memory: int) -> None:
    assert machine.memory_bytes(write(tmp_path, files)) == memory
