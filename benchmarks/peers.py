"""Ossia and llama.cpp side by side: the same random model, prompts and threads, one engine after
the other, round by round.

    python benchmarks/peers.py --folder models --llama-python PYTHON [--layers N] [--rounds 3]

Prefill, decode at depths, batched decode, peak resident memory, and the time from process start to
the first token with the file in the page cache. Every round starts both engines anew, in turns. The
table shows medians and ranges, its ratios compare the two within a round; all samples go with the
machine's description to benchmarks/results/, after each round, so that a run that is stopped keeps
those it finished. LLAMA-PYTHON is an interpreter with llama-cpp-python (built for this processor:
CMAKE_ARGS=-DGGML_NATIVE=ON) and gguf. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from peer_plan import Plan, Stopwatch
from peer_table import DISTURBED, Sample, agreement, rows, summary, table
from random_model import (
    SHAPES,
    ModelFiles,
    ensure_checkpoint,
    ensure_gguf,
    progress_line,
    shape_config,
)

from ossia.cli.machine import Machine
from ossia.errors import OssiaError, UsageError

_HERE = Path(__file__).resolve().parent
COMMAND = "python benchmarks/peers.py"
_READ_BYTES = 1 << 24
_QUIET_SECONDS = 3.0


@dataclass(frozen=True)
class Peer:
    """One of the two engines and its files."""

    name: str
    python: str
    script: str
    model: Path
    options: dict[str, Any]

    @property
    def files(self) -> list[Path]:
        if self.model.is_file():
            return [self.model]
        return sorted(self.model.glob("*.safetensors"))


def main() -> int:
    options = command_line().parse_args()
    record, status = Record(options), 0
    try:
        _check(options)
        files = ModelFiles(
            options.folder,
            options.shape,
            shape_config(options.shape, options.layers).num_hidden_layers,
        )
        peers = list(_peers(options, files))
        plan = _plan(options)
        for number in range(options.rounds):
            record.add(_round(number, options, plan, peers))
    except OssiaError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        kept = "" if record.rounds else "; no round was finished, nothing is kept"
        print(f"\nstopped{kept}.", file=sys.stderr)
        status = 130
    if record.rounds:
        record.show()
    return status


def command_line() -> argparse.ArgumentParser:
    """Every option and its default."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where the random models are, or are put")
    add("--shape", default="20b", help=f"one of {', '.join(SHAPES)}")
    add("--layers", type=int, help="a model of only so many layers, for a quick run")
    add("--only", choices=("ossia", "llama.cpp"), help="run one of the two")
    add("--threads", type=int, default=Machine.describe().cores)
    add("--rounds", type=int, default=3)
    add("--prefill", type=int, nargs="*", default=[512, 2048], help="lengths of prompts")
    add("--depths", type=int, nargs="*", default=[0, 4096], help="where decoding is measured")
    add("--sequences", type=int, nargs="*", default=[1, 2, 4, 8, 16], help="that decode together")
    add("--windows", type=int, default=10, help="samples of each decode")
    add("--steps", type=int, default=4, help="tokens of each sequence in a window")
    add("--context", type=int, default=8192, help="positions that the cache holds")
    add("--chunk", type=int, default=512, help="tokens of a prompt computed together, in both")
    add("--seed", type=int, default=0, help="of the prompts")
    add("--kernels", default="native", help="Ossia's kernel set")
    add("--llama-python", help="an interpreter with llama-cpp-python and gguf")
    add("--llama-flash-attention", choices=("auto", "on", "off"), default="auto")
    add("--llama-no-repack", action="store_true", help="no second copy of weights in its memory")
    add(
        "--wait-quiet",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="before each process, wait so long at most until nobody else keeps a core busy",
    )
    add("--results", type=Path, default=_HERE / "results")
    add("--no-save", dest="save", action="store_false", help="print only")
    return parser


