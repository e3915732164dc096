"""`ossia chat`: one question, or a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli import options, terminal
from ossia.cli.memory import show_memory
from ossia.errors import UsageError

if TYPE_CHECKING:
    from ossia.harmony.messages import Effort


PromptArgument = Annotated[
    str | None,
    typer.Argument(help="The question; `-` reads it from standard input. Without: talk."),
]
EffortOption = Annotated[
    str, typer.Option("--effort", "-e", help="How long to reason: low, medium or high.")
]
InstructionsOption = Annotated[
    str | None,
    typer.Option("--instructions", "-i", help="Developer instructions (a system prompt)."),
]
HideReasoningOption = Annotated[
    bool, typer.Option("--hide-reasoning", help="Keep the model's reasoning off the screen.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="With PROMPT: the turn as one JSON object.")
]


def chat(
    prompt: PromptArgument = None,
    model: options.ModelOption = "nano",
    effort: EffortOption = "medium",
    instructions: InstructionsOption = None,
    hide_reasoning: HideReasoningOption = False,
    as_json: JsonOption = False,
    max_tokens: options.MaxTokensOption = None,
    temperature: options.TemperatureOption = None,
    top_p: options.TopPOption = None,
    top_k: options.TopKOption = None,
    min_p: options.MinPOption = None,
    seed: options.SeedOption = None,
    stop: options.StopOption = None,
    vocab: options.VocabOption = None,
    kernels: options.KernelsOption = "auto",
    threads: options.ThreadsOption = None,
    exact: options.ExactOption = False,
    dense_dtype: options.DenseDtypeOption = None,
    instruction_set: options.InstructionSetOption = None,
    context: options.ContextOption = None,
    memory: options.MemoryOption = False,
    allow_slow: options.AllowSlowOption = False,
    expert_memory: options.ExpertMemoryOption = None,
    no_mmap: options.NoMmapOption = False,
) -> None:
    """Ask a question, or talk: the reasoning is dimmed, the answer is not.

    In a conversation: /effort low|medium|high, /reset, /save FILE, /help; Ctrl-C stops the turn.
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
    if memory:
        show_memory(chosen.open(needs_tokenizer=False), as_json=as_json)
        return
    if as_json and prompt is None:
        raise UsageError("--json prints one turn; give the question as PROMPT.")
    from ossia.cli.chat_session import ChatSession

    chosen_effort = _effort(effort)
    if prompt == "-":
        prompt = terminal.read_all()

    with options.load_model(chosen.open(), quiet=as_json) as llm:
        sampling = options.sampling_of(
            llm,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            seed=seed,
        )
        session = ChatSession(
            llm,
            effort=chosen_effort,
            instructions=instructions,
            sampling=sampling,
            stop=tuple(stop or ()),
            hide_reasoning=hide_reasoning,
        )
        if as_json:
            assert prompt is not None
            session.answer_as_json(prompt)
            return
        if llm.card.description:
            print(llm.card.description, file=sys.stderr)
        if prompt is None:
            session.talk()
        else:
            session.answer(prompt)


def _effort(named: str) -> Effort:
    from ossia.harmony.messages import Effort

    if named not in set(Effort):
        raise UsageError(f"--effort takes low, medium or high; got {named!r}.")
    return Effort(named)
