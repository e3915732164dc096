"""What the machine is said to offer, read from files as Linux writes them."""

import pytest

from ossia.cli.machine import Machine

FILES = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Fast CPU\nflags\t\t: fpu avx2 fma avx512_vnni\n",
    "proc/meminfo": "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n",
}


def describe(tmp_path, files):
    for name, text in (FILES | files).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Machine.describe(tmp_path)


def test_without_a_control_group(tmp_path):
    machine = describe(tmp_path, {})
    assert machine.processor == "Fast CPU"
    assert machine.features == ("avx2", "fma", "avx512_vnni")
    assert machine.memory.total == 16 << 30
    assert machine.core_quota is None
    assert machine.cores >= 1


def test_version_2_counts_the_tightest_group(tmp_path):
    files = {
        "proc/self/cgroup": "0::/outer/inner\n",
        "sys/fs/cgroup/outer/cpu.max": "max 100000\n",
        "sys/fs/cgroup/outer/inner/cpu.max": "150000 100000\n",
    }
    assert describe(tmp_path, files).core_quota == 1.5


def test_version_1(tmp_path):
    files = {
        "proc/self/cgroup": "4:memory:/job\n1:cpu,cpuacct:/job\n",
        "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
    }
    assert describe(tmp_path, files).core_quota == 0.5


@pytest.mark.parametrize("quota", ["-1", "max"])
def test_no_quota(tmp_path, quota):
    files = {
        "proc/self/cgroup": "1:cpu:/\n0::/\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": f"{quota}\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu.max": f"{quota} 100000\n",
    }
    assert describe(tmp_path, files).core_quota is None


def test_a_system_that_says_nothing(tmp_path):
    machine = Machine.describe(tmp_path)
    assert machine.features == ()
    assert machine.processor
