"""Samples of both engines → figures with their spreads, ratios, and the table that is printed.

A ratio compares medians within one round, for the machine's speed drifts between rounds. Bytes read
per token are those that must be read whatever the engine does: every dense weight once, as int8
with a scale per 32 (both engines hold them so), the experts of one token, its keys and values.

Samples during which other processes kept a core busy are left out where others of the same round
remain, the same way for both engines: with a thread per core, a neighbour costs far more than what
it takes. How many are left out is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from ossia.model.config import ModelConfig

Sample = dict[str, Any]
Key = tuple[str, int, int]
"""Kind, depth or tokens, sequences: what is compared."""

ENGINES = ("ossia", "llama.cpp")
HEAD = ("", *ENGINES, "ratio", "of read bandwidth")
_DENSE_BITS = 8.5
_EXPERT_BITS = 4.25
DISTURBED = 0.1
"""Cores that others kept busy, from which on a sample is disturbed."""


def bytes_per_token(config: ModelConfig, depth: int) -> float:
    """Bytes that decoding one token of one sequence reads at `depth`: 2.57e9 of the 20b shape at
    depth 0.
    """
    experts = (
        3
        * config.num_hidden_layers
        * config.num_experts_per_tok
        * config.hidden_size
        * config.intermediate_size
    )
    dense = config.num_active_parameters() - experts
    return dense * _DENSE_BITS / 8 + experts * _EXPERT_BITS / 8 + config.kv_cache_bytes(depth)


def summary(samples: Sequence[Sample], config: ModelConfig) -> list[dict[str, Any]]:
    """One entry per measurement: `[median, least, greatest]` per engine and of the ratio Ossia to
    llama.cpp; tokens a second, seconds, or bytes as `unit` says.
    """
    rounds: dict[Key, dict[str, dict[int, list[Sample]]]] = defaultdict(
        lambda: {name: defaultdict(list) for name in ENGINES}
    )
    for sample in samples:
        if (key := _key(sample)) is not None:
            rounds[key][sample["engine"]][sample["round"]].append(sample)
    return sorted((_entry(key, rounds[key], config) for key in rounds), key=row_order)


def _entry(
    key: Key, engines: Mapping[str, Mapping[int, list[Sample]]], config: ModelConfig
) -> dict[str, Any]:
    kind, size, sequences = key
    engines = {
        name: {number: _undisturbed(many) for number, many in by_round.items()}
        for name, by_round in engines.items()
    }
    entry: dict[str, Any] = {"kind": kind, "size": size, "sequences": sequences}
    entry["unit"] = {"first token": "s", "memory": "bytes"}.get(kind, "tokens/s")
    medians: dict[str, dict[int, float]] = {}
    for name, by_round in engines.items():
        # Peak memory is the last and largest of a process's several readings.
        found = {
            number: [max(values)] if kind == "memory" else values
            for number, samples in by_round.items()
            if (values := [_value(sample) for sample in samples])
        }
        medians[name] = {number: median(values) for number, values in found.items()}
        if found:
            entry[name] = _spread([value for values in found.values() for value in values])
    shared = medians["ossia"].keys() & medians["llama.cpp"].keys()
    if shared:
        entry["ratio"] = _spread(
            [medians["ossia"][number] / medians["llama.cpp"][number] for number in sorted(shared)]
        )
    if kind == "decode":
        needed = bytes_per_token(config, size) / 1e9
        probed = [s for many in engines["ossia"].values() for s in many if s["read_gb_per_s"]]
        if probed:
            shares = [_value(sample) * needed / sample["read_gb_per_s"] for sample in probed]
            entry["share of read bandwidth"] = _spread(shares)
            entry["read GB/s"] = _spread([sample["read_gb_per_s"] for sample in probed])
    return entry


def _undisturbed(samples: list[Sample]) -> list[Sample]:
    """Those to be believed, or all where none is."""
    return [s for s in samples if not _is_disturbed(s)] or samples


def _is_disturbed(sample: Sample) -> bool:
    return sample.get("other_cores", 0.0) > DISTURBED


def _key(sample: Sample) -> Key | None:
    match sample["kind"]:
        case "prefill":
            return "prefill", sample["tokens"], 1
        case "decode" | "batch" as kind:
            return kind, sample["depth"], sample["sequences"]
        case "first token" | "memory" as kind:
            # The batches hold other caches; memory is compared with one sequence's.
            return None if sample.get("when") == "all" else (kind, 0, 1)
        case _:
            return None


def _value(sample: Sample) -> float:
    match sample["kind"]:
        case "memory":
            return sample["peak_bytes"]
        case "first token":
            return sample["seconds"]
        case _:
            return sample["tokens"] / sample["seconds"]


def _spread(values: Sequence[float]) -> list[float]:
    return [median(values), min(values), max(values)]


def rows(found: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The cells of the table, its head first."""
    yield list(HEAD)
    yield from map(cells, found)