def _check(options: argparse.Namespace) -> None:
    cores = Machine.describe().cores
    if not 1 <= options.threads <= cores:
        raise UsageError(f"--threads takes 1 to {cores}, this machine's; got {options.threads}.")
    for name in ("rounds", "windows", "steps", "context", "chunk"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} must be at least 1; got {getattr(options, name)}.")
    for name, least in (("prefill", 1), ("depths", 0), ("sequences", 1)):
        if too_small := [value for value in getattr(options, name) if value < least]:
            raise UsageError(f"--{name} takes numbers from {least}; got {too_small[0]}.")
    if options.only != "ossia" and not options.llama_python:
        raise UsageError(
            "--llama-python must name an interpreter with llama-cpp-python and gguf; or run "
            "--only ossia."
        )


def _peers(options: argparse.Namespace, files: ModelFiles) -> Iterator[Peer]:
    checkpoint = ensure_checkpoint(files, progress=progress_line(files.checkpoint.name))
    if options.only != "llama.cpp":
        kernels = {"kernels": options.kernels}
        yield Peer("ossia", sys.executable, "peer_ossia.py", checkpoint, kernels)
    if options.only != "ossia":
        given = {
            "flash_attention": options.llama_flash_attention,
            "repack": not options.llama_no_repack,
        }
        gguf = ensure_gguf(files, options.llama_python)
        yield Peer("llama.cpp", options.llama_python, "peer_llama.py", gguf, given)


def _plan(options: argparse.Namespace) -> Plan:
    """Without the model and the engine's options."""
    drawn, vocab = random.Random(options.seed), SHAPES[options.shape].vocab_size
    plan = Plan(
        model="",
        threads=options.threads,
        tokens=[],
        context=options.context,
        chunk=options.chunk,
        prefill=sorted(set(options.prefill)),
        depths=sorted(set(options.depths)),
        sequences=sorted(set(options.sequences)),
        windows=options.windows,
        steps=options.steps,
    )
    length = max(plan.context, plan.longest)
    return Plan(**{**asdict(plan), "tokens": [drawn.randrange(vocab) for _ in range(length)]})


# -- Running ------------------------------------------------------------------------------------


def _round(
    number: int, options: argparse.Namespace, plan: Plan, peers: Sequence[Peer]
) -> list[Sample]:
    """Both engines once, the other one first in every second round."""
    return [
        {"engine": peer.name, "round": number, **sample}
        for peer in (peers if number % 2 == 0 else peers[::-1])
        for sample in _run(
            peer,
            plan,
            peers,
            f"round {number + 1} of {options.rounds}, {peer.name}",
            options.wait_quiet,
        )
    ]


def _run(
    peer: Peer, plan: Plan, peers: Sequence[Peer], label: str, patience: float
) -> Iterator[Sample]:
    """The samples of one process. The page cache is the same for each: its own file and not the
    other's, for both need not fit into memory.
    """
    _say(f"{label}: reading its file")
    for other in peers:
        if other is not peer:
            _forget(other.files)
    _read(peer.files)
    _note_small_memory(peer)
    _wait_until_quiet(label, patience)
    own = Plan(**{**asdict(plan), "model": str(peer.model), "options": peer.options})
    environment = {**os.environ, "OMP_NUM_THREADS": str(plan.threads)}
    command = [peer.python, str(_HERE / peer.script), str(time.monotonic())]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=_HERE,
        )
    except OSError as failure:
        raise UsageError(f"{peer.python}: cannot be run ({failure.strerror}).") from failure
    with process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(own.to_json())
        process.stdin.close()
        try:
            for line in process.stdout:
                sample: Sample = json.loads(line)
                if sample["kind"] == "error":
                    raise UsageError(f"{peer.name}: {sample['message']}")
                _say(f"{label}: {_shown(sample)}")
                yield sample
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise UsageError(f"{peer.name}: {_why_ended(process.returncode)}")


def _why_ended(status: int) -> str:
    if status == -9:
        return "the process was killed, most likely because memory ran out; take fewer --layers."
    return f"the process ended with status {status}; the lines above say why."


