"""`ossia bench`: how fast a model runs here, beside what this machine can do at most.

Rows are printed as they come, so that Ctrl-C leaves what has been measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia import __version__
from ossia.cli import options
from ossia.cli.memory import show_memory
from ossia.errors import OssiaError, UsageError

if TYPE_CHECKING:
    from ossia.bench.measure import Plan, Result
    from ossia.loading import OpenedModel
    from ossia.model.transformer import Weights

_HEAD = "measured                     tokens/s   share of the limit   (spread)   limit"


def bench(
    model: options.ModelOption = "nano",
    prompt_tokens: Annotated[
        str | None, typer.Option("--prompt-tokens", help="Lengths of prompts to read.")
    ] = None,
    depth: Annotated[
        str | None, typer.Option("--depth", help="Tokens in the cache when decoding begins.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option("--batch", help="Sequences that decode together.")
    ] = None,
    repeat: Annotated[
        int | None, typer.Option("--repeat", min=1, help="How often each prompt is read.")
    ] = None,
    numerics: Annotated[
        bool,
        typer.Option(
            "--numerics/--no-numerics", help="Also measure what int8 changes in the answers."
        ),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: machine, every sample, memory.")
    ] = False,
    kernels: options.KernelsOption = "auto",
    threads: options.ThreadsOption = None,
    exact: options.ExactOption = False,
    dense_dtype: options.DenseDtypeOption = None,
    instruction_set: options.InstructionSetOption = None,
    vocab: options.VocabOption = None,
    memory: options.MemoryOption = False,
    allow_slow: options.AllowSlowOption = False,
    expert_memory: options.ExpertMemoryOption = None,
    no_mmap: options.NoMmapOption = False,
) -> None:
    """Measure prefill and decode, and the machine's own limits beside them.

    Prefill is held against the int8 dot-product peak, decode against the bandwidth at which the
    model's own weights can be read; both are probed between the samples.
    """
    plan = _plan(prompt_tokens, depth, batch, repeat)
    chosen = options.ModelOptions(
        model=model,
        kernels=kernels,
        threads=threads,
        exact=exact,
        dense_dtype=dense_dtype,
        instruction_set=instruction_set,
        vocab=vocab,
        allow_slow=allow_slow,
        expert_memory=expert_memory,
        no_mmap=no_mmap,
    )
    lengths = {
        "--prompt-tokens": () if prompt_tokens is None else plan.prompt_tokens,
        "--depth": () if depth is None else plan.depths,
    }
    opened = _open(chosen, plan, lengths)
    if memory:
        show_memory(opened, as_json=as_json)
        return
    report = _Report(chosen, opened, as_json=as_json)
    try:
        _measure(report, plan, numerics=numerics)
    except KeyboardInterrupt:
        report.end(interrupted=True)
        raise typer.Exit(130) from None
    report.end(interrupted=False)


def _plan(
    prompt_tokens: str | None, depth: str | None, batch: str | None, repeat: int | None
) -> Plan:
    from ossia.bench.measure import Plan

    given = {
        "prompt_tokens": _numbers("--prompt-tokens", prompt_tokens),
        "depths": _numbers("--depth", depth),
        "batches": _numbers("--batch", batch),
        "repeat": repeat,
    }
    return Plan(**{name: value for name, value in given.items() if value is not None})


def _open(
    chosen: options.ModelOptions, plan: Plan, lengths: Mapping[str, tuple[int, ...]]
) -> OpenedModel:
    """With a cache for the largest measurement; the model may lack a vocabulary. Raises UsageError
    for `lengths`, by the options that asked for them, that the model's context does not hold.
    """
    from ossia.bench.measure import engine_needed, first_too_long
    from ossia.model.checkpoint import survey
    from ossia.model.hub import resolve_model

    config = survey(resolve_model(chosen.model)).config
    if config is not None:
        for option, asked in lengths.items():
            wrong = first_too_long(asked, config, decodes=option == "--depth")
            if wrong:
                raise UsageError(f"{option} must be {wrong}")
    engine = engine_needed(plan, config) if config is not None else None
    return chosen.open(engine=engine, needs_tokenizer=False)


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise UsageError(
            f"{option} takes numbers separated by commas, such as 512,2048; got {text!r}."
        ) from None


def _measure(report: _Report, plan: Plan, *, numerics: bool) -> None:
    from ossia.bench.measure import Bench
    from ossia.engine.machine_memory import ProcessMemory

    opened = report.opened
    report.head()
    for note in options.memory_notes(opened):
        print(f"note: {note}", file=sys.stderr)
    weights = options.with_progress(f"loading {opened.name}", opened.prepare, report.as_json)
    loaded = _process_seconds()
    measured = Bench(opened, weights)
    measured.first_token()
    report.loaded(loaded, _process_seconds())
    if not measured.probes_memory:
        report.note(
            "no bandwidth is probed: these kernels cannot, or the experts of this model fit into "
            "the processor's caches"
        )
    steps = measured.run(plan)
    status = ""
    while True:
        with _status(status, quiet=report.as_json):
            found = next(steps, None)
        if found is None:
            break
        if isinstance(found, str):
            status = found
        else:
            report.result(found)
    report.peak(ProcessMemory.now().peak)
    if numerics:
        report.numerics(_numerics(report.chosen, opened, weights))


def _process_seconds() -> float:
    """Since this process began, imports included; 0 where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])  # starttime, the 22nd of all fields
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0