def cells(entry: Mapping[str, Any]) -> list[str]:
    """Those of one entry of `summary`, as many as `HEAD` has."""
    scale, digits = {"bytes": (2**-30, 2), "s": (1.0, 2)}.get(entry["unit"], (1.0, 1))
    share = _cell(entry.get("share of read bandwidth"), 100.0, 0, " %")
    if "read GB/s" in entry:
        share += f" of {entry['read GB/s'][0]:.1f} GB/s"
    engines = (_cell(entry.get(name), scale, digits) for name in ENGINES)
    return [row_name(entry), *engines, _cell(entry.get("ratio"), 1.0, 2), share]


def row_name(entry: Mapping[str, Any]) -> str:
    """What was measured, and its unit."""
    size, sequences = entry["size"], entry["sequences"]
    return {
        "prefill": f"prefill {size}, tokens/s",
        "decode": f"decode at depth {size}, tokens/s",
        "batch": f"decode, {sequences} sequence{'s' * (sequences > 1)}, total tokens/s",
        "memory": "peak resident, GiB",
        "first token": "start to first token, s",
    }[entry["kind"]]


def row_order(entry: Mapping[str, Any]) -> tuple[int, int, int]:
    """Where it stands in the table, as a key to sort by."""
    kinds = ("prefill", "decode", "batch", "memory", "first token")
    return kinds.index(entry["kind"]), entry["size"], entry["sequences"]


def _cell(spread: Sequence[float] | None, scale: float, digits: int, unit: str = "") -> str:
    if spread is None:
        return "–"
    middle, least, greatest = (f"{value * scale:.{digits}f}" for value in spread)
    return f"{middle}{unit}" if least == greatest else f"{middle}{unit} ({least}–{greatest})"


def table(cells: Iterable[list[str]]) -> str:
    """Markdown, padded so that it reads as text; the first line is its head."""
    lines = list(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    padded = (
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(f"| {line} |" for line in padded)


def agreement(samples: Sequence[Sample]) -> Iterator[str]:
    """What casts doubt on a comparison: greedy tokens that differ between the engines, and somebody
    else's work on the machine.
    """
    ids: dict[str, dict[tuple[Any, ...], list[int]]] = {name: {} for name in ENGINES}
    counts: dict[tuple[Any, ...], int] = defaultdict(int)
    for sample in samples:
        if "ids" in sample:
            place = (sample["round"], _key(sample))
            number = counts[sample["engine"], place]
            counts[sample["engine"], place] += 1
            ids[sample["engine"]][*place, number] = sample["ids"]
    pairs = [
        (a, b)
        for place in ids["ossia"].keys() & ids["llama.cpp"].keys()
        for a, b in zip(ids["ossia"][place], ids["llama.cpp"][place], strict=True)
    ]
    if pairs:
        same = sum(a == b for a, b in pairs)
        yield f"same greedy token after the same tokens: {same} of {len(pairs)}"
    disturbed = sum(map(_is_disturbed, samples))
    if disturbed:
        timed = sum("other_cores" in s for s in samples)
        yield (
            f"disturbed: in {disturbed} of {timed} samples other processes kept more than a tenth "
            "of a core busy; left out where their round has others"
        )
