"""How much memory this process may use, as far as the system says.

In a container the numbers of the machine mislead: what counts are the limits of the control group,
version 1 or 2, in which the process runs. They are read from files, all below one root, which a
test may replace.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ossia.kernels.cores import control_groups, read_lines

_UNLIMITED = 1 << 60  # what version 1 reports where there is no limit lies above


@dataclass(frozen=True)
class MachineMemory:
    """Sizes in bytes; None where this system does not say."""

    total: int | None
    available: int | None
    """Free, or held only to speed up reading files: the mapped files of a model too."""
    limit: int | None
    """Of the control group; None also where there is none."""

    @property
    def usable(self) -> int | None:
        """The most that one process can hope for."""
        known = [size for size in (self.total, self.limit) if size is not None]
        return min(known, default=None)

    @classmethod
    def describe(cls, root: Path = Path("/")) -> MachineMemory:
        """`root` is where /proc and /sys lie, for tests."""
        fields: dict[str, int] = {}
        for line in read_lines(root / "proc/meminfo"):
            name, _, value = line.partition(":")
            fields[name] = int(value.split()[0]) * 1024  # "kB" means KiB there
        return cls(
            total=fields.get("MemTotal") or _physical(),
            available=fields.get("MemAvailable"),
            limit=_limit(root),
        )


@dataclass(frozen=True)
class ProcessMemory:
    """What this process has in memory, mapped files included; 0 where the system does not say."""

    resident: int
    peak: int

    @classmethod
    def now(cls, root: Path = Path("/")) -> ProcessMemory:
        fields: dict[str, int] = {}
        for line in read_lines(root / "proc/self/status"):
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                fields[name] = int(value.split()[0]) * 1024
        return cls(resident=fields.get("VmRSS", 0), peak=fields.get("VmHWM", 0))


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _limit(root: Path) -> int | None:
    limits = [
        int(line)
        for group in control_groups(root, "memory")
        for file in ("memory.max", "memory.limit_in_bytes")
        for line in read_lines(group / file)
        if line.isdecimal()
    ]
    return min((limit for limit in limits if limit < _UNLIMITED), default=None)
