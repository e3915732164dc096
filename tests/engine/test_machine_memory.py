"""What memory this process is said to have, read from files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ossia.engine.machine_memory import MachineMemory, ProcessMemory

GIB = 1 << 30


def describe(root: Path, files: dict[str, str]) -> MachineMemory:
    meminfo = "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\nHugePages_Total:  0\n"
    for name, text in ({"proc/meminfo": meminfo} | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return MachineMemory.describe(root)


def test_without_a_control_group(tmp_path: Path) -> None:
    memory = describe(tmp_path, {})
    assert (memory.total, memory.available, memory.limit) == (16 * GIB, 8 * GIB, None)
    assert memory.usable == 16 * GIB


def test_version_2_counts_the_tightest_group(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/outer/inner\n",
        "sys/fs/cgroup/outer/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/outer/inner/memory.max": "max\n",
    }
    memory = describe(tmp_path, files)
    assert memory.limit == memory.usable == 4 * GIB


def test_version_1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/job\n1:cpu,cpuacct:/job\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",  # none
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{2 * GIB}\n",
    }
    assert describe(tmp_path, files).limit == 2 * GIB


def test_a_limit_above_the_machine_is_none(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{64 * GIB}\n"}
    assert describe(tmp_path, files).usable == 16 * GIB


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    memory = MachineMemory.describe(tmp_path)
    assert memory.available is None and memory.limit is None
    assert memory.total is None or memory.total > 0
    assert ProcessMemory.now(tmp_path) == ProcessMemory(0, 0)


def test_what_this_process_has() -> None:
    before = ProcessMemory.now()
    held = np.ones(128 << 20, np.uint8)  # more than an allocator keeps for later
    after = ProcessMemory.now()
    assert after.resident - before.resident > 96 << 20
    assert after.peak >= after.resident - (1 << 20) and held.all()
