"""`ossia doctor`: looks at the machine, the kernels and the model, and names what is wrong and the
mend. Each examination is a function that yields findings; none stops at the first problem.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from ossia import __version__
from ossia.cli import options
from ossia.errors import OssiaError, TokenizerError, UsageError

if TYPE_CHECKING:
    from ossia.cli.machine import Machine
    from ossia.harmony.tokenizer import Tokenizer
    from ossia.kernels.interface import Kernels
    from ossia.llm import LLM
    from ossia.loading import OpenedModel
    from ossia.model.checkpoint import Survey
    from ossia.model.config import ModelConfig

_QUESTION = "What is 2 + 3?"
_PROBE = "Grüße, 世界! <|start|>\n\tx = 3.14 🙂"  # holds the spelling of a control token as text


class Status(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Nothing is wrong, but it explains what may surprise."""
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    topic: str
    status: Status
    text: str
    mend: str = ""


def doctor(
    model: options.ModelOption = "nano",
    kernels: options.KernelsOption = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: healthy or not, and every finding.")
    ] = False,
    numerics: Annotated[
        bool,
        typer.Option(
            "--numerics", help="Measure what int8 arithmetic changes in this model's answers."
        ),
    ] = False,
    threads: options.ThreadsOption = None,
    exact: options.ExactOption = False,
    dense_dtype: options.DenseDtypeOption = None,
    instruction_set: options.InstructionSetOption = None,
    context: options.ContextOption = None,
    vocab: options.VocabOption = None,
    allow_slow: options.AllowSlowOption = False,
    expert_memory: options.ExpertMemoryOption = None,
    no_mmap: options.NoMmapOption = False,
) -> None:
    """Examine this machine, the kernels and a model; name what is wrong and the mend.

    Exit code 1 when something is wrong.
    """
    chosen = options.ModelOptions(
        model=model,
        kernels=kernels,
        threads=threads,
        exact=exact,
        dense_dtype=dense_dtype,
        instruction_set=instruction_set,
        context=context,
        vocab=vocab,
        allow_slow=allow_slow,
        expert_memory=expert_memory,
        no_mmap=no_mmap,
    )
    findings: list[Finding] = []
    for finding in _examine(chosen, numerics=numerics, quiet=as_json):
        findings.append(finding)
        if not as_json:
            _print(finding)
    problems = [finding for finding in findings if finding.status is Status.PROBLEM]
    if as_json:
        report = {
            "ossia": __version__,
            "healthy": not problems,
            "findings": [asdict(finding) for finding in findings],
        }
        print(json.dumps(report, ensure_ascii=False))
    else:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        print(f"\n{count} found." if problems else "\nNothing is wrong.")
    if problems:
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    mark = {Status.OK: "ok", Status.NOTE: "note", Status.PROBLEM: "WRONG"}[finding.status]
    print(f"{mark:5}  {finding.topic:9}  {finding.text}", flush=True)
    if finding.mend:
        print(f"{'':5}  {'':9}  → {finding.mend}", flush=True)


def _examine(chosen: options.ModelOptions, *, numerics: bool, quiet: bool) -> Iterator[Finding]:
    from ossia.cli.machine import Machine
    from ossia.model.checkpoint import survey
    from ossia.model.hub import resolve_model

    machine = Machine.describe()
    yield from _examine_machine(machine)
    yield from _list_kernels()
    found = missing = None
    try:
        found = survey(resolve_model(chosen.model))
    except OssiaError as error:
        missing = Finding("model", Status.PROBLEM, str(error))
    kernels = None
    try:
        kernels, reason = chosen.settings.choose(model_bytes=found.total_bytes if found else 0)
    except UsageError:
        raise  # the command was wrong, not what it examines
    except OssiaError as error:
        yield Finding("kernels", Status.PROBLEM, str(error))
    else:
        text = f"{kernels.name} is used: {reason}{settings_text(kernels)}"
        yield Finding("kernels", Status.OK, text)
        yield from _test_kernels(kernels, chosen)

    if found is None:
        yield from (missing,) if missing else ()
        return
    yield from (Finding("model", Status.PROBLEM, str(error)) for error in found.problems)
    if found.unrecognised:
        keys = ", ".join(found.unrecognised)
        yield Finding(
            "model", Status.NOTE, f"config.json has keys that ossia does not know: {keys}"
        )
    if found.problems or found.config is None or kernels is None:
        return
    yield from _examine_model(chosen, found, kernels, quiet=quiet)
    if numerics:
        yield from _measure_numerics(chosen, kernels)


