"""How many cores this process may use: what affinity and the control group's quota leave."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Threads worth starting: at least 1. `root` is where /proc and /sys lie, for tests."""
    cores = allowed_cores()
    quota = core_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def allowed_cores() -> int:
    """Cores that this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def control_groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those around it, whose limits hold too."""
    for line in read_lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers == "":
            top = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        inner = Path(name.lstrip("/"))
        for group in (inner, *inner.parents):
            yield top / group


def core_quota(root: Path = Path("/")) -> float | None:
    """Processor time that the control group allows, in cores; None = no limit."""
    quotas: list[float] = []
    for group in control_groups(root, "cpu"):
        text = " ".join(
            read_lines(group / "cpu.max")  # version 2: both numbers; version 1: one file each
            or read_lines(group / "cpu.cfs_quota_us") + read_lines(group / "cpu.cfs_period_us")
        )
        quota, _, period = text.partition(" ")
        if quota.isdecimal() and period.isdecimal():  # "max" and −1 are no limit
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def read_lines(path: Path) -> list[str]:
    """Of a file that may not be there; then none."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