def _numerics(
    chosen: options.ModelOptions, opened: OpenedModel, weights: Weights
) -> dict[str, Any] | str:
    """The distance of these kernels from exact ones as JSON with its text; or why there is none."""
    from ossia.cli.passage import passage_for
    from ossia.model.numerics import Prepared, distance

    if opened.kernels.name != "native" or chosen.exact:
        return "nothing is quantised, so there is no distance"
    if opened.tokenizer is None:
        return "not measured: the model has no vocabulary, so there is no text to measure on"
    try:
        exact = replace(chosen, exact=True, dense_dtype=None).open()
        passage = passage_for(chosen.model, opened.tokenizer)
        measured = options.with_progress(
            "numerics",
            lambda progress: distance(
                opened.architecture,
                Prepared(exact.kernels, exact.prepare()),
                Prepared(opened.kernels, weights),
                passage.documents,
                counted=passage.counted,
                progress=progress,
            ),
        )
    except OssiaError as error:
        return f"not measured: {error}"
    return measured.to_json() | {"text": f"against exact arithmetic, on {passage.name}: {measured}"}


class _Report:
    """Prints what is measured as it comes, or gathers it for one JSON object."""

    def __init__(self, chosen: options.ModelOptions, opened: OpenedModel, *, as_json: bool) -> None:
        self.chosen, self.opened, self.as_json = chosen, opened, as_json
        self._values: dict[str, Any] = {"ossia": __version__, "model": opened.name, "results": []}
        self._has_head = False

    def _print(self, text: str) -> None:
        if not self.as_json:
            print(text, flush=True)

    def head(self) -> None:
        from ossia.cli.doctor import settings_text
        from ossia.cli.machine import Machine

        machine, config = Machine.describe(), self.opened.checkpoint.config
        kernels = f"{self.opened.kernels.name}{settings_text(self.opened.kernels)}"
        self._values |= {"kernels": kernels, "machine": asdict(machine)}
        self._print(
            f"{self.opened.name}: {config.num_hidden_layers} layers of {config.num_local_experts} "
            f"experts, {options.size(self.opened.checkpoint.total_bytes)}; {kernels}\n"
            f"{machine.processor}, {machine.cores} cores, {options.size(machine.memory.total)}"
        )

    def loaded(self, load: float, first_token: float) -> None:
        self._values |= {"load_seconds": load, "first_token_seconds": first_token}
        self._print(
            f"loaded {load:.2f} s after the process began; first token of a short prompt at "
            f"{first_token:.2f} s"
        )

    def note(self, text: str) -> None:
        self._values.setdefault("notes", []).append(text)
        self._print(f"note: {text}")

    def result(self, found: Result) -> None:
        self._values["results"].append(
            asdict(found)
            | {
                "tokens_per_second": found.tokens_per_second,
                "share": found.share,
                "bytes_per_token": found.bytes_per_token,
            }
        )
        if not self._has_head:
            self._print(f"\n{_HEAD}")
            self._has_head = True
        self._print(_row(found))

    def peak(self, peak: int) -> None:
        planned = self.opened.memory.total
        self._values |= {"peak_bytes": peak, "planned_bytes": planned}
        self._print(
            f"\nmemory: {options.size(peak)} at the peak, of {options.size(planned)} planned for a "
            "full cache"
        )

    def numerics(self, found: dict[str, Any] | str) -> None:
        self._values["numerics"] = found
        self._print(f"numerics: {found if isinstance(found, str) else found['text']}")

    def end(self, *, interrupted: bool) -> None:
        if self.as_json:
            print(json.dumps(self._values | {"interrupted": interrupted}))
        elif interrupted:
            print("\nInterrupted; what stands above was measured.", file=sys.stderr)


def _row(found: Result) -> str:
    name = {
        "prefill": f"prefill {found.tokens}",
        "decode": f"decode at depth {found.depth}",
        "batch": f"decode, {found.sequences} sequences",
    }[found.kind]
    row = f"{name:<27}{found.tokens_per_second:>10,.1f}"
    shares, limit = found.shares, found.limit
    if not shares or limit is None:
        return row
    spread = f"{shares[0]:.0%}–{shares[-1]:.0%}"
    row += f"   {found.share or 0:>8.0%}  {spread:>20}"
    if found.kind == "prefill":
        return f"{row}   {limit / 1e9:,.0f} G int8 multiply-adds/s"
    experts = found.experts_per_layer
    routed = "" if experts is None else f", {experts:.1f} experts a layer"
    per_token = found.bytes_per_token or 0
    return f"{row}   {limit / 1e9:.1f} GB/s; {per_token / 1e9:.3g} GB a token{routed}"


@contextmanager
def _status(text: str, *, quiet: bool) -> Iterator[None]:
    """A line on the terminal that says what is being measured, gone when it is."""
    if quiet or not text or not sys.stderr.isatty():
        yield
        return
    print(f"\r\033[K{text} …", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