def _examine_model(
    chosen: options.ModelOptions, found: Survey, kernels: Kernels, *, quiet: bool
) -> Iterator[Finding]:
    """Memory, vocabulary and a first token of a checkpoint in which nothing was found wrong."""
    assert found.config is not None
    try:
        opened = chosen.open()
        yield _memory_finding(opened)
        if opened.refusal:
            return
        llm = options.load_model(opened, quiet=quiet)
    except OssiaError as error:
        topic = "tokenizer" if isinstance(error, TokenizerError) else "model"
        yield Finding(topic, Status.PROBLEM, str(error))
        return
    with llm:
        layers, experts = found.config.num_hidden_layers, found.config.num_local_experts
        yield Finding(
            "model",
            Status.OK,
            f"{chosen.model}: {options.size(found.total_bytes)}, {layers} layers of {experts} "
            f"experts, loaded from {found.folder}",
        )
        yield from _examine_tokenizer(llm.tokenizer, found.config)
        yield from _ask(llm)


def _examine_machine(machine: Machine) -> Iterator[Finding]:
    yield Finding(
        "system",
        Status.OK,
        f"ossia {__version__}, Python {platform.python_version()}, {machine.platform}",
    )
    cores = "1 core" if machine.cores == 1 else f"{machine.cores} cores"
    quota = "" if machine.core_quota is None else f" (a quota allows {machine.core_quota:.3g})"
    features = " ".join(machine.features) or "instruction sets unknown"
    yield Finding("processor", Status.OK, f"{machine.processor}; {cores}{quota}; {features}")
    memory = machine.memory
    parts = [
        f"{options.size(memory.total)} in all",
        f"{options.size(memory.available)} available",
        "no limit by a control group"
        if memory.limit is None
        else f"{options.size(memory.limit)} allowed by its group",
    ]
    yield Finding("memory", Status.OK, ", ".join(parts))


def _list_kernels() -> Iterator[Finding]:
    from ossia.kernels.choose import KERNEL_SETS, is_available

    for name, text in KERNEL_SETS.items():
        state = "available" if is_available(name) else "not installed"
        yield Finding("kernels", Status.OK, f"{name}, {state}: {text}")


def settings_text(kernels: Kernels) -> str:
    """What is worth knowing of a set of kernels behind its name."""
    if kernels.name != "native":
        return ""
    from ossia.kernels.native import NativeKernels

    assert isinstance(kernels, NativeKernels)
    threads = "1 thread" if kernels.num_threads == 1 else f"{kernels.num_threads} threads"
    arithmetic = "exact" if kernels.exact else f"int8, dense tensors {kernels.dense_dtype}"
    return f"; {kernels.instruction_set}, {threads}, {arithmetic}"


def _test_kernels(kernels: Kernels, chosen: options.ModelOptions) -> Iterator[Finding]:
    """In full precision also where the model will run in less: there the same code computes, and a
    difference is an error and not a rounding. Then the rounding, by its own limits.
    """
    from ossia.model.selftest import quantised_self_test, self_test

    exact = chosen.settings.exact_twin(kernels.name)
    checks = self_test(exact)
    quantises = kernels.name == "native" and not chosen.exact
    quantised_checks = quantised_self_test(exact, kernels) if quantises else []
    failed = [check for check in (*checks, *quantised_checks) if not check.passed]
    for check in failed:
        yield Finding(
            "self-test",
            Status.PROBLEM,
            f"{kernels.name}, {check.name}: "
            + (check.message or f"off by {check.error:.2g}, allowed is {check.tolerance:.2g}"),
            "do not trust what these kernels compute: take others with --kernels, and report this",
        )
    if failed:
        return
    largest = max(check.error for check in checks)
    text = (
        f"{kernels.name} passes {len(checks)} checks in float32; largest error {largest:.1e} "
        f"of the logits' range, allowed is {checks[0].tolerance:.0e}"
    )
    if quantised_checks:
        median = quantised_checks[0]
        text += (
            f"; and {len(quantised_checks)} in int8: median error {median.error:.1%} of the "
            f"logits' deviation, allowed is {median.tolerance:.0%}"
        )
    yield Finding("self-test", Status.OK, text)


