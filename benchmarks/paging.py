"""Decoding with a model larger than memory: how much of the disk's bandwidth becomes experts read.

    python benchmarks/paging.py --folder models [--layers 16] [--limit-gib 13] [--expert-gb 10]

A random checkpoint of 120b shape (30 GB at 16 layers) decodes one sequence of random tokens in
processes under a memory limit below its size (a control group, which must be allowed), from a cold
file: `hot set`, with expert_bytes, and `kernel alone`, where pages come and go by demand. Between
windows of decoding, the same file is read in large pieces by several threads past the page cache; a
window's share is its own rate of bytes against the readings on both sides. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from peer_ossia import OssiaEngine
from peer_plan import Plan, Stopwatch, memory
from random_model import ModelFiles, ensure_checkpoint, progress_line, shape_config

from ossia.cli.machine import Machine
from ossia.errors import OssiaError, UsageError
from ossia.kernels.native import NativeKernels
from ossia.model.checkpoint import open_checkpoint
from ossia.model.transformer import Architecture, prepare_weights

HOT_SET, KERNEL_ALONE = "hot set", "kernel alone"
_LEFT_FREE = 8_000_000_000
_PROBE_BYTES, _PROBE_PIECE, _PROBE_THREADS = 1 << 29, 4 << 20, 4
_GROUPS = Path("/sys/fs/cgroup")
_FULL_SETS = 2  # the warm-up reads as many bytes as this many hot sets, or this many limits

Sample = dict[str, Any]


# -- The measured process ----------------------------------------------------------------------


class _UnpagedKernels(NativeKernels):
    """Experts neither read at load nor paged: what demand paging alone makes of them."""

    def __init__(self, threads: int) -> None:
        super().__init__(num_threads=threads)
        self._pages_experts = True  # only says that `prepare` leaves their pages alone


class PagedEngine(OssiaEngine):
    """`OssiaEngine` on given kernels."""

    def __init__(self, plan: Plan, kernels: NativeKernels) -> None:
        self._chunk = plan.chunk
        self._checkpoint = open_checkpoint(plan.model)
        self._config = self._checkpoint.config
        self._architecture = Architecture.of(self._config)
        self._kernels, self._why = kernels, "given"
        self._weights = prepare_weights(self._architecture, kernels, self._checkpoint.part)
        self._sequences = []
        self._probed = []


class DiskProbe:
    """Reads the model's files past the page cache, a different stretch at each call."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in files]
        pieces = [
            (file, at)
            for file in self._files
            for at in range(0, os.fstat(file).st_size - _PROBE_PIECE, _PROBE_PIECE)
        ]
        self._pieces = itertools.cycle(pieces)
        self._buffers = [mmap.mmap(-1, _PROBE_PIECE) for _ in range(_PROBE_THREADS)]
        for buffer in self._buffers:
            buffer.write(bytes(_PROBE_PIECE))

    def bytes_per_s(self) -> float:
        jobs = itertools.islice(self._pieces, _PROBE_BYTES // _PROBE_PIECE)
        lock = threading.Lock()

        def read(buffer: mmap.mmap) -> None:
            while True:
                with lock:
                    job = next(jobs, None)
                if job is None:
                    return
                os.preadv(job[0], [buffer], job[1])

        threads = [threading.Thread(target=read, args=(buffer,)) for buffer in self._buffers]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return _PROBE_BYTES / (time.perf_counter() - start)


def _disk_bytes() -> int:
    """Read from disk by this process so far; read-ahead included."""
    fields = dict(
        line.split(": ") for line in Path("/proc/self/io").read_text().strip().split("\n")
    )
    return int(fields["read_bytes"])


def _child(work: Sample) -> Iterator[Sample]:
    """Samples of one process: load, warm-up, windows."""
    plan = Plan(**work["plan"])
    hot_set = work["mode"] == HOT_SET
    start = time.perf_counter()
    kernels = (
        NativeKernels(num_threads=plan.threads, expert_bytes=work["expert_bytes"])
        if hot_set
        else _UnpagedKernels(plan.threads)
    )
    engine = PagedEngine(plan, kernels)
    engine.open([plan.tokens_of(0, plan.context)])
    yield {"kind": "load", "seconds": time.perf_counter() - start}
    probe = DiskProbe([Path(path) for path in work["files"]])
    start, before, position = time.perf_counter(), _disk_bytes(), 0
    while position < work["warm_up"]:
        engine.advance(position, 1)
        position += 1
        if _disk_bytes() - before >= work["warm_up_bytes"]:
            break
    yield {"kind": "warm up", "tokens": position, "seconds": time.perf_counter() - start}
    bandwidth = probe.bytes_per_s()
    for _ in range(plan.windows):
        counts, before, watch = kernels.paged_experts(), _disk_bytes(), Stopwatch()
        for _ in range(plan.steps):
            engine.advance(position, 1)
            position += 1
        elapsed, read = watch.read(), _disk_bytes() - before
        after, previous = probe.bytes_per_s(), bandwidth
        bandwidth = after
        now = kernels.paged_experts()
        yield {
            "kind": "window",
            "tokens": plan.steps,
            **elapsed,
            "disk_bytes": read,
            "disk_bytes_per_s": (previous + after) / 2,
            **{name: now[name] - counts[name] for name in now},
        }
    yield memory("end")


def _run_child() -> int:
    work = json.load(sys.stdin)
    if work["group"]:
        Path(work["group"], "cgroup.procs").write_text("0")
    samples = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        for sample in _child(work):
            print(json.dumps(sample), file=samples, flush=True)
    except (OssiaError, MemoryError) as failure:
        print(json.dumps({"kind": "error", "message": str(failure)}), file=samples, flush=True)
        return 1
    return 0


# -- The limit ---------------------------------------------------------------------------------


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path | None]:
    """A control group that takes processes up to a limit, page cache included; None, and one
    sentence on standard error, where none can be made.
    """
    version_1 = _GROUPS / "memory"
    root, limit = (
        (version_1, "memory.limit_in_bytes") if version_1.is_dir() else (_GROUPS, "memory.max")
    )
    group = root / f"ossia-paging-{os.getpid()}"
    try:
        group.mkdir()
        try:
            (group / limit).write_text(str(limit_bytes))
        except OSError:
            group.rmdir()
            raise
    except OSError as failure:
        print(
            f"note: no memory limit, as no control group can be made ({failure}); only the hot set "
            "is bounded, by --expert-gb.",
            file=sys.stderr,
        )
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def _drop_from_cache(files: Sequence[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# -- Running and telling -----------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    checkpoint: Path
    limit_bytes: int
    expert_bytes: int
    threads: int
    windows: int
    steps: int
    warm_up: int

    @property
    def files(self) -> list[Path]:
        return sorted(self.checkpoint.glob("*.safetensors"))

    def work(self, mode: str, group: Path | None) -> Sample:
        length = self.warm_up + self.windows * self.steps
        config = open_checkpoint(self.checkpoint).config
        rng = random.Random(0)
        plan = Plan(
            model=str(self.checkpoint),
            threads=self.threads,
            tokens=[rng.randrange(config.vocab_size) for _ in range(length)],
            context=length,
            windows=self.windows,
            steps=self.steps,
        )
        full = self.expert_bytes if mode == HOT_SET else self.limit_bytes
        return {
            "mode": mode,
            "plan": asdict(plan),
            "group": str(group) if group else None,
            "files": [str(path) for path in self.files],
            "expert_bytes": self.expert_bytes,
            "warm_up": self.warm_up,
            "warm_up_bytes": _FULL_SETS * full,
        }


def measure(setting: Setting, mode: str) -> list[Sample]:
    """The samples of one mode, in a process of its own under the limit, from a cold file."""
    _drop_from_cache(setting.files)
    samples: list[Sample] = []
    with memory_group(setting.limit_bytes) as group:
        done = subprocess.run(
            [sys.executable, __file__, "--child"],
            input=json.dumps(setting.work(mode, group)),
            capture_output=True,
            text=True,
            check=False,
        )
        samples += [{"mode": mode, **json.loads(line)} for line in done.stdout.splitlines()]
        peak = group / "memory.max_usage_in_bytes" if group else None
        if peak is not None and not peak.exists():
            peak = peak.with_name("memory.peak")
        if peak is not None and peak.exists():
            samples.append({"mode": mode, "kind": "group", "peak_bytes": int(peak.read_text())})
    errors = [sample["message"] for sample in samples if sample["kind"] == "error"]
    if errors or done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise UsageError(f"{mode}: the measured process failed: {(errors or last)[0]}")
    return samples


def summary(samples: Sequence[Sample], mode: str) -> dict[str, float]:
    """Medians over the windows of a mode; bytes and experts per token, rates per second."""
    own = [sample for sample in samples if sample["mode"] == mode]
    windows = [sample for sample in own if sample["kind"] == "window"]
    needed = "bytes_read" if mode == HOT_SET else "disk_bytes"

    def median(name: str, per: str) -> float:
        return statistics.median(window.get(name, 0) / window[per] for window in windows)

    shares = sorted(
        window[needed] / window["seconds"] / window["disk_bytes_per_s"] for window in windows
    )
    peaks = {sample["kind"]: sample.get("peak_bytes", 0) for sample in own}
    load, warm = (
        next(sample["seconds"] for sample in own if sample["kind"] == kind)
        for kind in ("load", "warm up")
    )
    return {
        "tokens_per_s": median("tokens", "seconds"),
        "hits": median("hits", "tokens"),
        "misses": median("misses", "tokens"),
        "missed_bytes": median("bytes_read", "tokens"),
        "disk_bytes": median("disk_bytes", "tokens"),
        "disk_bytes_per_s": statistics.median(window["disk_bytes_per_s"] for window in windows),
        "share": statistics.median(shares),
        "share_least": shares[0],
        "share_most": shares[-1],
        "other_cores": statistics.median(window["other_cores"] for window in windows),
        "process_peak_bytes": peaks.get("memory", 0),
        "group_peak_bytes": peaks.get("group", 0),
        "load_seconds": load,
        "warm_up_seconds": warm,
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown: a line for each mode."""
    lines = [
        "| | tokens/s | experts hit, missed per token | missed, read from disk per token | disk "
        "| share of the disk | peak: process, group | other cores busy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for mode, row in found.items():
        experts = f"{row['hits']:.1f}, {row['misses']:.1f}" if mode == HOT_SET else "—"
        missed = f"{row['missed_bytes'] / 1e6:.0f} MB" if mode == HOT_SET else "—"
        lines.append(
            f"| {mode} | {row['tokens_per_s']:.2f} | {experts} "
            f"| {missed}, {row['disk_bytes'] / 1e6:.0f} MB | {row['disk_bytes_per_s'] / 1e9:.2f} "
            f"GB/s | {row['share']:.0%} ({row['share_least']:.0%}–{row['share_most']:.0%}) "
            f"| {row['process_peak_bytes'] / 2**30:.1f}, {row['group_peak_bytes'] / 2**30:.1f} GiB "
            f"| {row['other_cores']:.1f} |"
        )
    return "\n".join(lines)


def _save(
    options: argparse.Namespace, samples: Sequence[Sample], found: dict[str, dict[str, float]]
) -> Path:
    now = datetime.now().astimezone()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=_HERE
    )
    values = {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": asdict(Machine.describe()),
        "options": {
            name: value
            for name, value in vars(options).items()
            if name not in ("folder", "results", "child")
        },
        "summary": found,
        "samples": samples,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"paging-{now:%Y-%m-%d-%H%M}.json"
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return path


_HERE = Path(__file__).resolve().parent


def _checkpoint(options: argparse.Namespace) -> Path:
    """The checkpoint, written if need be and if the disk keeps enough beside it."""
    config = shape_config(options.shape, options.layers)
    files = ModelFiles(options.folder, options.shape, config.num_hidden_layers)
    if not files.checkpoint.exists():
        experts = config.num_hidden_layers * config.num_local_experts
        needed = experts * config.hidden_size * config.intermediate_size * 3 * 17 // 32
        existing = next(path for path in (options.folder, *options.folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if free < needed * 1.12 + _LEFT_FREE:
            raise UsageError(
                f"{options.folder}: about {needed * 1.12 / 1e9:.0f} GB are needed with 8 GB to "
                f"spare, {free / 1e9:.0f} GB are free; choose fewer --layers or another --folder."
            )
    return ensure_checkpoint(files, progress=progress_line(files.checkpoint.name))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--child", action="store_true", help=argparse.SUPPRESS)
    add("--folder", type=Path, help="where the model is kept; it stays there")
    add("--shape", default="120b")
    add("--layers", type=int, default=16)
    add("--limit-gib", type=float, default=13.0, help="memory of the measured process")
    add("--expert-gb", type=float, default=10.0, help="of it, experts kept")
    add("--threads", type=int, default=Machine.describe().cores)
    add("--windows", type=int, default=8)
    add("--steps", type=int, default=4, help="tokens of each window")
    add("--warm-up", type=int, default=48, help="tokens decoded before, at most")
    add("--modes", default=f"{HOT_SET},{KERNEL_ALONE}", help="which of the two, and in what order")
    add("--results", type=Path, default=_HERE / "results")
    options = parser.parse_args()
    if options.child:
        return _run_child()
    modes = options.modes.split(",")
    try:
        if options.folder is None:
            raise UsageError("--folder is needed: where about 30 GB may be written.")
        if not modes or set(modes) - {HOT_SET, KERNEL_ALONE}:
            raise UsageError(f"--modes takes {HOT_SET},{KERNEL_ALONE}; got {options.modes}.")
        setting = Setting(
            checkpoint=_checkpoint(options),
            limit_bytes=int(options.limit_gib * 2**30),
            expert_bytes=int(options.expert_gb * 1e9),
            threads=options.threads,
            windows=options.windows,
            steps=options.steps,
            warm_up=options.warm_up,
        )
        samples = [sample for mode in modes for sample in measure(setting, mode)]
    except OssiaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = {mode: summary(samples, mode) for mode in modes}
    print(table(found))
    for mode, row in found.items():
        print(
            f"{mode}: loaded in {row['load_seconds']:.0f} s, warm in {row['warm_up_seconds']:.0f} s"
        )
    print(f"saved: {_save(options, samples, found).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