def _say(text: str) -> None:
    """Progress: one line that keeps changing, and nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _shown(sample: Sample) -> str:
    names = ("kind", "when", "depth", "sequences", "tokens", "seconds")
    return " ".join(f"{sample[name]}" for name in names if name in sample)


def _wait_until_quiet(label: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        stopwatch = Stopwatch()
        time.sleep(_QUIET_SECONDS)
        if (others := stopwatch.read()["other_cores"]) < DISTURBED:
            return
        _say(f"{label}: waiting, others keep {others:.1f} cores busy")


def _note_small_memory(peer: Peer) -> None:
    size, memory = sum(path.stat().st_size for path in peer.files), Machine.describe().memory.usable
    if memory is not None and size > memory:
        print(
            f"\nnote: {peer.name}'s file of {size / 2**30:.1f} GiB is larger than the memory of "
            f"{memory / 2**30:.1f} GiB: it is read from the disk as it runs.",
            file=sys.stderr,
        )


def _read(files: Sequence[Path]) -> None:
    """Into the page cache."""
    buffer = bytearray(_READ_BYTES)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _forget(files: Sequence[Path]) -> None:
    """Out of the page cache."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


# -- Keeping ------------------------------------------------------------------------------------


class Record:
    """The rounds that are finished, in a file that is whole whenever the run ends."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._started = datetime.now().astimezone()
        self._commit = _git("rev-parse", "HEAD")
        self._changed_files = len(
            _git("status", "--porcelain", "--untracked-files=no").splitlines()
        )
        self._machine = Machine.describe()
        self._samples: list[Sample] = []
        self._saved = ""
        self.rounds = 0

    def add(self, samples: Sequence[Sample]) -> None:
        """A finished round. Raises UsageError where it cannot be written; those before it stay."""
        self._samples += samples
        self.rounds += 1
        if not self._options.save:
            return
        folder: Path = self._options.results
        path = folder / f"peers-{self._started:%Y-%m-%d-%H%M}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _replace(path, _json_lines(self._values()))
        except OSError as failure:
            raise UsageError(
                f"{path}: round {self.rounds} cannot be saved ({failure.strerror}); make room, or "
                "name another folder with --results."
            ) from failure
        self._saved = f"{path}, {self.rounds} of {self._options.rounds} rounds"

    def show(self) -> None:
        """The table, what casts doubt on it, and where its samples are."""
        print(table(rows(self._summary())))
        for line in agreement(self._samples):
            print(line)
        if self._saved:
            print(f"saved: {self._saved}")

    def _summary(self) -> list[dict[str, Any]]:
        return summary(self._samples, shape_config(self._options.shape, self._options.layers))

    def _values(self) -> dict[str, Any]:
        options = self._options
        return {
            "date": self._started.isoformat(timespec="seconds"),
            "commit": self._commit,
            "changed_files": self._changed_files,
            "command": _command(),
            "rounds": {"finished": self.rounds, "asked": options.rounds},
            "machine": asdict(self._machine),
            "model": {
                "shape": options.shape,
                "layers": shape_config(options.shape, options.layers).num_hidden_layers,
            },
            "summary": self._summary(),
            "samples": self._samples,
        }


def _replace(path: Path, text: str) -> None:
    """The file is either the one before or the new one, never half of it."""
    part = path.with_suffix(".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _json_lines(values: Mapping[str, Any]) -> str:
    """JSON, a line for each key and for each entry of a list: readable, and small in a diff."""
    lines: list[str] = []
    for key, value in values.items():
        if isinstance(value, list):
            entries = ",\n".join(f"  {json.dumps(entry)}" for entry in value)
            lines.append(f" {json.dumps(key)}: [\n{entries}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _command() -> str:
    """As it was typed, but for folders, which mean nothing on another machine."""
    words = [Path(word).name if os.sep in word else word for word in sys.argv[1:]]
    return " ".join([COMMAND, *words])


def _git(*words: str) -> str:
    """What git says; nothing where there is no git or no repository."""
    try:
        found = subprocess.run(
            ["git", *words], cwd=_HERE, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return found.stdout.strip()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the measured process ends with us
    sys.exit(main())