def _measure_numerics(chosen: options.ModelOptions, kernels: Kernels) -> Iterator[Finding]:
    """What the arithmetic that will run changes in this model, against the exact one."""
    from ossia.cli.passage import passage_for
    from ossia.model.numerics import Prepared, distance

    if kernels.name != "native" or chosen.exact:
        yield Finding("numerics", Status.OK, "nothing is quantised, so there is no distance")
        return
    try:
        opened = chosen.open()
        exact = replace(chosen, exact=True, dense_dtype=None).open()
        assert opened.tokenizer is not None
        passage = passage_for(chosen.model, opened.tokenizer)
        pair = (Prepared(each.kernels, each.prepare()) for each in (exact, opened))
        measured = distance(
            opened.architecture, *pair, documents=passage.documents, counted=passage.counted
        )
    except OssiaError as error:
        yield Finding("numerics", Status.PROBLEM, str(error))
        return
    status = Status.OK if measured.is_meaningful else Status.NOTE
    text = f"int8 against exact arithmetic, on {passage.name}: {measured}"
    yield Finding("numerics", status, text)


def _memory_finding(opened: OpenedModel) -> Finding:
    plan = opened.memory
    about = "about " if plan.is_estimate else ""
    text = (
        f"the model takes {about}{options.size(plan.total)} at its fullest, "
        f"{options.size(plan.cache)} of them for a context of {plan.context:,} tokens "
        "(ossia chat --memory shows the whole plan)"
    )
    if opened.refusal:
        return Finding("memory", Status.PROBLEM, opened.refusal)
    notes = list(options.memory_notes(opened))
    if notes:
        return Finding("memory", Status.NOTE, f"{text}; {notes[0]}")
    return Finding("memory", Status.OK, text)


def _examine_tokenizer(tokenizer: Tokenizer, config: ModelConfig) -> Iterator[Finding]:
    """Loading has already found all of Harmony's control tokens, or failed."""
    ids = tokenizer.encode(_PROBE)
    mend = "use the tokenizer.json that was published with this model"
    if tokenizer.decode(ids) != _PROBE or any(map(tokenizer.is_control, ids)):
        text = f"{tokenizer.name}: a text does not come back from its tokens as it was"
        yield Finding("tokenizer", Status.PROBLEM, text, mend)
        return
    yield Finding(
        "tokenizer",
        Status.OK,
        f"{tokenizer.name}: {len(tokenizer.ordinary_ids):,} text tokens, "
        f"{len(tokenizer.control_ids):,} control tokens; the model embeds {config.vocab_size:,}",
    )


def _ask(llm: LLM) -> Iterator[Finding]:
    """After a rendered question an assistant opens a channel, or names a recipient first."""
    from ossia.engine.request import SamplingParams
    from ossia.harmony.render import render_for_completion

    tokenizer = llm.tokenizer
    prompt = render_for_completion(tokenizer, llm.conversation(_QUESTION)).token_ids
    greedy = SamplingParams(temperature=0.0, max_tokens=1, logprobs=True)
    try:
        completion = llm.generate(prompt, sampling=greedy)
    except OssiaError as error:
        yield Finding("model", Status.PROBLEM, str(error))
        return
    if completion.finish_reason.failed or not completion.token_ids:
        reason = "; ".join(completion.diagnostics) or "it gave no token"
        yield Finding("model", Status.PROBLEM, f"a forward pass failed: {reason}", _REFETCH)
        return
    (first,), (logprob,) = completion.token_ids, completion.logprobs or (0.0,)
    spelled = json.dumps(tokenizer.decode([first]), ensure_ascii=False)
    if first not in (tokenizer.control.channel, tokenizer.encode(" to")[0]):
        yield Finding(
            "model",
            Status.PROBLEM,
            f"asked a question, it would begin its turn with {spelled}, where Harmony has "
            '"<|channel|>" or " to"',
            _REFETCH,
        )
        return
    yield Finding(
        "model",
        Status.OK,
        f"asked a question, it begins its turn with {spelled} (log-probability {logprob:.2g})",
    )


_REFETCH = (
    "the weights are damaged, or weights and tokenizer belong to different models: fetch both again"
)
