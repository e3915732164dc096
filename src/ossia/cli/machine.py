"""What this machine offers to a model: processor, cores and memory, as far as the system says.

In a container the numbers of the machine mislead: what counts are the limits of the control group,
version 1 or 2, in which the process runs. They are read from files, all below one root, which a
test may replace.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from ossia.kernels.cores import allowed_cores, control_groups, core_quota, read_lines

_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""What of the processor's instruction sets matters to a model, under the names of /proc/cpuinfo."""
_UNLIMITED = 1 << 60  # what version 1 reports where there is no limit lies above


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes; None where this system does not say."""

    platform: str
    processor: str
    features: tuple[str, ...]
    cores: int
    """Those this process may run on; a share of processor time may allow less."""
    core_quota: float | None
    memory_total: int | None
    memory_available: int | None
    memory_limit: int | None
    """Of the control group; None also where there is none."""

    @property
    def usable_memory(self) -> int | None:
        """The most that one process can hope for."""
        known = [size for size in (self.memory_total, self.memory_limit) if size is not None]
        return min(known, default=None)

    @classmethod
    def describe(cls, root: Path = Path("/")) -> Machine:
        cpu = _colon_fields(root / "proc/cpuinfo")
        flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
        memory = _colon_fields(root / "proc/meminfo")
        return cls(
            platform=f"{platform.system()} {platform.release()}, {platform.machine()}",
            processor=cpu.get("model name") or platform.processor() or platform.machine(),
            features=tuple(name for name in _FEATURES if name in flags),
            cores=allowed_cores(),
            core_quota=core_quota(root),
            memory_total=_kibibytes(memory.get("MemTotal")) or _physical_memory(),
            memory_available=_kibibytes(memory.get("MemAvailable")),
            memory_limit=_memory_limit(root),
        )


def _colon_fields(path: Path) -> dict[str, str]:
    """The first value of each `name : value` line."""
    fields: dict[str, str] = {}
    for line in read_lines(path):
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def _kibibytes(value: str | None) -> int | None:
    return int(value.split()[0]) * 1024 if value else None


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _memory_limit(root: Path) -> int | None:
    limits = [
        int(line)
        for group in control_groups(root, "memory")
        for file in ("memory.max", "memory.limit_in_bytes")
        for line in read_lines(group / file)
        if line.isdecimal()
    ]
    return min((limit for limit in limits if limit < _UNLIMITED), default=None)
