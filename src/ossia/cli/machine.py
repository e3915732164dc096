"""What this machine offers to a model: processor, cores and memory, as far as the system says. All
of it is read from files below one root, which a test may replace.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from ossia.engine.machine_memory import MachineMemory
from ossia.kernels.cores import allowed_cores, core_quota, read_lines

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


@dataclass(frozen=True)
class Machine:
    """What is None or empty, this system does not say."""

    platform: str
    processor: str
    features: tuple[str, ...]
    cores: int
    """Those this process may run on; a share of processor time may allow less."""
    core_quota: float | None
    memory: MachineMemory

    @classmethod
    def describe(cls, root: Path = Path("/")) -> Machine:
        cpu = _colon_fields(root / "proc/cpuinfo")
        flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
        return cls(
            platform=f"{platform.system()} {platform.release()}, {platform.machine()}",
            processor=cpu.get("model name") or platform.processor() or platform.machine(),
            features=tuple(name for name in _FEATURES if name in flags),
            cores=allowed_cores(),
            core_quota=core_quota(root),
            memory=MachineMemory.describe(root),
        )


def _colon_fields(path: Path) -> dict[str, str]:
    """The first value of each `name : value` line."""
    fields: dict[str, str] = {}
    for line in read_lines(path):
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields
