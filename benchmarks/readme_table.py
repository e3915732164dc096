"""benchmarks/results/peers-*.json → the table of speeds in README.md.

    python benchmarks/readme_table.py [--check]

Each row comes from the newest run that measured both engines on it, so that a run need not measure
everything. Runs of another machine than the newest one's are left out, and those that did not take
the whole model and the engines as they come; they are named. --check writes nothing and exits 1
where the README has something else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from peer_table import ENGINES, HEAD, cells, row_name, row_order, summary, table
from peers import COMMAND, command_line
from random_model import SHAPES, shape_config

from ossia.errors import OssiaError, UsageError

_HERE = Path(__file__).resolve().parent
_BEGIN = "<!-- speed: written by benchmarks/readme_table.py -->"
_END = "<!-- end of speed -->"
_SHAPE = "20b"
_ENGINE_OPTIONS = ("threads", "chunk", "kernels", "llama_flash_attention", "llama_no_repack")
_CAPTION = """\
The shape of gpt-oss-20b with random weights, Ossia and llama.cpp in turns on the same machine:
medians, in parentheses the least and the greatest. The ratio is Ossia's figure to llama.cpp's; the
last column holds decoding against what reading alone, with the same threads, reached in the same
run.
"""


@dataclass(frozen=True)
class Run:
    """A file of results."""

    name: str
    values: Mapping[str, Any]
    entries: Sequence[Mapping[str, Any]]
    """What both engines were measured on, as `peer_table.summary` has it."""

    @classmethod
    def read(cls, path: Path) -> Run:
        """Raises UsageError for a file that is none."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            model = values["model"]
            found = summary(values["samples"], shape_config(model["shape"], model["layers"]))
            run = cls(path.name, values, [entry for entry in found if "ratio" in entry])
            run.describe()
            run.machine()
        except (ValueError, LookupError, TypeError, AttributeError) as problem:
            raise UsageError(
                f"{path.name}: no result of benchmarks/peers.py ({type(problem).__name__}: "
                f"{problem}); remove it, or measure again."
            ) from problem
        return run

    @property
    def date(self) -> datetime:
        return datetime.fromisoformat(self.values["date"]).astimezone()

    def machine(self) -> str:
        """In words."""
        machine = self.values["machine"]
        features = ", ".join(machine["features"]) or "no known instruction sets"
        memory = machine["memory"]["total"]
        size = "" if memory is None else f", {memory / 2**30:.1f} GiB of memory"
        return f"{machine['processor']}, {machine['cores']} cores ({features}){size}"

    def is_on_machine_of(self, other: Run) -> bool:
        names = ("processor", "cores", "features")
        one, two = self.values["machine"], other.values["machine"]
        return all(one[name] == two[name] for name in names)

    def why_left_out(self) -> str:
        """What makes its figures others than the table's; empty where nothing does."""
        if not self.entries:
            return "it measured no row on both engines"
        model = self.values["model"]
        if (model["shape"], model["layers"]) != (_SHAPE, SHAPES[_SHAPE].num_hidden_layers):
            return f"it measured {model['layers']} layers of {model['shape']}"
        parser = command_line()
        parser.set_defaults(threads=self.values["machine"]["cores"])
        words = self.values["command"].removeprefix(COMMAND).split()
        given, _ = parser.parse_known_args(words)
        for option in _ENGINE_OPTIONS:
            if getattr(given, option) != parser.get_default(option):
                return f"it was run with --{option.replace('_', '-')}"
        return ""

    def describe(self) -> str:
        """When, with which versions, and how to repeat it."""
        samples = self.values["samples"]
        versions = {s["engine"]: s["version"] for s in samples if s["kind"] == "engine"}
        ossia, llama = (versions.get(name, "of an unknown version") for name in ENGINES)
        commit = self.values["commit"][:8] or "an unknown commit"
        changed = ", changed" if self.values["changed_files"] else ""
        rounds = len({sample["round"] for sample in samples})
        return (
            f"{self.values['date'][:10]}, {rounds} round{'s' * (rounds != 1)}, Ossia {ossia} "
            f"({commit}{changed}) and {llama}: `{self.values['command']}`"
        )


def block(results: Path) -> tuple[str, list[str]]:
    """What stands between the markers, and a sentence for each run that was left out."""
    runs, left_out = _usable([Run.read(path) for path in results.glob("peers-*.json")])
    if not runs:
        found = " ".join(left_out) or "no run of both engines is there."
        raise UsageError(f"{results}: {found} Run benchmarks/peers.py.")
    newest: dict[str, tuple[Mapping[str, Any], Run]] = {}
    for run in runs:
        for entry in run.entries:
            newest.setdefault(row_name(entry), (entry, run))
    chosen = sorted(newest.values(), key=lambda pair: row_order(pair[0]))
    used = [run for run in runs if any(run is one for _, one in chosen)]
    lines = [["", "Ossia", *HEAD[2:], "run"]]
    lines += [[*cells(entry), str(used.index(run) + 1)] for entry, run in chosen]
    told = [run.describe() for run in used]
    if len(used) == 1:  # a column that says the same everywhere
        lines = [line[:-1] for line in lines]
        measured = f" Measured {told[0]}."
    else:
        measured = "\n\n" + "\n".join(f"{number}. {text}" for number, text in enumerate(told, 1))
    return f"{_CAPTION}\n{table(lines)}\n\n{used[0].machine()}.{measured}", left_out


def _usable(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Those of the newest one's machine, the newest first; and why others are left out."""
    usable: list[Run] = []
    left_out: list[str] = []
    for run in sorted(runs, key=lambda run: run.date, reverse=True):
        why = run.why_left_out()
        if not why and usable and not run.is_on_machine_of(usable[0]):
            why = "another machine ran it than the newest"
        if why:
            left_out.append(f"{run.name}: left out, for {why}.")
        else:
            usable.append(run)
    return usable, left_out


def rewritten(readme: str, text: str) -> str:
    """`readme` with `text` between its markers. Raises UsageError where they are not there once."""
    before, begin, rest = readme.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end or _BEGIN in rest or _END in before + after:
        raise UsageError(f"README.md must hold the lines {_BEGIN} and {_END}, once each.")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it would")
    parser.add_argument("--results", type=Path, default=_HERE / "results")
    parser.add_argument("--readme", type=Path, default=_HERE.parent / "README.md")
    options = parser.parse_args()
    try:
        text, left_out = block(options.results)
        before = options.readme.read_text(encoding="utf-8")
        after = rewritten(before, text)
        if not options.check:
            options.readme.write_text(after, encoding="utf-8")
            print("\n".join(left_out), end="\n" * bool(left_out))
        elif after != before:
            raise UsageError(
                f"{options.readme.name}: its speeds are not those of benchmarks/results; run "
                "python benchmarks/readme_table.py."
            )
    except (OssiaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
